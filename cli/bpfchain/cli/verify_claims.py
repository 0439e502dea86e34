"""Whether a manifest tells the truth about its links, beyond what ``_agree`` compares of the results.

``validate_complete`` decides by the manifest alone whether every state has an entry and whether a link
can redirect behind another that did; a manifest that was edited must not get through with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bpfchain.transform.errors import RefusedError

if TYPE_CHECKING:
    from bpfchain.transform.manifest import Manifest
    from bpfchain.transform.manifest_link import LinkRecord
    from bpfchain.transform.request import MapUse
    from bpfchain.verify.prove import Subject
    from bpfchain.verify.static.intent import Intent

__all__ = ["check_claims"]


def check_claims(name: str, manifest: Manifest, subjects: Sequence[Subject]) -> None:
    """Compare each record with what OUT says of itself and with what IN can do.

    Raises RefusedError for the first that differs; objects that cannot be read are left to the proof.
    """
    for record, subject in zip(manifest.links, subjects, strict=True):
        intent = _intent(subject)
        if intent is None:
            continue
        told = {
            "saved": (_names(intent, intent.saved), _names(intent, record.link.saved)),
            "saved-code mode": (intent.mode, manifest.saved_code),
            "last": (_word(intent.last), _word(record.link.last)),
            "slots map": (intent.slots_map, manifest.slots_map),
            "entries": (
                ", ".join(intent.entries.values()), ", ".join(e.name for e in record.entries),
            ),
        }  # fmt: skip
        for what, (object_says, manifest_says) in (told | _abilities(record, subject)).items():
            if object_says != manifest_says:
                raise RefusedError(
                    f"{subject.output_name}: says {what} {object_says}, {name} says {manifest_says}",
                    "one of them is of another build: build the chain again",
                )


def _intent(subject: Subject) -> Intent | None:
    from bpfchain.verify.static.intent import read_intents
    from bpfchain.verify.static.model import Unreadable
    from bpfchain.verify.static.read import read_object

    try:
        intents = read_intents(read_object(subject.patched))
    except Unreadable:
        return None
    return next((intent for intent in intents if intent.program == subject.program), None)


def _abilities(record: LinkRecord, subject: Subject) -> dict[str, tuple[str, str]]:
    """What the chain's rules ask of the original program: redirects, tail calls, frags."""
    from bpfchain.transform.elf_read import read_object
    from bpfchain.transform.errors import BpfchainError
    from bpfchain.transform.program import code_of, find_program, reach_of
    from bpfchain.transform.report import maps_of, redirects_of
    from bpfchain.transform.subject import read_types

    try:
        obj = read_object(subject.original)
        btf, ext = read_types(obj)
        program = find_program(obj, record.program, frozenset())
        reach = reach_of(obj, program, code_of(obj, program, btf, ext))
        out = read_object(subject.patched)
        maps = maps_of(out, read_types(out)[0])
    except BpfchainError:
        return {}
    section = program.section.name
    makes = reach.own_tail_calls or reach.callee_tail_calls
    return {
        "redirects": (
            ", ".join(redirects_of(record.link.hook, reach)) or "none",
            ", ".join(record.redirects) or "none",
        ),
        "tail calls of its own": (_word(makes), _word(record.tail_calls)),
        "section": (section, record.section),
        "frags": (
            _word(section.removeprefix("?").startswith("xdp.frags")), _word(record.frags),
        ),
        "maps": (_maps(maps), _maps(record.maps)),
    }  # fmt: skip


def _maps(uses: Sequence[MapUse]) -> str:
    told = (
        f"{use.name} ({use.type}, {use.key_size}, {use.value_size}, {use.max_entries})"
        for use in uses
    )
    return ", ".join(told) or "none"


def _names(intent: Intent, codes: Sequence[int]) -> str:
    return ", ".join(intent.hook.name_of(code) for code in codes) or "none"


def _word(value: object) -> str:
    return "yes" if value else "no"
