"""With --pin, plain ``bpftool prog load`` of each link, last to first, makes a chain that runs."""

from __future__ import annotations

import itertools
import json
import mmap
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bpfchain.loader.maps import Map
from bpfchain.loader.programs import Program
from bpfchain.transform.request import Patched, Request
from bpfchain.transform.transform import transform_object
from bpfchain.verify.reference import ReferenceLink, chain_result
from patched import packets
from patched.objects import corpus_objects
from support import real

BPFFS = Path("/sys/fs/bpf")
STRATEGIES = ("inline", "subprog")
DROP, PASS, TX = 1, 2, 3
RECORD = 48  # bytes that a record of the corpus's log takes in its ring buffer
TOOLS = [
    pytest.param("installed"),
    pytest.param("newest", marks=pytest.mark.real),
]


def bpftool(which: str, *arguments: str) -> str:
    prefix = ["bpftool"] if which == "installed" else real.newest_bpftool()
    done = subprocess.run([*prefix, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(which: str, pin: Path, frame: bytes, folder: Path) -> int:
    """The verdict of ``bpftool prog run``."""
    (folder / "in").write_bytes(frame)
    out = bpftool(
        which, "-j", "prog", "run", "pinned", str(pin), "data_in", str(folder / "in"),
        "data_out", str(folder / "out"),
    )  # fmt: skip
    return int(json.loads(out)["retval"])


def source(name: str) -> bytes:
    (one,) = [o for o in corpus_objects() if o.name == name]
    return one.path.read_bytes()


def load(which: str, links: list[Patched], folder: Path) -> list[Path]:
    """bpftool prog load of each, last to first; the pins, first to last."""
    pins = []
    for number, link in reversed(list(enumerate(links))):
        path = folder / f"link{number}.o"
        path.write_bytes(link.data)
        pins.append(BPFFS / f"pin_link{number}")
        bpftool(which, "prog", "load", str(path), str(pins[-1]))
    return pins[::-1]


def map_of(stack: ExitStack, slots: Map, slot: int, name: str) -> Map:
    """A map of the program in a slot, by name; closed with the stack."""
    number = slots.slot(slot)
    assert number is not None, f"slot {slot} is empty"
    with Program.from_id(number) as program:
        numbers = program.info().map_ids
    for one in numbers:
        found = stack.enter_context(Map.from_id(one))
        if found.info().name == name:
            return found
    raise LookupError(name)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test opened."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def clean(kernel: None) -> Iterator[None]:
    """The private bpffs has no pins of such a chain, before and after."""
    assert not list(BPFFS.glob("bpfchain_slots")) + list(BPFFS.glob("pin_link*"))
    yield
    for path in [*BPFFS.glob("bpfchain_*"), *BPFFS.glob("pin_link*")]:
        path.unlink()


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("which", TOOLS)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_chain(tmp_path: Path, stack: ExitStack, strategy: str, last: bool, which: str) -> None:
    links = [
        transform_object(
            source(name),
            Request(index=index, strategy=strategy, pin=True, last=last and index == 2),
        )
        for index, name in enumerate(("filter", "metrics", "log"))
    ]
    pins = load(which, links, tmp_path)
    slots = stack.enter_context(Map.get_pinned(BPFFS / "bpfchain_slots"))
    assert [slots.slot(index) is not None for index in range(4)] == [True, True, True, False]
    blocked = map_of(stack, slots, 0, "blocked")
    blocked.update(struct.pack("=H", packets.BLOCKED_PORT), b"\1")
    records = map_of(stack, slots, 2, "records")
    with mmap.mmap(
        records.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ, offset=mmap.PAGESIZE
    ) as at:
        verdicts = [run(which, pins[0], frame, tmp_path) for frame in packets.FRAMES]
        written = int.from_bytes(at[:8], "little")
    passed = [frame for frame in packets.FRAMES if packets.filter_verdict(frame) == PASS]
    assert verdicts == [packets.filter_verdict(frame) for frame in packets.FRAMES]
    assert {DROP, PASS} == set(verdicts)
    counted = Counter(packets.kind(frame) for frame in passed)
    counters = map_of(stack, slots, 1, "counters")
    for key in range(6):
        values = counters.lookup_percpu(struct.pack("=I", key)) or []
        assert sum(struct.unpack("=Q", value[:8])[0] for value in values) == counted[key]
    assert written == RECORD * sum(map(packets.is_tcp6, passed)) > 0


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_chain_with_saved_codes(
    tmp_path: Path, stack: ExitStack, strategy: str, last: bool
) -> None:
    """R = {DROP, TX} at links 0 and 1: every code of every link, against the reference."""
    data = source("verdict_xdp")
    redirect = ["DROP,TX", "DROP", "none"]
    saved = ["none", "DROP,TX", "DROP,TX"]
    links = [
        transform_object(
            data,
            Request(
                index=index, strategy=strategy, pin=True, redirect=redirect[index],
                saved=saved[index], last=last and index == 2,
            ),
        )
        for index in range(3)
    ]  # fmt: skip
    assert [len(link.entries) for link in links] == [1, 3, 3]
    pins = load("installed", links, tmp_path)
    slots = stack.enter_context(Map.get_pinned(BPFFS / "bpfchain_slots"))
    filled = {slot for slot in range(slots.max_entries) if slots.slot(slot) is not None}
    assert filled == {entry.slot for link in links for entry in link.entries}
    head = stack.enter_context(Program.get_pinned(pins[0]))
    # Each entry's object is the same, so each link has one pair of maps.
    verdict = [map_of(stack, slots, index, "verdict") for index in range(3)]
    runs = [map_of(stack, slots, index, "runs") for index in range(3)]
    reference: list[ReferenceLink] = [({PASS}, {DROP, TX}), ({PASS}, {DROP}), ({PASS}, ())]
    ran = [0, 0, 0]
    for codes in itertools.product(range(5), repeat=3):
        for one, code in zip(verdict, codes, strict=True):
            one.update(bytes(4), struct.pack("=i", code))
        wanted, count = chain_result(reference, codes.__getitem__)
        assert head.test_run(packets.UDP6).signed == wanted, codes
        ran = [total + (index < count) for index, total in enumerate(ran)]
    counted = [struct.unpack("=Q", one.lookup(bytes(4)) or b"")[0] for one in runs]
    assert counted == ran
    assert min(ran) > 0
