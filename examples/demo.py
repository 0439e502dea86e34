"""What `make demo` does: build the thesis's chain, show a link, prove it, run it in the kernel.

Reads like what a user does by hand: `bpfchain build`, `bpfchain inspect`, `bpfchain verify`, load, fill
the slots, run the chain beside the originals.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from bpfchain.loader.libbpf import ObjectFile
from bpfchain.loader.maps import Map
from bpfchain.loader.programs import Program
from bpfchain.loader.uapi import MapType

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / ".build" / "demo"
VERDICTS = ("ABORTED", "DROP", "PASS", "TX", "REDIRECT")
BLOCKED_PORT = 23


def frame(ethertype: int, network: bytes) -> bytes:
    return bytes.fromhex("020000000002020000000001") + struct.pack("!H", ethertype) + network


def ipv6_tcp(port: int) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", 40000, port, 1, 0, 0x50, 0x18, 8192, 0, 0) + bytes(32)
    nodes = bytes.fromhex("20010db8" + "00" * 11 + "01" + "20010db8" + "00" * 11 + "02")
    return frame(0x86DD, struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + nodes + tcp)


PACKETS = {
    "IPv6/TCP to port 443": ipv6_tcp(443),
    f"IPv6/TCP to port {BLOCKED_PORT}, blocked": ipv6_tcp(BLOCKED_PORT),
    "IPv4/UDP": frame(
        0x0800, bytes.fromhex("4500003c0000000040110000c0000201c0000202") + bytes(40)
    ),
    "ARP": frame(0x0806, bytes(46)),
}


class Running:
    """Programs that are loaded, with the maps in which they leave something."""

    def __init__(self, stack: ExitStack, paths: list[Path], names: list[str]) -> None:
        self.programs: list[Program] = []
        self.maps: dict[str, Map] = {}
        self.slots: Map | None = None
        for path, name in zip(paths, names, strict=True):
            obj = stack.enter_context(ObjectFile.open(path))
            if "bpfchain_slots" in obj.maps:
                wanted = obj.maps["bpfchain_slots"]
                if self.slots is None:
                    self.slots = stack.enter_context(
                        Map.create(
                            MapType.PROG_ARRAY, 4, 4, wanted.max_entries, name="bpfchain_slots"
                        )
                    )
                wanted.reuse(self.slots)
            obj.load()
            self.programs.append(stack.enter_context(obj.programs[name].program()))
            for map_name in ("blocked", "counters", "records"):
                if map_name in obj.maps:
                    self.maps[map_name] = stack.enter_context(obj.maps[map_name].map())
        self.maps["blocked"].update(struct.pack("=H", BLOCKED_PORT), b"\1")

    def counted(self) -> int:
        """Packets that metrics counted, over all CPUs and kinds."""
        return sum(
            struct.unpack_from("=Q", value)[0]
            for key in list(self.maps["counters"].keys())
            for value in self.maps["counters"].lookup_percpu(key) or []
        )

    def logged(self) -> int:
        """Bytes that log has written: the ring buffer's producer position."""
        page = os.sysconf("SC_PAGESIZE")
        with mmap.mmap(
            self.maps["records"].fileno(), page, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
        ) as view:
            return int(struct.unpack_from("=Q", view)[0])


def run(*command: str) -> str:
    print(f"$ {' '.join(command)}", flush=True)
    tool = ROOT / ".venv" / "bin" / command[0]
    done = subprocess.run([tool, *command[1:]], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def one_by_one(originals: Running) -> list[str]:
    """What a person would expect of the chain: each program in turn, as long as they pass."""
    verdicts = []
    for packet in PACKETS.values():
        for program in originals.programs:
            verdict = program.test_run(packet).retval
            if VERDICTS[verdict] != "PASS":
                break
        verdicts.append(VERDICTS[verdict])
    return verdicts


def main() -> int:
    """Run the demonstration; 1 where the chain does not do what the programs do one by one."""
    OUT.parent.mkdir(exist_ok=True)
    run("bpfchain", "build", "examples/thesis/chain.toml", "-o", str(OUT.relative_to(ROOT)))
    print()
    run("bpfchain", "inspect", str((OUT / "link0.o").relative_to(ROOT)))
    print()
    run(
        "bpfchain", "verify", str((OUT / "manifest.json").relative_to(ROOT)),
        "--scenario", "examples/thesis/scenario.json",
    )  # fmt: skip
    print()
    manifest = json.loads((OUT / "manifest.json").read_text())
    names = [link["program"] for link in manifest["links"]]
    sources = [ROOT / "corpus" / "programs" / "el" / f"{n}.o" for n in ("filter", "metrics", "log")]
    patched = [OUT / link["object"] for link in manifest["links"]]
    with ExitStack() as stack:
        try:
            originals = Running(stack, sources, names)
            chain = Running(stack, patched, names)
        except OSError as error:
            print(f"not run in the kernel: {error}")
            print("  hint: loading BPF programs needs root: sudo make demo")
            return 0
        assert chain.slots is not None
        for slot in range(len(chain.programs) - 1, 0, -1):  # from the last link to the first
            chain.slots.set_fd(slot, chain.programs[slot].fileno())
        expected = one_by_one(originals)
        got = [VERDICTS[chain.programs[0].test_run(p).retval] for p in PACKETS.values()]
        print(f"{'in the kernel (BPF_PROG_TEST_RUN)':<34}{'one by one':>12}{'chain':>12}")
        for name, before, after in zip(PACKETS, expected, got, strict=True):
            print(f"  {name:<32}{before:>12}{after:>12}{'' if before == after else '   DIFFERS'}")
        rows = (
            ("packets counted by metrics", originals.counted(), chain.counted()),
            ("bytes logged by log", originals.logged(), chain.logged()),
        )
        for name, count_before, count_after in rows:
            print(f"  {name:<32}{count_before:>12}{count_after:>12}")
    same = expected == got and all(a == b for _, a, b in rows)
    print("equal: the chain does what the three programs do one by one" if same else "NOT EQUAL")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
