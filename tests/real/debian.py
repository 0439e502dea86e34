"""A private apt for one Debian suite: looks up, downloads and unpacks packages, installs nothing.

Its sources list is made at run time from the archive that the system's own apt uses; its lists,
cache and package state live in one folder, and signatures are checked with Debian's keyring.
Standard library only, because `fetch.py` runs before any virtual environment exists.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

MIRROR_VARIABLE = "BPFCHAIN_DEBIAN_ARCHIVE"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SECONDS = 100  # one apt call; the largest list is 11 MB

# Hooks of the system's apt (docker-clean, packagekit) would touch the system's own folders.
_APT_CONF = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "-";
Dir::Etc::preferencesparts "-";
Dir::State "{root}/state";
Dir::State::lists "{root}/lists";
Dir::State::status "{root}/status";
Dir::State::extended_states "{root}/extended_states";
Dir::Cache "{root}/cache";
Dir::Log "{root}/log";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "1";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
"""


class FetchError(RuntimeError):
    """Something could not be fetched; the text is one line: what, from where, what apt said."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """One package after `dpkg-deb -x`: its name, full version, the suite it came from, its root."""

    package: str
    version: str
    suite: str
    root: Path


def archive_uri() -> str:
    """The URI of the archive that the system's apt uses for its own suite's `main`.

    `BPFCHAIN_DEBIAN_ARCHIVE` overrides it (for a machine that is not Debian). Raises `FetchError`
    if there is neither.
    """
    given = os.environ.get(MIRROR_VARIABLE)
    if given:
        return given
    fields = "$(RELEASE) $(COMPONENT) $(REPO_URI)"
    shown = subprocess.run(
        ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    codename = _os_codename()
    for line in shown.stdout.splitlines():
        release, component, uri = line.split(" ", 2)
        if release in (codename, "stable", "testing", "unstable") and component == "main":
            return uri
    raise FetchError(
        f"the system's apt names no archive for {codename}/main: "
        f"set {MIRROR_VARIABLE} to a Debian archive's URI"
    )


class PrivateApt:
    """apt for one suite, with everything it writes below `root`; the lists are fetched once."""

    def __init__(self, root: Path, suite: str) -> None:
        """Prepares the folders and fetches the suite's package list. Raises `FetchError`."""
        if not _KEYRING.exists():
            raise FetchError(f"{_KEYRING} is missing: install debian-archive-keyring")
        self.suite = suite
        self._root = root.absolute()
        for folder in ("lists/partial", "cache/archives/partial", "state", "log", "debs"):
            (self._root / folder).mkdir(parents=True, exist_ok=True)
        (self._root / "status").write_text("")
        (self._root / "apt.conf").write_text(_APT_CONF.format(root=self._root))
        (self._root / "sources.list").write_text(
            f"deb [target=Packages signed-by={_KEYRING}] {archive_uri()} {suite} main\n"
        )
        # Without this, apt-get update ends with 0 when a list could not be fetched.
        self._run_twice(["update", "--error-on=any"], "its package list")

    def unpack(self, package: str, into: Path) -> Unpacked:
        """Downloads `package` alone and unpacks it to `into`. Raises `FetchError`."""
        folder = self._root / "debs" / package
        folder.mkdir(parents=True, exist_ok=True)
        self._run_twice(["download", package], package, cwd=folder)
        (deb,) = folder.glob("*.deb")
        return self._extract(deb, into)

    def unpack_with_libraries(self, packages: tuple[str, ...], into: Path) -> list[Unpacked]:
        """Unpacks `packages` and all they depend on, C library included, to one root."""
        archives = self._root / "cache" / "archives"
        for old in archives.glob("*.deb"):
            old.unlink()
        self._run_twice(["install", "--yes", "--download-only", *packages], " ".join(packages))
        return [self._extract(deb, into) for deb in sorted(archives.glob("*.deb"))]

    def _extract(self, deb: Path, into: Path) -> Unpacked:
        into.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["dpkg-deb", "-x", str(deb), str(into)], check=True, timeout=_SECONDS)
            fields = subprocess.run(
                ["dpkg-deb", "--show", "--showformat=${Package} ${Version}", str(deb)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()
        except (subprocess.SubprocessError, OSError) as error:
            raise FetchError(f"{deb.name} from {self.suite}: cannot be unpacked: {error}") from None
        return Unpacked(fields[0], fields[1], self.suite, into)

    def _run_twice(self, arguments: list[str], what: str, cwd: Path | None = None) -> None:
        """Runs apt-get; a failed run is repeated once, since mirrors now and then time out."""
        command = ["apt-get", "-q", "-c", str(self._root / "apt.conf"), *arguments]
        said = ""
        for _ in range(2):
            try:
                done = subprocess.run(
                    command,
                    cwd=cwd,
                    capture_output=True,
                    text=True,
                    timeout=_SECONDS,
                    env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
                    check=False,
                )
            except subprocess.TimeoutExpired:
                said = f"no end after {_SECONDS} s"
                continue
            if done.returncode == 0:
                return
            said = _first_error(done.stderr) or f"exit code {done.returncode}"
        raise FetchError(f"Debian {self.suite}: {what} cannot be fetched: {said}")


def missing_commands() -> list[str]:
    """The commands of apt and dpkg that this machine lacks; empty on Debian."""
    return [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("E:")), lines[-1] if lines else "")


def _os_codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.split("=", 1)[1].strip('"')
    return "stable"
