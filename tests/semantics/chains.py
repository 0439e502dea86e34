"""Chains of programs whose codes a map decides, run in the kernel and judged by the reference.

The sets S and R are written down here a second time (``Codes``), so that neither the transformer's
own sets nor its ``Link.classify`` decide what is right: only ``verify.reference`` does.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from bpfchain.loader.maps import Map
from bpfchain.loader.programs import Program, TestRun, load_raw
from bpfchain.loader.uapi import BPF_F_XDP_HAS_FRAGS, MapType, ProgType
from bpfchain.transform.request import Patched, Request
from bpfchain.transform.transform import transform_object
from bpfchain.verify.reference import chain_result, low32, step
from semantics.tally import TALLY
from support.bpfcode import U32, U64, returns
from support.kernel import Chain, ChainLink

OBJECTS = Path(__file__).resolve().parents[2] / "corpus" / "programs" / "el"
KEY = bytes(4)
S32 = struct.Struct("=i")
STRATEGIES = ("inline", "subprog")
LINKS_MAX = 33
"""Of one chain (DESIGN section 2: slot = state x 33 + index)."""


@functools.cache
def corpus(name: str) -> bytes:
    """The corpus object ``name`` of this machine's byte order."""
    return (OBJECTS / f"{name}.o").read_bytes()


@dataclass(frozen=True, slots=True)
class Codes:
    """A set of codes and how ``--success`` is told of it (``option`` None: by the default)."""

    kind: str
    codes: tuple[int, ...] = ()
    given: bool = True

    def __contains__(self, code: object) -> bool:
        if self.kind == "any":
            return True
        if self.kind == "range":
            return isinstance(code, int) and self.codes[0] <= code <= self.codes[1]
        return (code in self.codes) is (self.kind == "list")

    @property
    def option(self) -> str | None:
        if not self.given:
            return None
        listed = ",".join(map(str, self.codes))
        if self.kind == "range":
            return "{}..{}".format(*self.codes)
        return {"any": "any", "not": f"not:{listed}", "list": listed or "none"}[self.kind]

    def __str__(self) -> str:
        return self.option if self.option is not None else "default"


def listed(*codes: int) -> Codes:
    return Codes("list", codes)


def between(low: int, high: int) -> Codes:
    return Codes("range", (low, high))


def excluding(*codes: int) -> Codes:
    return Codes("not", codes)


ANY = Codes("any")


class Spec(NamedTuple):
    """S and R of one link, as the reference takes them."""

    success: Codes
    redirect: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"S={self.success} R={','.join(map(str, self.redirect)) or 'none'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A hook, and the corpus program there that returns what a map says.

    ``legal``: codes that S and R may name; ``saveable``: those of them that slots can remember.
    ``driven``: codes to let the program return. ``checked``: the verifier bounds what it returns.
    ``data``, ``ctx``: what a test run is given; ``runs``: whether there is one for the type.
    """

    name: str
    obj: str
    program: str
    type: ProgType
    attach: int
    default: Codes
    legal: tuple[int, ...]
    driven: tuple[int, ...]
    saveable: tuple[int, ...]
    checked: bool = False
    data: bytes = bytes(64)
    ctx: bytes | None = None
    runs: bool = True

    def request(self, index: int, spec: Spec, **options: Any) -> Request:
        redirect = ",".join(map(str, spec.redirect)) or None
        return Request(
            index=index, program=self.program, hook=self.name, success=spec.success.option,
            redirect=redirect, **options,
        )  # fmt: skip

    def test_run(self, program: Program) -> TestRun:
        return program.test_run(self.data, self.ctx)


@functools.lru_cache(8192)
def patched(obj: str, request: Request) -> Patched:
    """``transform_object`` of a corpus object (cached: it is deterministic)."""
    return transform_object(corpus(obj), request)


def options_of(strategy: str, mode: str, saved: Sequence[int], last: bool) -> dict[str, Any]:
    """The options of a request that do not come from S and R."""
    slots = mode == "slots"
    return {
        "strategy": strategy,
        "saved_code": mode,
        "saved": ",".join(map(str, saved)) or None if slots else None,
        "last": last,
        "allow": frozenset(() if slots else ("nested-runs",)),
    }


def chain_link(made: Patched) -> ChainLink:
    """For ``support.kernel.Chain``: the entry for state none first, whatever the codes are."""
    assert made.entries[0].state is None
    return ChainLink(
        made.data, made.link.index, {n: (e.slot, e.name) for n, e in enumerate(made.entries)}
    )


def load_chain(place: Place, made: Sequence[Patched], mode: str = "slots") -> Chain:
    """The links loaded, their slots filled; other programs of their objects are left out."""
    return Chain(
        [chain_link(one) for one in made],
        max_entries=made[0].link.hook.slots,
        prog_type=place.type,
        expected_attach_type=place.attach,
        programs={entry.name for one in made for entry in one.entries},
        share=("bpfchain_saved",) if mode == "map" else (),
    )


def marker_code(marks: Map, number: int, code: int) -> bytes:
    """``marks[number] += 1; return code``."""
    return (
        bytes.fromhex("18110000") + S32.pack(marks.fileno()) + bytes(8)  # r1 = marks
        + bytes.fromhex("620afcff") + S32.pack(number)  # *(u32 *)(r10 - 4) = number
        + bytes.fromhex("bfa2000000000000 07020000fcffffff")  # r2 = r10 - 4
        + bytes.fromhex("8500000001000000 1500020000000000")  # look up; not there: goto +2
        + bytes.fromhex("b701000001000000 db10000000000000")  # lock *(u64 *)r0 += 1
        + returns(code)
    )  # fmt: skip


class Markers:
    """Programs that stand in the slots of a next link: each counts its runs by itself."""

    ROOM = 64

    def __init__(self, type: ProgType, attach: int, flags: int = 0) -> None:
        self._stack = ExitStack()
        self._type, self._attach, self._flags = type, attach, flags
        self._marks = self._stack.enter_context(Map.create(MapType.ARRAY, 4, 8, self.ROOM))
        self._seen = [0] * self.ROOM

    def make(self, number: int, code: int) -> Program:
        """Marker ``number``, which returns ``code``; closed with the others."""
        insns = marker_code(self._marks, number, code)
        program = load_raw(self._type, insns, expected_attach_type=self._attach, flags=self._flags)
        return self._stack.enter_context(program)

    def ran(self, count: int) -> list[int]:
        """Which of the first ``count`` markers ran since the last question, once per run."""
        found = []
        for number in range(count):
            value = self._marks.lookup(U32.pack(number))
            assert value is not None
            (now,) = U64.unpack(value)
            found += [number] * (now - self._seen[number])
            self._seen[number] = now
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._stack.close()


@dataclass
class Driven:
    """A loaded chain of the place's program, each link with S, R and a strategy.

    The states that reach a link are those of the R before it and no others.
    """

    place: Place
    specs: Sequence[Spec]
    strategies: Sequence[str]
    mode: str = "slots"
    last: bool = False
    made: list[Patched] = field(init=False)

    def __post_init__(self) -> None:
        saved: set[int] = set()
        self.made = []
        end = len(self.specs) - 1
        for index, (spec, strategy) in enumerate(zip(self.specs, self.strategies, strict=True)):
            options = options_of(strategy, self.mode, sorted(saved), self.last and index == end)
            self.made.append(patched(self.place.obj, self.place.request(index, spec, **options)))
            saved |= set(spec.redirect)
        self.chain = load_chain(self.place, self.made, self.mode)
        links = range(len(self.specs))
        self._verdicts = [self.chain.map(index, "verdict") for index in links]
        self._runs = [self.chain.map(index, "runs") for index in links]
        self._codes: list[int | None] = [None] * len(self.specs)
        self._seen = [0] * len(self.specs)

    def set(self, codes: Sequence[int]) -> None:
        """Let the links return these codes (the first of them, where there are fewer)."""
        for index, code in enumerate(codes):
            if self._codes[index] != code:
                self._verdicts[index].update(KEY, S32.pack(code))
                self._codes[index] = code

    def ran(self) -> list[int]:
        """How often each link ran since the last question."""
        now = []
        for runs in self._runs:
            value = runs.lookup(KEY)
            assert value is not None
            now.append(U64.unpack(value)[0])
        before, self._seen = self._seen, now
        return [a - b for a, b in zip(now, before, strict=True)]

    def check(self, codes: Sequence[int]) -> None:
        """One run: the result and which links ran are the reference's."""
        self.set(codes)
        result = self.place.test_run(self.chain.head).signed
        ran = self.ran()
        expected, count = chain_result(self.specs, lambda index: codes[index])
        wanted = [1] * count + [0] * (len(self.specs) - count)
        TALLY.add("chain runs")
        assert (result, ran) == (expected, wanted), self.tell(codes, result, ran, expected, wanted)

    def tell(self, codes: Sequence[int], *seen: object) -> str:
        links = "; ".join(
            f"{spec} {made.strategy}" for spec, made in zip(self.specs, self.made, strict=True)
        )
        return (
            f"{self.place.name}, {self.mode}{', last' if self.last else ''}: {links}: "
            "codes {}: result {}, runs {}; right: {}, {}".format(codes, *seen)
        )

    def check_all(self, codes: Sequence[int]) -> None:
        """Every sequence of codes that tells chains apart: what a link that is not reached would
        have returned does not matter (that it is not reached is checked)."""
        for vector in self.vectors(codes, (), None):
            self.check(vector)

    def vectors(
        self, codes: Sequence[int], before: tuple[int, ...], saved: int | None
    ) -> Iterator[tuple[int, ...]]:
        for code in codes:
            vector = (*before, code)
            goes_on, state = step(self.specs[len(before)], saved, code)
            if goes_on and len(vector) < len(self.specs):
                yield from self.vectors(codes, vector, state)
            else:
                yield vector

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.chain.close()


MARKED = 5000
"""What a marker in place of the next link returns, plus its state's place in ``Single.states``."""


class Single:
    """One loaded link of any object; the slots behind it are empty, or hold a marker each.

    ``others``: further programs of the object to load (its own tail calls' targets).
    """

    def __init__(self, made: Patched, others: Sequence[str] = ()) -> None:
        hook = made.link.hook
        self.made = made
        self.entries = {entry.state: entry for entry in made.entries}
        self.states: list[int | None] = [
            None, *(code.value for code in hook.codes if code.state is not None)
        ]  # fmt: skip
        self._checked = hook.returns is not None
        self._type, self._attach = ProgType(hook.prog_type_id), hook.attach_type_id
        self._markers = Markers(self._type, self._attach, BPF_F_XDP_HAS_FRAGS if made.frags else 0)
        self._marked = False
        try:
            self.chain = Chain(
                [chain_link(made)],
                max_entries=hook.slots,
                slots_map=made.link.slots_map,
                prog_type=self._type,
                expected_attach_type=self._attach,
                programs={*others, *(entry.name for entry in made.entries)},
                share=("bpfchain_saved",)
                if made.link.mode == "map" and made.strategy != "none"
                else (),
            )
        except BaseException:
            self._markers.__exit__(None, None, None)
            raise

    def program(self, state: int | None = None) -> Program:
        """The entry program for ``state``."""
        return self.chain.program(self.made.link.index, self.entries[state].name)

    def map(self, name: str) -> Map:
        """A map of the object; a data section's by the end of its name (``.data``)."""
        index = self.made.link.index
        (found,) = (n for n in self.chain.maps(index) if n == name or n.endswith(name))
        return self.chain.map(index, found)

    def mark(self) -> None:
        """Fill the next link's slot of every state."""
        for number, state in enumerate(self.states):
            marker = self._markers.make(number, 1 if self._checked else MARKED + number)
            self.chain.slots.set_fd(
                self.made.link.hook.slot(state, self.made.link.index + 1), marker.fileno()
            )
        self._marked = True

    def run(
        self, state: int | None, data: bytes, ctx: bytes | None = None
    ) -> tuple[tuple[int, list[int]], TestRun]:
        """One run of an entry: its code and the markers that ran; and all that the run gave."""
        done = self.program(state).test_run(data, ctx)
        return (done.signed, self._markers.ran(len(self.states))), done

    def right(self, spec: Spec, state: int | None, code: int) -> tuple[int, list[int]]:
        """What the reference says ``run`` must give where the program itself returns ``code``."""
        goes_on, then = step(spec, state, code)
        if goes_on and self._marked and not self.made.link.last:
            number = self.states.index(then)
            return (1 if self._checked else MARKED + number), [number]
        return (then if goes_on and then is not None else low32(code)), []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.chain.close()
        self._markers.__exit__(kind, error, trace)
