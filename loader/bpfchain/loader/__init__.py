"""Loading of chains: the bpf(2) and libbpf.so.1 bindings, and what is built on them.

Standard library only (ctypes): a host needs neither a compiler nor another package. Modules:
``uapi`` (numbers and layouts of the kernel), ``syscall`` (the call and file descriptors), ``maps``,
``programs``, ``links``, ``library`` (libbpf.so.1), ``libbpf`` (object files), ``verifierlog`` (what
of a log is worth saying); ``hooks`` (a driver for each kind of hook, over ``netlink``, ``query``,
``perf``); ``places``, ``store`` and ``lock`` (the state on a bpffs), ``situation`` (what is there of
one chain), ``generation`` and ``entry`` (what is loaded), ``preflight``, ``operations`` (``load``,
``replace`` …), ``status``, ``plan``.
"""
