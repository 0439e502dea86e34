#!/usr/bin/env python3
"""Debian kernel images for the matrix, fetched through a private apt directory.

The system's apt is only read: the archive's URI comes from its sources at run time, lists and
packages live below `.build/kernels/`, and Debian's own keyring checks every signature. A kernel
that is there already is not looked up again; delete its folder to take a newer one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / ".build" / "kernels"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# Kernel line -> Debian suite that carries it. sid is asked for a named line too, so that a newer
# one there is a clear failure and not silently another kernel under an old name.
SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "7.2": "sid"}
KERNELS = tuple(SUITES)

# Machine (as `uname -m` says it) -> Debian's name of the architecture.
ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}

# What the arm64 runner is linked against, beside the cross compiler (bookworm, any time).
ARM64_DEVELOPMENT = ("libbpf-dev", "libelf-dev", "zlib1g-dev")


class FetchError(Exception):
    """Something cannot be had; the text is one line that says what and what to do."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One unpacked kernel: `line` as asked for (5.10), `path` of the bootable file.

    `config` is the kernel's build configuration, which libbpf reads for CONFIG_* externs.
    """

    line: str
    arch: str
    package: str
    version: str
    sha256: str
    path: Path
    config: Path


def system_uri() -> str:
    """The Debian archive that this machine's apt uses (deb822 or one-line sources)."""
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    if sources.exists():
        for line in sources.read_text().splitlines():
            if line.startswith("URIs:"):
                return line.split()[1]
    one_line = Path("/etc/apt/sources.list")
    if one_line.exists():
        found = re.search(r"^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s", one_line.read_text(), re.M)
        if found:
            return found[1]
    raise FetchError(
        "no Debian archive in /etc/apt/sources.list.d/debian.sources or /etc/apt/sources.list:"
        " kernels can be fetched on Debian only"
    )


class PrivateApt:
    """apt on its own lists, cache and package state, for one suite and one architecture."""

    def __init__(self, store: Path, suite: str, arch: str) -> None:
        """Prepare the folders below `store`; raise FetchError without archive or keyring."""
        if not KEYRING.exists():
            raise FetchError(f"{KEYRING} is missing: apt-get install debian-archive-keyring")
        self._home = store / "apt" / f"{suite}-{arch}"
        for folder in ("lists/partial", "cache/archives/partial", "dpkg"):
            (self._home / folder).mkdir(parents=True, exist_ok=True)
        (self._home / "dpkg" / "status").touch()
        # target=Packages: no translations, no component metadata, a third of the download.
        (self._home / "sources.list").write_text(
            f"deb [arch={arch} target=Packages signed-by={KEYRING}] {system_uri()} {suite} main\n"
        )
        self.suite, self.arch = suite, arch

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Run an apt tool on the private folders and give its output."""
        home = self._home
        options = {
            "Dir::Etc::sourcelist": home / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": home / "lists",
            "Dir::Cache": home / "cache",
            "Dir::State::status": home / "dpkg" / "status",
            "APT::Architecture": self.arch,
            "APT::Architectures": self.arch,
            "APT::Sandbox::User": "",
        }
        flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        done = subprocess.run(
            [command[0], *flags, *command[1:]], cwd=cwd, capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise FetchError(
                f"{' '.join(command)} ({self.suite}, {self.arch}) failed:"
                f" {last[0] if last else 'no output'}"
            )
        return done.stdout

    def download(self, package: str, into: Path) -> Path:
        """Download one package's .deb into the folder and give its path."""
        self.run("apt-get", "download", package, cwd=into)
        debs = sorted(into.glob(f"{package}_*.deb"))
        if not debs:
            raise FetchError(f"apt-get download {package} ({self.suite}) left no file")
        return debs[-1]


def newest_image(names: Sequence[str], line: str, arch: str) -> str:
    """The package that holds the newest plain kernel of a line.

    Debian named it linux-image-…-unsigned, and linux-binary-… since 7.x; the signed twin of an
    unsigned image only depends on more. Variants (cloud, rt, 16k pages) are other kernels.
    """
    pattern = re.compile(
        rf"linux-(?:image-(?P<image>{re.escape(line)}\.[\w.+~-]*?)-{arch}-unsigned"
        rf"|binary-(?P<binary>{re.escape(line)}\.[\w.+~-]*?)-{arch})"
    )
    found = []
    for name in names:
        match = pattern.fullmatch(name)
        release = match and (match["image"] or match["binary"])
        if release and not re.search(r"-(cloud|rt|16k)$", release):
            found.append(([int(n) for n in re.findall(r"\d+", release)], name))
    if not found:
        raise FetchError(
            f"no kernel {line} for {arch} in suite {SUITES.get(line, '?')}:"
            " the archive has moved on, name another line in bench/kernels/fetch.py"
        )
    return max(found)[1]


def unpack(deb: Path, into: Path) -> None:
    """Unpack a .deb; nothing of it is run."""
    done = subprocess.run(
        ["dpkg-deb", "-x", str(deb), str(into)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise FetchError(f"{deb.name} cannot be unpacked: {done.stderr.strip()}")


def fetch_kernel(line: str, arch: str = "x86_64", store: Path = STORE) -> Kernel:
    """Give the kernel of a line (5.10) for a machine (x86_64), downloading it the first time.

    Raises FetchError with one line that says what is missing.
    """
    if line not in SUITES:
        raise FetchError(f"kernel {line} is not one of {', '.join(KERNELS)}")
    if arch not in ARCHES:
        raise FetchError(f"arch {arch} is not one of {', '.join(ARCHES)}")
    folder = store / arch / line
    record = folder / "kernel.json"
    if record.exists():
        fields = json.loads(record.read_text())
        return Kernel(**fields, path=folder / "vmlinuz", config=folder / "config")
    apt = PrivateApt(store, SUITES[line], ARCHES[arch])
    apt.run("apt-get", "update")
    names = apt.run("apt-cache", "search", "--names-only", f"^linux-(image|binary)-{line}")
    package = newest_image([row.split()[0] for row in names.splitlines()], line, ARCHES[arch])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store) as scratch:
        deb = apt.download(package, Path(scratch))
        tree = Path(scratch) / "tree"
        unpack(deb, tree)
        if package.startswith("linux-binary-"):  # the configuration moved to a package of its own
            base = package.replace("linux-binary-", "linux-base-", 1)
            unpack(apt.download(base, Path(scratch)), tree)
        images = sorted([*tree.glob("boot/vmlinuz-*"), *tree.glob("usr/lib/modules/*/vmlinuz")])
        configs = sorted([*tree.glob("boot/config-*"), *tree.glob("usr/lib/modules/*/config")])
        if not images or not configs:
            raise FetchError(f"{deb.name} holds no {'config' if images else 'vmlinuz'}")
        shutil.copyfile(images[0], folder / "vmlinuz")
        shutil.copyfile(configs[0], folder / "config")
        version = deb.name.split("_")[1].replace("%3a", ":")
    image = folder / "vmlinuz"
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    fields = {
        "line": line,
        "arch": arch,
        "package": package,
        "version": version,
        "sha256": digest,
    }
    scratch_record = record.with_suffix(".tmp")
    scratch_record.write_text(json.dumps(fields, indent=1) + "\n")
    scratch_record.rename(record)  # written last: a folder without it is fetched again
    return Kernel(**fields, path=image, config=folder / "config")


def fetch_sysroot(arch: str, store: Path = STORE) -> Path:
    """A folder with the static libraries and headers for a foreign machine's runner."""
    root = store / arch / "sysroot"
    if not (root / ".complete").exists():
        apt = PrivateApt(store, "bookworm", ARCHES[arch])
        apt.run("apt-get", "update")
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=store) as scratch:
            for package in ARM64_DEVELOPMENT:
                unpack(apt.download(package, Path(scratch)), root)
        (root / ".complete").touch()
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the kernels named on the command line and say one line about each."""
    parser = argparse.ArgumentParser(description="fetch Debian kernels for the matrix")
    parser.add_argument("kernels", nargs="*", default=list(KERNELS), help="lines, e.g. 6.1")
    parser.add_argument("--arch", choices=sorted(ARCHES), default="x86_64")
    options = parser.parse_args(arguments)
    failed = False
    for line in options.kernels:
        try:
            kernel = fetch_kernel(line, options.arch)
        except FetchError as error:
            print(f"host: {error}", file=sys.stderr)
            failed = True
        else:
            print(f"{kernel.line} {kernel.arch} {kernel.package} {kernel.version} {kernel.path}")
    return 5 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
