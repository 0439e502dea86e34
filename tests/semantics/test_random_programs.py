"""Random small programs that the verifier takes: original and patched are the same to everybody.

Whatever ``random_programs`` writes and the kernel loads is patched in both ways with random options
and must load too, and give the reference's verdict, the same packet and the same map.
``BPFCHAIN_RANDOM=COUNT`` or ``COUNT,SEED`` runs more of them.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from bpfchain.loader.libbpf import LibbpfError
from bpfchain.loader.programs import Program
from bpfchain.loader.syscall import BpfError
from bpfchain.transform.errors import RefusedError
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from semantics.chains import STRATEGIES, Place, Single, Spec
from semantics.places import TC, XDP, specs
from semantics.random_programs import BY_POINTER, VALUE_SIZE, Writer
from semantics.tally import TALLY
from support import objbuild as o
from support.kernel import Chain
from support.objbuild import Obj, Rel, Sec, Sym, btf, btf_ext, build, insn

COUNT, SEED = (int(x) for x in (os.environ.get("BPFCHAIN_RANDOM", "2400") + ",1").split(",")[:2])
BATCHES = 6
PACKETS = (bytes(64), bytes(range(14, 14 + 60)), b"\xff" * 128)
# r0 = r1; r0 *= 3; if r1 > 5 goto +1; r0 ^= 1; exit
# r0 = *(u64 *)(r1 + 0); r2 = r0; r2 += 7; *(u64 *)(r1 + 0) = r2; r0 >>= 1; exit
FUNCTIONS = b"".join((
    insn(0xBF, 0, 1), insn(0x27, 0, imm=3), insn(0x25, 1, off=1, imm=5), insn(0xA7, 0, imm=1),
    insn(0x95),
    insn(0x79, 0, 1), insn(0xBF, 2, 0), insn(0x07, 2, imm=7), insn(0x7B, 1, 2), insn(0x77, 0, imm=1),
    insn(0x95),
))  # fmt: skip


def types(section: str, *, functions: bool) -> tuple[bytes, bytes]:
    """.BTF and .BTF.ext: a map, the program, its functions; a line record at each one's start."""
    numbers = (("type", 2), ("key_size", 4), ("value_size", VALUE_SIZE), ("max_entries", 4))
    known: dict[str, int] = {}
    data = b""
    for _ in range(2):  # once to learn where the strings are
        made: list[tuple[str, int, int, int, list[int]]] = [
            ("int", 1, 0, 4, [1 << 24 | 32]), ("__ARRAY_SIZE_TYPE__", 1, 0, 4, [32]),
        ]  # fmt: skip
        members = []
        for at, (name, number) in enumerate(numbers):
            made.append(("", 3, 0, 0, [1, 2, number]))
            made.append(("", 2, 0, len(made), []))
            members += [known.get(name, 0), len(made), at * 64]
        made.append(("", 4, len(numbers), 8 * len(numbers), members))
        made.append(("table", 14, 0, len(made), [1]))
        made.append((".maps", 15, 1, 0, [len(made), 0, 8 * len(numbers)]))
        made.append(("", 2, 0, 0, []))
        made.append(("", 13, 1, 1, [0, len(made)]))
        proto = len(made)
        made.append(("prog", 12, 1, proto, []))
        made += [(name, 12, 0, proto, []) for name in ("number", "pointer")]
        names = [section, ".text", "p.c", "line", *(name for name, _ in numbers)]
        data, known = btf(made, strings=names)
    first = proto + 1
    funcs = [(known[section], [(0, first)])]
    lines = [(known[section], [(0, known["p.c"], known["line"], 1 << 10)])]
    if functions:
        funcs.append((known[".text"], [(0, first + 1), (BY_POINTER * 8, first + 2)]))
        lines.append((known[".text"], [(at, known["p.c"], known["line"], 2 << 10)
                                       for at in (0, BY_POINTER * 8)]))  # fmt: skip
    return data, btf_ext(((8, funcs), (16, lines), None))


def generate(rng: random.Random, hook: str) -> bytes:
    """An object with one random program, ``prog``."""
    writer = Writer(rng, hook)
    writer.program()
    code, text = b"".join(writer.code), FUNCTIONS if writer.calls else b""
    data, ext = types(hook, functions=bool(text))
    symbols = [Sym("", 2, bind=o.LOCAL, type=o.SECTION)]
    if text:
        symbols += [Sym("number", 2, 0, BY_POINTER * 8, o.LOCAL),
                    Sym("pointer", 2, BY_POINTER * 8, len(text) - BY_POINTER * 8, o.LOCAL)]  # fmt: skip
    table = len(symbols)
    symbols += [Sym("table", 3, 0, 32, type=o.OBJECT), Sym("prog", 1, 0, len(code)),
                Sym("_license", 4, 0, 4, type=o.OBJECT)]  # fmt: skip
    relocations = [Rel(slot * 8, table, o.R_64_64) for slot in writer.maps]
    relocations += [Rel(slot * 8, 0, o.R_64_32) for slot in writer.calls]
    relocations.sort(key=lambda item: item.offset)
    return build(Obj(
        (
            Sec(hook, code, flags=o.ALLOC_EXEC, align=8), Sec(".text", text, flags=o.ALLOC_EXEC, align=8),
            Sec(".maps", bytes(32), flags=o.ALLOC_WRITE, align=8),
            Sec("license", b"GPL\0", flags=o.ALLOC_WRITE), Sec(".BTF", data, align=4),
            Sec(".BTF.ext", ext, align=4), Sec(".rodata.pad", bytes(8), flags=o.ALLOC, align=8),
        ),
        tuple(symbols), ((1, tuple(relocations)),) if relocations else (),
    )).data  # fmt: skip


@contextmanager
def original(data: bytes, place: Place) -> Iterator[Chain]:
    chain = Chain(
        [(data, 0, {0: (0, "prog")})], max_entries=1, slots_map="not_in_it", prog_type=place.type,
        expected_attach_type=place.attach,
    )  # fmt: skip
    with chain:
        yield chain


def run(program: Program, packet: bytes) -> tuple[int, bytes] | str:
    try:
        done = program.test_run(packet)
    except BpfError as error:
        return f"errno {error.errno}"
    return done.signed, done.data_out


def options(rng: random.Random, place: Place) -> tuple[Spec, int, int | None, bool, bool]:
    """S and R, the index, the state to start in, whether it is the last, whether a next link is there."""
    spec, index = rng.choice(specs(place)), rng.choice((0, 0, 1, 7, 32))
    state = rng.choice((None, *place.saveable)) if index else None
    last = rng.random() < 0.15
    return spec, index, state, last, rng.random() < 0.7 and index < 32


def compare(data: bytes, place: Place, rng: random.Random, seen: Counter[str], where: str) -> None:
    """The program, patched in both ways, beside itself."""
    spec, index, state, last, marked = options(rng, place)
    request = Request(
        index=index, hook=place.name, success=spec.success.option, last=last,
        redirect=",".join(map(str, spec.redirect)) or None,
        saved=None if state is None else str(state),
    )  # fmt: skip
    for strategy in STRATEGIES:
        told = f"{where} {strategy} {spec} index {index} state {state} last {last} marked {marked}"
        try:
            made = transform_object(data, replace(request, strategy=strategy))
        except RefusedError as reason:
            if strategy != "inline":
                pytest.fail(f"{told}: {reason}")
            seen[f"refused: {str(reason).split(': ')[-1].split(' (')[0]}"] += 1
            continue
        seen[f"{made.strategy}, context in {(made.keep or 'nothing').split(' r10')[0]}"] += 1
        with original(data, place) as plain, ExitStack() as stack:
            try:
                link = stack.enter_context(Single(made))
            except LibbpfError as error:
                pytest.fail(f"{told}: {error}")
            if marked:
                link.mark()
            for packet in PACKETS:
                first = run(plain.head, packet)
                if isinstance(first, str):
                    assert run(link.program(state), packet) == first, told
                    continue
                code, done = link.run(state, packet)
                assert code == link.right(spec, state, first[0]), f"{told}: it returned {first[0]}"
                assert done.data_out == first[1], told
                TALLY.add("runs of random programs")
            ours, theirs = plain.map(0, "table"), link.map("table")
            assert dict(ours.items()) == dict(theirs.items()), told


@pytest.fixture(autouse=True)
def _one_cpu() -> Iterator[None]:
    """A program may ask on which CPU it runs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize("batch", range(BATCHES))
@pytest.mark.parametrize("place", [XDP, TC], ids=lambda place: place.name)
def test_random_programs(place: Place, batch: int) -> None:
    count = -(-COUNT // (2 * BATCHES))
    seen: Counter[str] = Counter()
    loaded = 0
    for number in range(count):
        name = f"{place.name} {SEED}.{batch}.{number}"
        rng = random.Random(name)
        data = generate(rng, place.name)
        try:
            with original(data, place):
                loaded += 1
        except LibbpfError as error:
            seen[f"not loaded: {str(error).split(': ')[-1][:60]}"] += 1
            continue
        compare(data, place, rng, seen, name)
    print(*(f"{n:5} {what}" for what, n in seen.most_common()), sep="\n")
    assert loaded * 2 > count, f"the generator writes too little that loads: {seen}"
