"""What kernels and architectures a patched object needs, and whether a named target has it.

First kernels with tail calls beside bpf-to-bpf calls: research/loaders-and-verifier.md, section 2.
"""

from __future__ import annotations

import re

from .errors import OptionError, RefusedError, nearest
from .request import Need

__all__ = [
    "ARCHES",
    "MIXED",
    "check_targets",
    "every_arch",
    "kernel_btf_need",
    "mixed_calls_needs",
    "parse_arch",
    "parse_kernel",
]

MIXED: tuple[tuple[str, str | None], ...] = (
    ("x86_64", "5.10"),
    ("arm64", "6.0"),
    ("s390x", "6.3"),
    ("loongarch64", "6.4"),
    ("ppc64", "7.0"),
    ("riscv64", None),
    ("arm", None),
    ("mips", None),
    ("sparc", None),
    ("i386", None),
)
ARCHES = tuple(arch for arch, _ in MIXED)
_ALIASES = {"amd64": "x86_64", "x86-64": "x86_64", "aarch64": "arm64", "ppc64le": "ppc64"}


def parse_kernel(text: str) -> tuple[int, int]:
    """``6.1``, ``5.10.223`` or ``v6.12`` as (major, minor). Raises OptionError."""
    found = re.match(r"v?(\d+)\.(\d+)(?:[.\-+].*)?$", text)
    if found is None:
        raise OptionError(f"--kernel: {text!r} is not a version such as 6.1")
    return int(found[1]), int(found[2])


def parse_arch(text: str) -> str:
    """The architecture's name as the table has it. Raises OptionError."""
    name = _ALIASES.get(text, text)
    if name not in ARCHES:
        close = nearest(name, ARCHES)
        raise OptionError(
            f"--arch: no architecture named {text!r}",
            f"did you mean {close}?" if close else f"one of {', '.join(ARCHES)}",
        )
    return name


def mixed_calls_needs(why: str) -> tuple[Need, ...]:
    """Tail calls beside calls of bpf functions: by architecture, and only with the JIT."""
    what = "tail calls beside function calls"
    return (Need(what, why, MIXED), Need("the JIT", f"the interpreter has no {what}"))


def kernel_btf_need() -> Need:
    """CO-RE relocations are resolved against the types of the kernel that loads the program."""
    return Need("kernel BTF", "it has CO-RE relocations")


def every_arch(kernel: str) -> tuple[tuple[str, str | None], ...]:
    """A need that is the same everywhere: from ``kernel`` on."""
    return tuple((arch, kernel) for arch in ARCHES)


def check_targets(needs: tuple[Need, ...], kernel: str | None, arch: str | None) -> None:
    """Raise RefusedError where a need is not met by the targets that were named."""
    wanted = parse_kernel(kernel) if kernel is not None else None
    named = parse_arch(arch) if arch is not None else None
    for need in (need for need in needs if need.kernels):
        rows = [row for row in need.kernels if named is None or row[0] == named]
        if named is None and any(
            first is not None and (wanted is None or wanted >= parse_kernel(first))
            for _, first in rows
        ):
            continue  # some architecture can, and none was named
        for row_arch, first in rows:
            if first is None:
                raise RefusedError(
                    f"fails on {row_arch}: {need.why}, and no kernel has {need.what} there",
                    "a program of one function, patched inline, needs none of that",
                )
            if wanted is not None and wanted < parse_kernel(first):
                raise RefusedError(
                    f"fails on {kernel} {row_arch}: {need.why}, and {need.what} need {first} there"
                )
