"""Killing an operation at each of its points, and judging what is left: by packets, by ``status``, by
the next command, and by what is there when the chain was unloaded.

A point is one stop around a system call that changes something. What others can see after call N
and before call N+1 is the same, so the stops before the calls, and the one after the last, are all
states that a kill can leave. The thorough run takes both sides of each, and the stop before the calls
that only make something behind a descriptor of the process itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from loader.kill.stage import Stage
from loader.kill.stamps import LOST, Stamps
from loader.kill.syscalls import Call
from loader.kill.tracer import Run, Stop

FRAMES = 4
OLD, NEW = ("A0", "A1", "A2"), ("B0", "B1", "B2")
NOTHING: Stamps = ()

Point = tuple[int, bool]
"""Number of the call, and whether it was made."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What is killed, and what a frame brings before and after it."""

    name: str
    words: tuple[str, ...]
    """``{A}`` and ``{B}`` are the manifests, ``{N}`` the folder of B, ``{load}`` the load's options."""
    before: Stamps
    after: Stamps
    prepare: tuple[tuple[str, ...], ...] = (("load", "{A}", "{load}"),)


LOAD_A, LOAD_B = ("load", "{A}", "{load}"), ("load", "{B}", "{load}")
RECREATE = ("recreate", "{B}", "--dev", "right")
REPLACE = ("replace", "edge", "1", "{N}/link1.o")
HEAD = ("replace", "edge", "0", "{N}/link0.o")
BYPASS, ROLLBACK, UNLOAD = ("bypass", "edge", "1"), ("rollback", "edge"), ("unload", "edge")

OPERATIONS = {
    one.name: one
    for one in (
        Operation("load", LOAD_A, NOTHING, OLD, prepare=()),
        Operation("replace", REPLACE, OLD, ("A0", "B1", "A2")),
        Operation("head", HEAD, OLD, ("B0", "A1", "A2")),
        Operation("bypass", BYPASS, OLD, ("A0", "A2")),
        Operation("recreate", RECREATE, OLD, NEW),
        # with a generation before, which this one frees
        Operation("again", RECREATE, ("A0", "B1", "A2"), NEW,
                  prepare=(LOAD_A, ("recreate", "{A}", "--dev", "right"), REPLACE)),
        Operation("rollback", ROLLBACK, NEW, OLD, prepare=(LOAD_A, RECREATE)),
        Operation("unload", UNLOAD, OLD, NOTHING),
    )
}  # fmt: skip

OTHERS = (RECREATE, UNLOAD, REPLACE, LOAD_B, ROLLBACK, BYPASS, HEAD)
"""The next command, in other runs than those that give the same one again."""


class Case:
    """One operation on one hook."""

    def __init__(self, stage: Stage, operation: Operation) -> None:
        self.stage = stage
        self.operation = operation
        self.calls: list[Call] = []
        self.trees: tuple[list[str], list[str]] = ([], [])
        """What is pinned before the operation, and after it."""
        self.injected: list[Point] = []
        self.frames = 0
        """Frames of the other sender."""
        self._border: Stamps = NOTHING
        self._names: dict[str, str] = {}

    def enumerate(self) -> None:
        """Run the operation once to its end, with frames sent at every stop; then its points are
        known."""
        self.prepare()
        seen: list[tuple[str, set[Stamps]]] = []
        before = self.stage.tree()

        def visit(stop: Stop) -> None:
            if not stop.call.private:
                seen.append((stop.call.text, self.stage.wire.send(FRAMES)))

        run = self.run(self.operation.words, visit=visit)
        assert run.code == 0, run.err
        self.calls = run.calls
        self.trees = (before, self.stage.tree())
        allowed = self.allowed(self.operation.before, self.operation.after)
        for text, found in seen:
            assert found <= allowed, f"{self.operation.name}, around {text}: {found}"
        assert self.stage.wire.send(FRAMES) == {self.operation.after}
        self.check_background(allowed)
        self.clean()

    def points(self, thorough: bool) -> list[Point]:
        """Where it is killed."""
        public = [n for n, call in enumerate(self.calls) if not call.private]
        if not thorough:
            return [*((n, False) for n in public), (public[-1], True)]
        before = [(n, False) for n in range(len(self.calls))]
        return sorted([*before, *((n, True) for n in public)])

    def kill(self, point: Point, following: tuple[str, ...]) -> None:
        """Kill it there, judge, go on with another command, judge, unload, judge."""
        operation, wire = self.operation, self.stage.wire
        where = f"{operation.name} killed {'after' if point[1] else 'before'} {self.text(point[0])}"
        self.prepare()
        run = self.run(operation.words, kill=point)
        assert run.code is None, f"{where}: it was not killed"
        assert self.same(run.calls), f"{where}: another run makes other calls"
        self.injected.append(point)
        found = wire.send(FRAMES)
        allowed = self.allowed(operation.before, operation.after)
        assert len(found) == 1, f"{where}: {found}"
        assert found <= {operation.before, operation.after}, f"{where}: {found}"
        self.check_background(allowed)
        (first,) = found
        self._border = first
        self.judge_status(where, first)

        run = self.run(following)
        where += f", then {' '.join(following)}"
        assert run.code in (0, 2, 5), f"{where}: {run.code} {run.err}"
        assert "Traceback" not in run.err, f"{where}: {run.err}"
        second = self.check_running(f"{where} ({run.code} {run.err.strip()})")
        self.check_background(self.allowed(first, second))
        if following == operation.words and first == operation.before != operation.after:
            # what was not done yet is done now; what was done is said to be done
            assert run.code == 0, f"{where}: {run.err}"
            assert second == operation.after, f"{where}: {second}"
        self.clean(where)

    def judge_status(self, where: str, runs: Stamps) -> None:
        """``status`` says what runs, and names what is unfinished exactly if something is."""
        status = self.stage.status()
        assert self.stage.expected(status) == runs, f"{where}: packets {runs}, {status}"
        tree = self.stage.tree()
        unfinished = [one["what"] for chain in status for one in chain["unfinished"]]
        for chain in status:
            assert chain["problems"] == [], f"{where}: {chain['problems']}"
            assert chain["working"] is None, f"{where}: {chain['working']}"
        whole = {self.operation.before: self.trees[0], self.operation.after: self.trees[1]}
        chains = [path for path in tree if path.count("/") > 3]
        if tree == whole[runs]:
            assert unfinished == [], f"{where}: {unfinished}"
        elif chains:  # folders above the chain's are nothing unfinished
            assert unfinished, f"{where}: status is silent about {set(tree) ^ set(whole[runs])}"
            text = self.stage.ok("status").out.splitlines()
            said = [line for line in text if line.startswith("  unfinished: ")]
            assert len(said) == len(unfinished), f"{where}: {text}"

    def check_running(self, where: str) -> Stamps:
        """A chain that is whole, or none: packets, status and pins agree. What frames bring."""
        status = self.stage.status()
        expected = self.stage.expected(status)
        found = self.stage.wire.send(FRAMES)
        assert found == {expected}, f"{where}: packets bring {found}, status says {expected}"
        for chain in status:
            assert chain["unfinished"] == [], f"{where}: {chain['unfinished']}"
            assert chain["problems"] == [], f"{where}: {chain['problems']}"
            assert chain["healthy"] == (expected != NOTHING), f"{where}: {chain}"
        if not status:
            assert self.stage.tree() == [], f"{where}: {self.stage.tree()}"
            assert self.stage.residue() == [], f"{where}: {self.stage.residue()}"
        return expected

    def expected(self) -> Stamps:
        """What a frame must bring if ``status`` is right."""
        return self.stage.expected(self.stage.status())

    def prepare(self) -> None:
        for words in self.operation.prepare:
            run = self.run(words)
            assert run.code == 0, f"{words}: {run.err}"
        assert self.stage.wire.send(FRAMES) == {self.operation.before}
        self.check_background(None)
        self._border = self.operation.before

    def clean(self, where: str = "") -> None:
        """Unload what runs, if anything does; nothing stays."""
        if self.stage.tree():
            run = self.run(UNLOAD)
            # folders above a chain's are nothing that could be unloaded; a load takes them along
            assert run.code == 0, f"{where}: unload: {run.err}"
        assert self.stage.tree() == [], where
        assert self.stage.residue() == [], where
        assert self.stage.wire.send(FRAMES) == {NOTHING}, where
        self.check_background(None)

    def run(self, words: tuple[str, ...], **how: Any) -> Run:
        return self.stage.run(*self.words(words), **how)

    def words(self, words: tuple[str, ...]) -> Iterator[str]:
        if not self._names:
            paths = {version: self.stage.chain(version) for version in "AB"}
            self._names = {"A": str(paths["A"]), "B": str(paths["B"]), "N": str(paths["B"].parent)}
        for word in words:
            if word == "{load}":
                yield from ("--dev", "right", *self.stage.hook.options)
            else:
                yield word.format(**self._names)

    def allowed(self, *stamps: Stamps) -> set[Stamps]:
        """What frames may bring while the hook goes from one of these to another."""
        lost = {LOST} if self.stage.hook.flushes and NOTHING in stamps else set()
        return {*stamps, *lost}

    def check_background(self, allowed: set[Stamps] | None) -> None:
        """What came since the last look of the other sender; None: whatever."""
        arrived = self.stage.wire.background()
        self.frames += len(arrived)
        if allowed is None:
            return
        strange = {stamps for _, stamps in arrived} - allowed - {self._border}
        assert not strange, f"{self.operation.name}: a frame brought {strange}, not {allowed}"
        numbers = [number for number, _ in arrived]
        if LOST not in allowed:
            gaps = [a for a, b in itertools.pairwise(numbers) if b != a + 1]
            assert not gaps, f"{self.operation.name}: frames behind number {gaps} did not arrive"

    def text(self, number: int) -> str:
        return f"call {number} ({self.calls[number].text})"

    def same(self, calls: list[Call]) -> bool:
        """Whether another run made the calls of the one that was enumerated, as far as it came."""
        return [_kind(one) for one in calls] == [_kind(one) for one in self.calls[: len(calls)]]


def _kind(call: Call) -> str:
    """The call without what differs from run to run: the maps' descriptors."""
    return call.text


def kill_everywhere(stage: Stage, operation: Operation, *, thorough: bool) -> Case:
    """Kill an operation at all its points. What follows is the same command and others in turn."""
    case = Case(stage, operation)
    with stage.wire.traffic():
        case.enumerate()
        others = itertools.cycle(OTHERS)
        for number, point in enumerate(case.points(thorough)):
            case.kill(point, next(others) if number % 2 else operation.words)
    assert case.frames > len(case.injected), "the other sender sent next to nothing"
    assert set(case.injected) == set(case.points(thorough)), "a point was left out"
    stage.check_nothing_left()
    return case
