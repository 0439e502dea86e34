"""What pyproject.toml cannot say: the packages of all source roots, and the native part."""

from __future__ import annotations

import os

from setuptools import find_namespace_packages, setup

ROOTS = ("transform", "emulator", "loader", "verify", "cli")

packages: dict[str, str] = {}
for root in ROOTS:
    for name in find_namespace_packages(root, include=["bpfchain.*"]):
        if "__pycache__" not in name:
            packages[name] = f"{root}/{name.replace('.', '/')}"

extensions = {}
if os.environ.get("BPFCHAIN_NO_NATIVE", "") in ("", "0"):
    from setuptools_rust import Binding, RustExtension

    extensions = {
        "rust_extensions": [
            RustExtension(
                "bpfchain.emulator._ubpf", "emulator/native/Cargo.toml", binding=Binding.PyO3,
                args=["--locked"], debug=False,  # an unoptimised uBPF is six times slower
                py_limited_api=True,
            )
        ],
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }  # fmt: skip

setup(packages=list(packages), package_dir=packages, zip_safe=False, **extensions)
