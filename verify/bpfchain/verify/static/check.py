"""The static check of one link: OUT is IN and the patch, shown from both files alone.

Reads both objects, aligns their instructions, accounts for everything else, and proves the added
instructions. Nothing here knows how the patcher works; what OUT says of itself tells only what was
intended (``intent``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from bpfchain.transform.errors import BpfchainError, InconclusiveError, RefusedError, UsageError
from bpfchain.transform.policy import hook_of_section
from bpfchain.verify.result import Finding, Outcome, Residue, StaticResult, worst
from bpfchain.verify.static.align import Aligned, align
from bpfchain.verify.static.btf import Btf, read_btf
from bpfchain.verify.static.btf_ext import BtfExt, read_btf_ext
from bpfchain.verify.static.insns import FRAME, SLOT
from bpfchain.verify.static.instructions import check_instructions
from bpfchain.verify.static.intent import SECTION, Intent, read_intents
from bpfchain.verify.static.maps import check_maps
from bpfchain.verify.static.model import Added, Obj, Unreadable, differs, undecided
from bpfchain.verify.static.pair import Pair, match_sections, match_symbols
from bpfchain.verify.static.read import read_object
from bpfchain.verify.static.records import check_records
from bpfchain.verify.static.references import check_references
from bpfchain.verify.static.relocations import check_relocations
from bpfchain.verify.static.reserved import check_reserved
from bpfchain.verify.static.sections import check_sections
from bpfchain.verify.static.symbols import check_symbols
from bpfchain.verify.static.types import check_types

__all__ = ["check_link", "link_intent"]

_MOVE, _STORE = 0xBF, 0x7B
"""``rX = rY`` and ``*(u64 *)(rX + off) = rY`` (RFC 9669)."""
_OWN = " (the program's own)"
_ACCOUNTS = (
    check_sections, check_symbols, check_relocations, check_maps, check_types, check_records,
    check_reserved, check_references,
)  # fmt: skip


def check_link(
    original: bytes, patched: bytes, *, program: str | None = None, lief: bool = False
) -> tuple[Intent, StaticResult]:
    """Check one link of ``patched`` against the object that it was made of.

    ``program`` names the link where several were made of ``original``; ``lief`` reads both files a
    second time, through LIEF. Raises InconclusiveError where a file cannot be read, or what OUT says
    of itself cannot; RefusedError where OUT holds no link, UsageError where ``program`` names none.
    """
    before, after = _read(original, "IN"), _read(patched, "OUT")
    earlier, told = _intents(before, after)
    intent = _choose(earlier, told, program)
    findings = list(_history(before, after, earlier, told, intent, original))
    readers = ["pyelftools"]
    if lief:
        from bpfchain.verify.static import read_lief

        for obj, data, file in ((before, original, "in"), (after, patched, "out")):
            try:
                findings += read_lief.disagreements(obj, read_lief.read_object(data), file)
            except Unreadable as problem:
                findings.append(undecided("readers", f"{file}: {problem}"))
        readers.append("lief")
    counted: dict[str, int] = {}
    residue: tuple[Residue, ...] = ()
    try:
        aligned = align(before, after, intent)
        findings += aligned.alignment.findings
        if aligned.program is not None:
            pair = _pair(before, after, intent, aligned)
            findings += _account(pair)
            findings += _hints(pair, aligned)
            code = check_instructions(
                before, after, intent, aligned, btf=pair.btf[0], ext=pair.ext[0]
            )
            findings += code.findings
            residue = code.residue
            counted = {**pair.counted, **code.counted}
    except Unreadable as problem:
        findings.append(undecided("read", str(problem)))
    except Exception as problem:  # a damaged object must not pass, nor end the command
        findings.append(undecided("checker", f"the checker stumbled: {problem!r}"))
    outcome = max(worst(finding.outcome for finding in findings), Outcome.EQUAL)
    return intent, StaticResult(
        outcome=outcome, findings=tuple(findings), readers=tuple(readers), counted=counted,
        residue=residue,
    )  # fmt: skip


def link_intent(original: bytes, patched: bytes, *, program: str | None = None) -> Intent:
    """What OUT says that the link is, as ``check_link`` reads it, and nothing checked."""
    earlier, told = _intents(_read(original, "IN"), _read(patched, "OUT"))
    return _choose(earlier, told, program)


def _intents(before: Obj, after: Obj) -> tuple[tuple[Intent, ...], tuple[Intent, ...]]:
    try:
        return read_intents(before), read_intents(after)
    except Unreadable as problem:
        raise InconclusiveError(
            f"OUT: {problem}", "it was damaged, or made by another version"
        ) from None


def _read(data: bytes, file: str) -> Obj:
    try:
        return read_object(data)
    except Unreadable as problem:
        raise InconclusiveError(f"{file}: {problem}") from None


def _choose(earlier: tuple[Intent, ...], told: tuple[Intent, ...], program: str | None) -> Intent:
    """The link to check: the one that OUT holds and IN does not."""
    if not told:
        raise RefusedError(
            f"OUT holds no link: it has no section {SECTION}",
            "it was not made by bpfchain-transform, or `bpftool gen object` dropped the section",
        )
    before = {intent.program for intent in earlier}
    new = [intent for intent in told if intent.program not in before]
    if program is not None:
        for intent in told:
            if intent.program == program:
                return intent
        names = ", ".join(intent.program for intent in told)
        raise UsageError(f"OUT holds no link {program}", f"its links: {names}")
    if len(new) == 1:
        return new[0]
    if not new:
        raise UsageError(
            "every link of OUT is in IN already", "give the object before it was patched"
        )
    names = ", ".join(intent.program for intent in new)
    raise UsageError(
        f"OUT holds {len(new)} links that IN does not ({names}): each has its own original",
        "give the object that holds all but the last of them",
    )


def _history(
    before: Obj,
    after: Obj,
    earlier: tuple[Intent, ...],
    told: tuple[Intent, ...],
    intent: Intent,
    original: bytes,
) -> Iterable[Finding]:
    """What OUT says of its links is what IN says, and this link behind it."""
    if told[:-1] != earlier or told[-1] != intent:
        yield differs(
            "provenance",
            f"section {SECTION}: the links of OUT are not those of IN and {intent.program}",
            "each link is checked against the object it was made of",
        )
    was, now = before.named(SECTION), after.named(SECTION)
    if was is not None and now is not None and not now.data.startswith(was.data):
        yield differs("provenance", f"section {SECTION}: what IN says of earlier links changed")
    digest = hashlib.sha256(original).hexdigest()
    if digest != intent.input_sha256:
        yield differs(
            "input",
            f"IN has sha256 {digest[:12]}…, and OUT was made of {intent.input_sha256[:12]}…",
            "compare with the object that was patched",
        )


def _pair(before: Obj, after: Obj, intent: Intent, aligned: Aligned) -> Pair:
    assert aligned.program is not None
    sections = match_sections(before, after)
    symbols = match_symbols(before, after, sections)
    pair = Pair(before, after, intent, aligned.alignment, aligned.program, sections, symbols)
    (types, records), (new_types, new_records) = _types(before, "IN"), _types(after, "OUT")
    pair.btf, pair.ext = (types, new_types), (records, new_records)
    return pair


def _types(obj: Obj, file: str) -> tuple[Btf | None, BtfExt | None]:
    types, records = obj.named(".BTF"), obj.named(".BTF.ext")
    try:
        if types is None or not types.data:
            if records is not None and records.data:
                raise Unreadable("section .BTF.ext without types")
            return None, None
        btf = read_btf(types.data, obj.order)
        if records is None or not records.data:
            return btf, None
        return btf, read_btf_ext(records.data, obj.order, btf)
    except Unreadable as problem:
        raise Unreadable(f"{file}: {problem}") from None


def _account(pair: Pair) -> list[Finding]:
    """Run every account; one that cannot read what it needs leaves a doubt and not a gap."""
    pair.counted["instructions"] = _covered(pair)
    for account in _ACCOUNTS:
        try:
            account(pair)
        except Unreadable as problem:
            pair.doubt(account.__name__.removeprefix("check_"), str(problem))
    return pair.findings


def _covered(pair: Pair) -> int:
    """Every instruction of IN has its places, every one of OUT its origin; returns how many of IN."""
    copies = len(pair.intent.states) if pair.intent.strategy == "inline" else 1
    program, places, total = pair.program, pair.alignment.places, 0
    for section in pair.before.executable:
        count = len(pair.before.insns(section.index))
        total += count
        for slot in range(count):
            own = section.index == program.section and program.start <= slot < program.end
            found = places.get((section.index, slot), ())
            if len(found) != (copies if own else 1):
                where = pair.where(section.index, slot * SLOT, of=pair.before)
                pair.say("instruction", f"IN's {where} is found {len(found)} times in OUT")
                break
    for section in pair.after.executable:
        origins = pair.alignment.origins.get(section.index, ())
        if len(origins) != len(pair.after.insns(section.index)) or None in origins:
            pair.say(
                "instruction", f"section {section.name}: not every instruction is accounted for"
            )
    return total


def _kept(pair: Pair, aligned: Aligned) -> set[str]:
    """Where the entries' first instructions put the context, as ``.bpfchain`` words it."""
    found: set[str] = set()
    for entry in aligned.entries:
        origins = pair.alignment.origins.get(entry.section, ())
        if entry.start < len(origins) and isinstance(origins[entry.start], Added):
            insn = pair.after.insns(entry.section)[entry.start]
            if insn.code == _MOVE and insn.src == 1:
                found.add(f"r{insn.dst}")
            elif insn.code == _STORE and (insn.dst, insn.src) == (FRAME, 1):
                found.add(f"stack slot r10{insn.off:+d}")
    return found


def _hints(pair: Pair, aligned: Aligned) -> Iterable[Finding]:
    """What OUT says beyond the intention must be so too: who reads it believes it."""
    intent, program = pair.intent, pair.program
    name = pair.before.sections[program.section].name
    try:
        hook_of_section(name, intent.hook.name, what=f"program {program.name}")
    except BpfchainError as problem:
        yield differs("hook", problem.message)
    length = program.end - program.start
    added = sum(
        isinstance(origin, Added)
        for slots in aligned.alignment.origins.values()
        for origin in slots
    )
    front = 0
    if aligned.entries and aligned.entries[0].inline:
        front = aligned.entries[0].body - aligned.entries[0].start
    for key, told, real in (("body", intent.body, length), ("front", intent.front, front)):
        if told != real:
            yield differs("provenance", f"section {SECTION}: {key}={told}, and it is {real}")
    kept = _kept(pair, aligned)
    if intent.keep is None:
        right = not kept
    else:  # where the body has the context anyway there is no instruction to look at
        own = intent.keep.endswith(_OWN)
        right = not kept if own else kept == {intent.keep}
    if not right:
        found = ", ".join(sorted(kept)) or "nowhere"
        yield differs(
            "provenance",
            f"section {SECTION}: keep={intent.keep or ''}, and the context is put {found}",
        )
    if intent.strategy == "none" and added:
        yield differs(
            "provenance", f"section {SECTION}: strategy=none, and {added} slots are added"
        )
