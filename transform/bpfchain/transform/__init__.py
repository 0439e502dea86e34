"""The pure room: ELF and BTF model, hook policy, the patch and the manifest.

Nothing here touches a kernel, a clock or the network; the same bytes and options give the same bytes.
Standard library only.
"""
