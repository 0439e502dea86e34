"""Whether the stack slot that keeps the context is out of reach of everything that the program does."""

from __future__ import annotations

from bpfchain.verify.result import Finding, Outcome
from bpfchain.verify.static.align import Entry, finding_at
from bpfchain.verify.static.facts import Facts
from bpfchain.verify.static.insns import MAX_STACK
from bpfchain.verify.static.model import Function, Obj

__all__ = ["check_slots"]


def check_slots(
    before: Obj, program: Function, after: Obj, entry: Entry, cells: tuple[int, ...], facts: Facts
) -> list[Finding]:
    """``cells`` are offsets from r10 where added code keeps 8 bytes across the body.

    A write over one would lose the context; a read (a map key that is longer than what was
    initialised) would see a kernel pointer.
    """
    findings: list[Finding] = []
    for cell in cells:
        if cell % 8 or not -MAX_STACK <= cell <= -8:
            findings.append(
                finding_at(
                    after, entry.section, entry.start, "context-slot",
                    f"the slot r10{cell:+d} is not an aligned place of the stack",
                )
            )  # fmt: skip
        if facts.lowest >= cell + 8:
            continue
        section, slot = facts.lowest_at or (program.section, program.start)
        bounded = facts.lowest >= -MAX_STACK
        reached = f"to r10{facts.lowest:+d}" if bounded else "to where it is not bounded"
        findings.append(
            finding_at(
                before, section, slot, "context-slot",
                f"the context is kept at r10{cell:+d}, and the program reaches down {reached}",
                file="in", outcome=Outcome.NOT_EQUAL if bounded else Outcome.INCONCLUSIVE,
            )
        )  # fmt: skip
    return findings
