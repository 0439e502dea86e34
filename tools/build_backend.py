"""The package's build backend: setuptools, and what the native part of the emulator is built with.

cmake and libclang are asked of PyPI where this machine has none; what cannot come from there (cargo,
a C and a C++ compiler) is named in one line. BPFCHAIN_NO_NATIVE=1 builds without the native part.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
from typing import Any, NoReturn

from setuptools import build_meta

__all__ = [
    "build_editable", "build_sdist", "build_wheel", "get_requires_for_build_editable",
    "get_requires_for_build_sdist", "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable", "prepare_metadata_for_build_wheel",
]  # fmt: skip

RUST = (1, 85)
"""pyo3 0.26's."""
NO_NATIVE = "BPFCHAIN_NO_NATIVE"
_LIBCLANG = (
    "/usr/lib/llvm*/lib", "/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib",
    "/usr/lib64/llvm*/lib", "/opt/homebrew/opt/llvm/lib", "/usr/local/opt/llvm/lib",
)  # fmt: skip
"""Where bindgen looks (the crate clang-sys, ``search_libclang_directories``)."""
_NAMES = ("libclang.so", "libclang-*.so", "libclang.so.*", "libclang-*.so.*", "libclang.dylib")

build_sdist = build_meta.build_sdist
get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable


def native() -> bool:
    """Whether the native part is to be built."""
    return os.environ.get(NO_NATIVE, "") in ("", "0")


def get_requires_for_build_wheel(settings: dict[str, Any] | None = None) -> list[str]:
    """Of the native part (first: what is missing is said before anything else), and setuptools."""
    return [*_requires(), *build_meta.get_requires_for_build_wheel(settings)]


def get_requires_for_build_editable(settings: dict[str, Any] | None = None) -> list[str]:
    """As for a wheel."""
    return [*_requires(), *build_meta.get_requires_for_build_editable(settings)]


def build_wheel(
    folder: str, settings: dict[str, Any] | None = None, metadata: str | None = None
) -> str:
    """A wheel, with the native part inside."""
    _prepare()
    name: str = build_meta.build_wheel(folder, settings, metadata)
    return name


def build_editable(
    folder: str, settings: dict[str, Any] | None = None, metadata: str | None = None
) -> str:
    """An installation that points here; the native part is put beside its stub."""
    _prepare()
    name: str = build_meta.build_editable(folder, settings, metadata)
    return name


def _requires() -> list[str]:
    if not native():
        return []
    _check_rust()
    _check_compiler()
    wanted = []
    if shutil.which("cmake") is None:
        wanted.append("cmake>=3.16")
    if not has_libclang():
        wanted.append("libclang>=14")
    return wanted


def has_libclang() -> bool:
    """Whether bindgen finds a libclang without help."""
    if os.environ.get("LIBCLANG_PATH"):
        return True
    folders = list(_LIBCLANG)
    config = os.environ.get("LLVM_CONFIG_PATH") or shutil.which("llvm-config")
    if config:
        done = subprocess.run([config, "--libdir"], capture_output=True, text=True, check=False)
        folders.insert(0, done.stdout.strip() or "/nowhere")
    found = [
        path for folder in folders for name in _NAMES for path in glob.glob(f"{folder}/{name}")
    ]
    return any("libclang-cpp" not in path for path in found)


def _check_rust() -> None:
    cargo = os.environ.get("CARGO") or shutil.which("cargo") or ""
    if not cargo:
        _fail(f"cargo (Rust {RUST[0]}.{RUST[1]} or newer) is not there",
              "Debian 12: apt install cargo-web rustc-web; or https://rustup.rs")  # fmt: skip
    said = subprocess.run([cargo, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    if not found or tuple(map(int, found.groups())) < RUST:
        _fail(f"cargo is too old ({said.strip() or 'it does not run'}): "
              f"{RUST[0]}.{RUST[1]} is needed",
              "Debian 12: apt install cargo-web rustc-web; or https://rustup.rs")  # fmt: skip


def _check_compiler() -> None:
    if not (os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")):
        _fail("a C compiler (cc) is not there", "Debian: apt install g++")
    if not (os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")):
        # uBPF has no C++, but its CMake project asks for both languages
        _fail("a C++ compiler (c++) is not there", "Debian: apt install g++")


def _fail(what: str, how: str) -> NoReturn:
    print(f"bpfchain: the emulator's native part cannot be built: {what}\n  hint: {how}; "
          f"or build without it: {NO_NATIVE}=1 pip install .", file=sys.stderr)  # fmt: skip
    raise SystemExit(1)


def _prepare() -> None:
    """Point cargo's build at the libclang from PyPI, where it is the one that was asked for."""
    shutil.rmtree("build", ignore_errors=True)  # what was deleted here must not live on in a wheel
    if not native():
        return
    if not has_libclang():
        try:
            import clang  # noqa: PLC0415 - there only in a build
        except ImportError:
            _fail("libclang is not there",
                  "Debian: apt install libclang1-14; or pip install libclang")  # fmt: skip
        os.environ["LIBCLANG_PATH"] = os.path.join(os.path.dirname(clang.__file__), "native")
    # libclang alone, from PyPI or Debian, lacks clang's own headers (stddef.h): the C compiler's
    # do, and come last, so that clang's are taken where they are there
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    found = subprocess.run(
        [compiler, "-print-file-name=include"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if os.path.isdir(found):
        known = os.environ.get("BINDGEN_EXTRA_CLANG_ARGS", "")
        os.environ["BINDGEN_EXTRA_CLANG_ARGS"] = f"{known} -idirafter {found}".strip()
