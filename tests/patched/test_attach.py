"""Patched XDP objects through the tools that also attach: ``ip link`` and ``xdp-loader``.

On a veth pair in a network namespace of its own; frames go in at the other end.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfchain.loader.maps import Map
from bpfchain.loader.programs import Program
from bpfchain.transform.errors import BpfchainError
from patched import packets
from patched.objects import corpus_objects, patch
from real.debian import PrivateApt

pytestmark = pytest.mark.usefixtures("kernel")
BUILD = Path(__file__).resolve().parents[2] / ".build" / "patched"
WAYS = ("as is", "inline", "subprog", "pin")
FRAMES = 5


@contextmanager
def veth() -> Iterator[list[str]]:
    """A namespace with v0 and v1, both up; the prefix that runs a command in it."""
    sleeper = subprocess.Popen(["unshare", "--net", "sleep", "600"])
    try:
        prefix = ["nsenter", f"--net=/proc/{sleeper.pid}/ns/net"]
        mine = os.readlink("/proc/self/ns/net")
        for _ in range(100):
            if os.readlink(f"/proc/{sleeper.pid}/ns/net") != mine:
                break
            time.sleep(0.02)
        for command in (
            "link add v0 type veth peer name v1", "link set v0 up", "link set v1 up",
        ):  # fmt: skip
            subprocess.run([*prefix, "ip", *command.split()], check=True)
        yield prefix
    finally:
        sleeper.kill()
        sleeper.wait()


SEND = """
import socket, sys
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind(("v1", 0))
for _ in range(int(sys.argv[1])):
    out.send(bytes.fromhex(sys.argv[2]))
"""


def attached(prefix: list[str]) -> int:
    """The id of the program on v0, by ip."""
    out = subprocess.run(
        [*prefix, "ip", "-j", "link", "show", "v0"], capture_output=True, text=True, check=True
    )
    return int(json.loads(out.stdout)[0]["xdp"]["prog"]["id"])


def object_file(way: str, folder: Path) -> Path:
    (one,) = [o for o in corpus_objects() if o.name == "verdict_xdp"]
    data = one.path.read_bytes()
    if way != "as is":
        done = patch(data, one.program, one.section, one.hook, way, index=0)
        assert not isinstance(done, BpfchainError)
        data = done.data
    path = folder / "verdict.o"
    path.write_bytes(data)
    return path


def check_it_runs(prefix: list[str], way: str, *, dispatcher: bool = False) -> None:
    """The program on v0 is the one loaded and sees the frames that come in.

    Under libxdp's dispatcher the program on v0 is that one, and only its name is asked.
    """
    with Program.from_id(attached(prefix)) as program:
        info = program.info()
    if dispatcher:
        assert info.name == "xdp_dispatcher"
        return
    assert info.name == "verdict_xdp"
    names = set()
    for number in info.map_ids:
        with Map.from_id(number) as found:
            names.add(found.info().name)
            if found.info().name == "verdict":
                found.update(bytes(4), struct.pack("=i", packets.DROP))
    assert names == {"verdict", "runs"} | ({"bpfchain_slots"} if way != "as is" else set())
    before = runs(info.map_ids)
    command = [*prefix, sys.executable, "-c", SEND, str(FRAMES), packets.UDP6.hex()]
    subprocess.run(command, check=True)
    for _ in range(100):
        if runs(info.map_ids) - before >= FRAMES:
            break
        time.sleep(0.02)
    assert runs(info.map_ids) - before >= FRAMES


def runs(numbers: tuple[int, ...]) -> int:
    for number in numbers:
        with Map.from_id(number) as found:
            if found.info().name == "runs":
                return int(struct.unpack("=Q", found.lookup(bytes(4)) or b"")[0])
    raise LookupError("runs")


@pytest.mark.parametrize("way", WAYS)
def test_ip_link(way: str, tmp_path: Path) -> None:
    """iproute2 pins maps of --pin objects in the bpffs that only this process sees."""
    path = object_file(way, tmp_path)
    with veth() as prefix:
        done = subprocess.run(
            [*prefix, "ip", "link", "set", "v0", "xdpgeneric", "obj", str(path), "sec", "xdp"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr
        check_it_runs(prefix, way)
    for pin in Path("/sys/fs/bpf").rglob("bpfchain_slots"):
        pin.unlink()


def xdp_loader() -> tuple[Path, dict[str, str]]:
    """xdp-loader of bookworm, unpacked once, and the environment that it needs."""
    root = BUILD / "xdp-tools"
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "xdp-tools.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            scratch, fresh = BUILD / "apt", BUILD / "xdp-tools.new"
            shutil.rmtree(fresh, ignore_errors=True)
            apt = PrivateApt(scratch, "bookworm")
            for package in ("xdp-tools", "libxdp1"):
                apt.unpack(package, fresh)
            shutil.rmtree(scratch)
            fresh.rename(root)
    (library,) = root.glob("usr/lib/*/libxdp.so.1")
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(library.parent),
        "LIBXDP_OBJECT_PATH": str(library.parent / "bpf"),
    }
    return root / "usr" / "sbin" / "xdp-loader", environment


@pytest.mark.real
@pytest.mark.parametrize("way", WAYS)
def test_xdp_loader(way: str, tmp_path: Path) -> None:
    """Under libxdp's dispatcher where the kernel lets it, else alone, as libxdp itself decides.

    The kernel of the development machine answers EPERM to EXT programs; libxdp then says so and
    falls back to the single program without its dispatcher.
    """
    path = object_file(way, tmp_path)
    program, environment = xdp_loader()
    with veth() as prefix:
        done = subprocess.run(
            [*prefix, str(program), "load", "-v", "-m", "skb", "v0", str(path)],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        print(said)
        check_it_runs(prefix, way, dispatcher="without dispatcher" not in said)
    for pin in Path("/sys/fs/bpf").rglob("bpfchain_slots"):
        pin.unlink()
