"""What a patched object needs of its host, and targets that do not have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfchain.transform.errors import OptionError, RefusedError
from bpfchain.transform.request import Patched, Request
from bpfchain.transform.targets import parse_arch, parse_kernel
from bpfchain.transform.transform import transform_object

PROGRAMS = Path(__file__).resolve().parents[2] / "corpus" / "programs" / "el"
MIXED = "tail calls beside function calls"


def patched(name: str, strategy: str = "auto", **targets: str) -> Patched:
    request = Request(index=1, strategy=strategy, **targets)  # type: ignore[arg-type]
    return transform_object((PROGRAMS / f"{name}.o").read_bytes(), request)


@pytest.mark.parametrize(
    ("name", "strategy", "needs"),
    [
        ("filter", "inline", []),
        ("filter", "subprog", [MIXED, "the JIT"]),
        ("static_subprog", "inline", [MIXED, "the JIT"]),
        ("core_field", "inline", ["kernel BTF"]),
        ("core_field", "subprog", [MIXED, "the JIT", "kernel BTF"]),
    ],
)
def test_needs(name: str, strategy: str, needs: list[str]) -> None:
    assert [need.what for need in patched(name, strategy).needs] == needs


@pytest.mark.parametrize(
    ("kernel", "arch", "fits"),
    [
        ("5.10", "x86_64", True), ("5.4", "x86_64", False), ("5.15", "arm64", False),
        ("6.0", "aarch64", True), ("6.2", "s390x", False), ("7.0", "ppc64le", True),
    ],
)  # fmt: skip
def test_a_wrapper_fits_only_where_calls_mix(kernel: str, arch: str, fits: bool) -> None:
    assert patched("filter", "inline", kernel=kernel, arch=arch).strategy == "inline"
    if fits:
        assert patched("filter", "subprog", kernel=kernel, arch=arch).strategy == "subprog"
        return
    with pytest.raises(RefusedError, match=f"fails on {kernel} .*: its body becomes a function"):
        patched("filter", "subprog", kernel=kernel, arch=arch)


def test_no_kernel_of_an_architecture() -> None:
    with pytest.raises(RefusedError, match=r"fails on riscv64: .* no kernel has tail calls beside"):
        patched("filter", "subprog", arch="riscv64")
    assert patched("filter", arch="riscv64").strategy == "inline"


def test_a_kernel_alone_asks_for_any_architecture() -> None:
    assert patched("filter", "subprog", kernel="5.10").strategy == "subprog"
    with pytest.raises(RefusedError, match=r"fails on 5\.4 x86_64"):
        patched("filter", "subprog", kernel="5.4")


def test_names_of_targets() -> None:
    assert parse_kernel("v6.12-rc1") == (6, 12)
    assert parse_kernel("5.10.223") == (5, 10)
    assert parse_arch("amd64") == "x86_64"
    with pytest.raises(OptionError, match=r"'six' is not a version such as 6\.1"):
        parse_kernel("six")
    with pytest.raises(OptionError, match="no architecture named 'arm65'") as caught:
        parse_arch("arm65")
    assert caught.value.hint == "did you mean arm64?"
