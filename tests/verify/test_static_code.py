"""The instruction half of the static checker: sound patches are proved, each changed one is caught.

Faults are made in the bytes of the patched object, instruction by instruction. The analyses under it
(what is known at exits, how far the stack is reached, which bytes are read unwritten) are held against
runs of generated programs in a tiny interpreter.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfchain.transform import isa
from bpfchain.transform.errors import BpfchainError
from bpfchain.transform.policy import hook_of_section
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from bpfchain.verify.reference import step
from bpfchain.verify.result import Finding, Outcome
from bpfchain.verify.static.added import Kept
from bpfchain.verify.static.align import Aligned, Entry, align
from bpfchain.verify.static.btf import Btf, read_btf
from bpfchain.verify.static.btf_ext import BtfExt, read_btf_ext
from bpfchain.verify.static.facts import Facts, analyse
from bpfchain.verify.static.insns import Insn, decode, encode, text_of
from bpfchain.verify.static.instructions import CodeResult, check_instructions
from bpfchain.verify.static.intent import Intent, read_intents
from bpfchain.verify.static.model import Added, Function, Obj, Section, Symbol
from bpfchain.verify.static.reach import check_slots
from bpfchain.verify.static.read import read_object
from bpfchain.verify.static.values import CONTEXT, Num
from support import tinybpf

CORPUS = Path(__file__).parents[2] / "corpus" / "programs"
INDEX = {
    entry["name"]: entry for entry in tomllib.loads((CORPUS / "index.toml").read_text())["object"]
}
RISKS = frozenset({"nested-runs", "redirect-hazard"})
WAYS: tuple[dict[str, Any], ...] = (
    {"index": 0},
    {"index": 3, "last": True},
    {"index": 2, "redirect": "?", "saved": "?"},
    {"index": 4, "saved": "?", "last": True, "pin": True},
    {"index": 1, "success": "any", "redirect": "?", "saved": "?"},
    {"index": 0, "redirect": "?", "saved_code": "map"},
    {"index": 2, "redirect": "?", "saved_code": "map"},
    {"index": 32, "redirect": "?", "saved": "?"},
)
"""``?`` stands for the hook's first and last code that can be saved."""


# proving


def types_of(obj: Obj) -> tuple[Btf | None, BtfExt | None]:
    types, extra = obj.named(".BTF"), obj.named(".BTF.ext")
    if types is None or not types.data:
        return None, None
    btf = read_btf(types.data, obj.order)
    return btf, read_btf_ext(extra.data, obj.order, btf) if extra and extra.data else None


@dataclass(frozen=True)
class Proof:
    """A patched object and what the checker says of it."""

    before: Obj
    after: Obj
    intent: Intent
    aligned: Aligned
    code: CodeResult

    @property
    def findings(self) -> tuple[Finding, ...]:
        return (*self.aligned.alignment.findings, *self.code.findings)

    @property
    def rules(self) -> set[str]:
        return {finding.rule for finding in self.findings}


def prove(before: Obj, after: Obj, intent: Intent) -> Proof:
    aligned = align(before, after, intent)
    btf, ext = types_of(before)
    code = check_instructions(before, after, intent, aligned, btf=btf, ext=ext)
    return Proof(before, after, intent, aligned, code)


def told(proof: Proof) -> str:
    return "; ".join(f"{f.rule} at {f.place}: {f.message}" for f in proof.findings)


def requests(
    sections: dict[str, list[str]], hook: str | None, ways: tuple[dict[str, Any], ...] = WAYS
) -> Iterator[Request]:
    for section, programs in sections.items():
        for program in programs if section != ".text" else ():
            try:
                known = hook_of_section(section, hook, what=program)
            except BpfchainError:
                continue  # not a link on its own
            codes = [c.value for c in known.codes if c.state is not None and c.value in known.legal]
            some = f"{codes[0]},{codes[-1]}"
            for way in ways:
                filled: dict[str, Any] = {k: some if v == "?" else v for k, v in way.items()}
                for strategy in ("inline", "subprog"):
                    yield Request(
                        program=program, hook=hook, strategy=strategy, allow=RISKS, **filled
                    )


def proofs(data: bytes, wanted: Iterator[Request]) -> Iterator[tuple[Request, Proof]]:
    before = read_object(data)
    for request in wanted:
        try:
            out = transform_object(data, request).data
        except BpfchainError:
            continue
        after = read_object(out)
        yield request, prove(before, after, read_intents(after)[-1])


@pytest.mark.parametrize("order", ["el", "eb"])
@pytest.mark.parametrize("name", INDEX)
def test_every_object_is_proved(name: str, order: str) -> None:
    entry = INDEX[name]
    count = 0
    data = (CORPUS / order / f"{name}.o").read_bytes()
    ways = WAYS if order == "el" else WAYS[2::3]
    for request, proof in proofs(data, requests(entry["sections"], entry.get("hook"), ways)):
        assert not proof.findings, f"{request}: {told(proof)}"
        assert proof.code.counted["paths proved"] > 0
        assert bool(proof.code.residue) == (name == "padded_key")
        count += 1
    assert count >= (entry["expect"] == "link"), "nothing was patched"


@pytest.mark.long
@pytest.mark.real
@pytest.mark.timeout(900)
def test_every_real_object_is_proved() -> None:
    from support.real import real_objects

    count = 0
    for one in {one.sha256: one for one in real_objects()}.values():
        obj = read_object(one.data)
        sections = {
            obj.sections[index].name: [function.name for function in functions]
            for index, functions in obj.functions.items()
        }
        hook = "tc" if {"filter", "loadbalancer"} & set(sections) else None
        for request, proof in proofs(one.data, requests(sections, hook, WAYS[::6])):
            assert not proof.findings, f"{one.label}, {request}: {told(proof)}"
            assert not proof.code.residue, f"{one.label}: {proof.code.residue}"
            count += 1
    assert count > 1000


def test_padded_key_is_told() -> None:
    """Trial 4 of the design: three bytes of a key that nobody writes."""
    _, proof = next(proofs((CORPUS / "el/padded_key.o").read_bytes(), iter([Request(index=1)])))
    (read,) = proof.code.residue
    assert (read.offset, read.size, read.how) == (-3, 3, "bpf_map_lookup_elem")
    program = proof.aligned.program
    assert program is not None
    assert proof.before.insns(program.section)[read.place.instruction].imm == 1  # the lookup


# sabotage


class Patched:
    """A patched object of the corpus whose instructions can be changed."""

    def __init__(self, name: str, order: str = "el", **options: Any) -> None:
        entry = INDEX[name]
        data = (CORPUS / order / f"{name}.o").read_bytes()
        options.setdefault("program", entry.get("program"))
        request = Request(hook=entry.get("hook"), allow=RISKS, **options)
        self.before = read_object(data)
        self.after = read_object(transform_object(data, request).data)
        self.intent = read_intents(self.after)[-1]
        sound = prove(self.before, self.after, self.intent)
        assert not sound.findings, told(sound)
        self.entries = sound.aligned.entries
        self.section = self.entries[0].section
        self.insns = list(self.after.insns(self.section))
        self.origins = sound.aligned.alignment.origins

    def entry(self, state: int | None = None) -> Entry:
        return next(entry for entry in self.entries if entry.state == state)

    def find(self, fits: Callable[[Insn], bool], *, start: int = 0, nth: int = 0) -> int:
        """Slot of the nth instruction that fits, from a slot on."""
        return [at for at in range(start, len(self.insns)) if fits(self.insns[at])][nth]

    def tail_call(self, nth: int = 0, start: int = 0) -> int:
        return self.find(lambda insn: insn.code == 0x85 and insn.imm == 12, start=start, nth=nth)

    def change(self, at: int, **fields: int) -> int:
        changed = self.insns[at]._replace(**fields)
        assert changed != self.insns[at], "the fault changes nothing"
        self.insns[at] = changed
        return at

    def prove(self, section: int | None = None, insns: list[Insn] | None = None) -> Proof:
        index = self.section if section is None else section
        order = self.after.order
        code = b"".join(encode(insn, order) for insn in insns or self.insns)
        sections = list(self.after.sections)
        sections[index] = sections[index]._replace(data=code)
        return prove(self.before, replace(self.after, sections=tuple(sections)), self.intent)


def caught(proof: Proof, rule: str | set[str], at: int | None = None) -> None:
    """The fault was found, by a rule that says what is wrong, at its place."""
    rules = {rule} if isinstance(rule, str) else rule
    assert proof.rules & rules, f"found by {proof.rules}: {told(proof)}"
    assert all(finding.outcome is Outcome.NOT_EQUAL for finding in proof.findings)
    assert all(finding.place is not None for finding in proof.findings)
    if at is not None:
        places = {finding.place.instruction for finding in proof.findings if finding.place}
        assert at in places, f"at {places}, not {at}: {told(proof)}"


MOV64, MOV64_REG, MOV32_REG, LDX_DW, STX_DW, JEQ = 0xB7, 0xBF, 0xBC, 0x79, 0x7B, 0x15


@pytest.fixture(params=["el", "eb"])
def slots(request: pytest.FixtureRequest) -> Patched:
    """Unknown codes, S = {PASS}, R = {REDIRECT}, states none and REDIRECT, context in a slot."""
    return Patched(
        "verdict_xdp", request.param, index=1, strategy="inline", redirect="REDIRECT",
        saved="REDIRECT",
    )  # fmt: skip


def patched_exit(work: Patched, state: int | None = None) -> int:
    entry = work.entry(state)
    return entry.body + entry.exits[-1]


def test_jump_to_the_epilogue_off_by_one(slots: Patched) -> None:
    at = patched_exit(slots)
    slots.change(at, off=slots.insns[at].off + 1)
    caught(slots.prove(), "register", at + 2)


def test_jump_back_into_the_body(slots: Patched) -> None:
    at = patched_exit(slots)
    slots.change(at, off=-2)
    caught(slots.prove(), "exit-target", at)


def test_compare_jumps_off_by_one(slots: Patched) -> None:
    at = slots.find(lambda insn: insn.code == JEQ and insn.imm == 2, start=patched_exit(slots))
    slots.change(at, off=slots.insns[at].off - 1)
    caught(slots.prove(), {"exit-unpatched", "slot", "tail-call", "result"})


def test_exit_left_unpatched(slots: Patched) -> None:
    at = patched_exit(slots)
    slots.change(at, code=0x95, off=0)
    caught(slots.prove(), "exit-unpatched", at)


@pytest.mark.parametrize("state", [None, 4])
def test_wrong_slot(slots: Patched, state: int | None) -> None:
    call = slots.tail_call(start=slots.entry(state).start)
    slots.change(call - 1, imm=slots.insns[call - 1].imm + 1)
    caught(slots.prove(), "slot", call)


def test_slot_of_another_state(slots: Patched) -> None:
    call = slots.tail_call(start=slots.entry(4).start)
    slots.change(call - 1, imm=2)  # as if nothing were saved
    caught(slots.prove(), "slot", call)


def test_state_constant_wrong(slots: Patched) -> None:
    call = slots.tail_call(start=slots.entry(4).start)
    slots.change(call + 1, imm=3)
    caught(slots.prove(), "result", call + 2)


def test_success_and_redirect_exchanged(slots: Patched) -> None:
    start = patched_exit(slots)
    success = slots.find(lambda insn: insn.code == JEQ and insn.imm == 2, start=start)
    redirect = slots.find(lambda insn: insn.code == JEQ and insn.imm == 4, start=start)
    slots.change(success, imm=4)
    slots.change(redirect, imm=2)
    caught(slots.prove(), {"slot", "result"})


def test_context_from_another_place(slots: Patched) -> None:
    at = slots.find(lambda insn: insn.code == LDX_DW and insn.dst == 1, start=patched_exit(slots))
    slots.change(at, off=slots.insns[at].off + 8)
    caught(slots.prove(), "context-slot", at)


def test_context_clobbered_before_the_tail_call(slots: Patched) -> None:
    at = slots.find(lambda insn: insn.code == LDX_DW and insn.dst == 1, start=patched_exit(slots))
    slots.change(at, code=MOV64, src=0, off=0, imm=0)
    caught(slots.prove(), "context")


def test_context_slot_over_a_buffer(slots: Patched) -> None:
    """Kept and loaded at the same place, which the body uses itself."""
    entry = slots.entry()
    slots.change(entry.start, off=-8)
    for at in range(entry.body + entry.length, entry.end):
        if slots.insns[at].code == LDX_DW and slots.insns[at].src == 10:
            slots.change(at, off=-8)
    proof = slots.prove()
    caught(proof, "context-slot")
    assert any(f.place and f.place.file == "in" for f in proof.findings)


def test_result_register_after_a_failed_tail_call(slots: Patched) -> None:
    call = slots.tail_call()
    slots.change(call + 1, code=MOV64_REG, src=3, imm=0)
    caught(slots.prove(), "register", call + 1)


def test_result_constant_after_a_failed_tail_call(slots: Patched) -> None:
    call = slots.tail_call()
    slots.change(call + 1, imm=1)
    caught(slots.prove(), "result", call + 2)


def test_upper_half_of_the_code_counts(slots: Patched) -> None:
    at = slots.find(lambda insn: insn.code == MOV32_REG, start=patched_exit(slots))
    slots.change(at, code=MOV64_REG)
    caught(slots.prove(), "exit-unpatched")


def test_another_helper(slots: Patched) -> None:
    call = slots.tail_call()
    slots.change(call, imm=13)
    caught(slots.prove(), "call", call)


def test_field_that_must_be_zero(slots: Patched) -> None:
    call = slots.tail_call()
    slots.change(call, off=1)
    caught(slots.prove(), "encoding", call)


def test_body_instruction_changed(slots: Patched) -> None:
    entry = slots.entry(4)
    at = slots.find(lambda insn: insn.code == MOV64, start=entry.body)
    slots.change(at, imm=slots.insns[at].imm + 1)
    caught(slots.prove(), "instruction", at)


def test_preamble_keeps_another_register(slots: Patched) -> None:
    entry = slots.entry()
    slots.change(entry.start, src=10)
    caught(slots.prove(), {"preamble", "context-slot", "context"})


def test_context_register_that_the_body_uses() -> None:
    """Kept and restored from a register that the body overwrites."""
    work = Patched("stack_full", index=1, strategy="inline")
    entry = work.entry()
    assert work.insns[entry.start].code == MOV64_REG, "an object with a free register is wanted"
    kept = work.insns[entry.start].dst
    body = work.insns[entry.body : entry.body + entry.length]
    taken = next(n for n in range(2, 10) if n != kept and any(i.dst == n for i in body))
    for at in range(entry.start, entry.end):
        insn = work.insns[at]
        inside = entry.body <= at < entry.body + entry.length
        if not inside and insn.code == MOV64_REG and kept in (insn.dst, insn.src):
            if insn.src == 0:
                continue
            field = "dst" if insn.dst == kept else "src"
            work.change(at, **{field: taken})
    caught(work.prove(), {"register", "context"})


def test_own_register_that_does_not_hold_the_context() -> None:
    """The body holds the context itself: the epilogue reads the neighbour."""
    work = Patched("global_subprog", index=1, strategy="inline")
    entry = work.entry()
    call = work.tail_call()
    at = work.find(lambda i: i.code == MOV64_REG and i.dst == 1, start=entry.body + entry.length)
    assert at < call
    assert entry.body == entry.start, "an object whose body keeps the context is wanted here"
    work.change(at, src=work.insns[at].src + 1)
    caught(work.prove(), {"register", "context"})


def test_parts_of_the_epilogue_swapped() -> None:
    work = Patched("verdict_tc", index=1, strategy="inline")
    entry = work.entry()
    at = work.find(lambda i: i.code == MOV64_REG and i.dst >= 6, start=entry.body + entry.length)
    later = work.tail_call() + 1
    work.insns[at], work.insns[later] = work.insns[later], work.insns[at]
    caught(work.prove(), {"register", "result"})


@pytest.mark.parametrize("codes", ["-5..3,100..2000", "not:-5..3"])
def test_signedness_of_a_compare(codes: str) -> None:
    work = Patched("verdict_tc", index=1, strategy="inline", success=codes)
    start = work.entry().body + work.entry().length
    at = work.find(lambda i: i.code in (0x65, 0x75), start=start)
    work.change(at, code={0x65: 0x25, 0x75: 0x35}[work.insns[at].code])
    caught(work.prove(), {"exit-unpatched", "tail-call"})


def test_sign_extension_missing() -> None:
    work = Patched("verdict_tc", index=1, strategy="inline", success="-5..3")
    at = work.find(lambda i: i.code == 0xC7, start=work.entry().body)
    work.change(at, code=0x77)
    caught(work.prove(), "exit-unpatched")


def map_mode(index: int, **options: Any) -> Patched:
    return Patched(
        "verdict_xdp", index=index, strategy="inline", saved_code="map", redirect="REDIRECT",
        **options,
    )  # fmt: skip


def test_saved_code_not_reset() -> None:
    work = map_mode(0)
    at = work.find(lambda i: i.code == STX_DW and i.dst == 0 and i.src == 1)
    work.insns[at] = Insn(MOV64_REG, 1, 1, 0, 0)
    caught(work.prove(), "saved-code")


@pytest.mark.parametrize("half", ["code", "flag"])
def test_saved_code_wrong(half: str) -> None:
    work = map_mode(2)
    at = work.find(lambda i: i.code == 0x18 and i.dst == 1 and i.imm == 4)
    work.change(at + (half == "flag"), imm=3 if half == "code" else 0)
    caught(work.prove(), "saved-code")


def test_saved_code_not_returned() -> None:
    work = map_mode(2)
    at = work.find(lambda i: i == Insn(LDX_DW, 1, 0, 0, 0))
    work.insns[at] = Insn(MOV64, 1, 0, 0, 0)
    caught(work.prove(), "result")


def test_null_is_not_looked_at() -> None:
    work = map_mode(0)
    at = work.find(lambda i: i.code == 0x85 and i.imm == 1, start=work.entry().body) + 1
    while not (work.insns[at].code == JEQ and work.insns[at].dst == 0):
        at = work.find(lambda i: i.code == 0x85 and i.imm == 1, start=at) + 1
    work.insns[at] = Insn(0x05, 0, 0, 0, 0)
    caught(work.prove(), "store")


def test_result_from_the_map_without_its_bound() -> None:
    work = Patched("verdict_cgroup_skb", index=2, strategy="inline", saved_code="map", redirect="1")
    at = work.find(lambda i: i.code == 0x57, start=work.entry().body + work.entry().length)
    work.insns[at] = Insn(0x05, 0, 0, 0, 0)
    caught(work.prove(), "range")


def test_known_exit_led_to_the_next_link() -> None:
    """A constant outside of S that goes where the constants of S go."""
    work = Patched("exits_const", index=1, strategy="inline")
    entry = work.entry()
    ja = work.insns[entry.body + entry.exits[0]]
    kept = next(
        at for at in range(entry.body, entry.body + entry.length) if work.insns[at].code == 0x95
    )
    goal = entry.body + entry.exits[0] + 1 + ja.off
    work.insns[kept] = Insn(0x05, 0, 0, goal - kept - 1, 0)
    caught(work.prove(), {"tail-call", "result", "slot"})


def test_added_code_that_nothing_reaches(slots: Patched) -> None:
    at = slots.find(lambda insn: insn.code == JEQ and insn.imm == 4, start=patched_exit(slots))
    goal = at + 1 + slots.insns[at].off
    slots.change(at, off=0)
    assert goal != at + 1
    caught(slots.prove(), {"unreached", "exit-unpatched", "slot", "result"})


def test_loop_in_added_code(slots: Patched) -> None:
    call = slots.tail_call()
    slots.insns[call + 1] = Insn(0x05, 0, 0, -3, 0)
    caught(slots.prove(), {"loop", "tail-call", "register"})


def test_wrapper_calls_another_function() -> None:
    work = Patched("static_subprog", index=1, strategy="subprog")
    entry = work.entry()
    at = work.find(lambda i: i.code == 0x85 and i.src == 1, start=entry.start)
    work.change(at, imm=-1)
    caught(work.prove(), "call", at)


def test_wrapper_calls_a_helper_by_the_body_s_number() -> None:
    work = Patched("static_subprog", index=1, strategy="subprog")
    at = work.find(lambda i: i.code == 0x85 and i.src == 1, start=work.entry().start)
    work.change(at, src=0)
    caught(work.prove(), "call", at)


def test_wrapper_does_not_run_the_program() -> None:
    work = Patched("static_subprog", index=1, strategy="subprog")
    at = work.find(lambda i: i.code == 0x85 and i.src == 1, start=work.entry().start)
    work.insns[at] = Insn(MOV64, 0, 0, 0, 2)
    caught(work.prove(), {"body", "relocation"})


def test_call_in_the_body_led_elsewhere() -> None:
    work = Patched("static_subprog", index=1, strategy="subprog")
    section = work.entry().body_section
    insns = list(work.after.insns(section))
    at = next(n for n in range(work.entry().body, len(insns)) if insns[n].code == 0x85)
    insns[at] = insns[at]._replace(imm=insns[at].imm + 1)
    caught(work.prove(section, insns), "call-target", at)


def test_exit_of_a_subprogram_patched_by_mistake() -> None:
    work = Patched("static_subprog", index=1, strategy="inline")
    text = work.after.named(".text")
    assert text is not None
    insns = list(work.after.insns(text.index))
    at = next(n for n, insn in enumerate(insns) if insn.code == 0x95)
    insns[at] = Insn(0x05, 0, 0, -1, 0)
    caught(work.prove(text.index, insns), "exit-target", at)


def test_changed_instruction_of_another_program() -> None:
    work = Patched("three_progs", index=1, strategy="inline")
    end = work.entry().end
    at = work.find(lambda i: i.code == MOV64, start=end)
    work.change(at, imm=work.insns[at].imm + 1)
    caught(work.prove(), "instruction", at)


def test_ways_out_past_the_exits_are_told() -> None:
    """An own tail call and a legacy packet load leave a body in place without passing an exit."""
    facts = facts_of([I(0x85, imm=12), I(0x20, imm=12), EXIT])
    assert facts.leaves == ((0, None), (1, Num(0, 0)))


# what every changed instruction does


def variants(insn: Insn) -> Iterator[Insn]:
    yield from (insn._replace(dst=n) for n in range(11))
    yield from (insn._replace(src=n) for n in range(11))
    yield from (insn._replace(off=insn.off + n) for n in (-2, -1, 1, 2))
    yield from (insn._replace(imm=n) for n in (insn.imm + 1, insn.imm - 1, insn.imm + 33, 0))
    for bits in (0x08, 0x10, 0x20, 0x30, 0x40, 0x03, 0x02):
        yield insn._replace(code=insn.code ^ bits)


@pytest.mark.parametrize(
    "options",
    [
        {"index": 1, "strategy": "inline", "redirect": "REDIRECT", "saved": "REDIRECT"},
        {"index": 2, "strategy": "subprog", "redirect": "DROP", "last": True, "saved": "TX"},
    ],
    ids=["inline", "subprog-last"],
)
def test_what_passes_changed_does_the_same(options: dict[str, Any]) -> None:
    """Every one-field change of every added instruction: if it is not caught, running it (in an
    interpreter that the checker does not know) shows the reference's meaning."""
    work = Patched("verdict_xdp", **options)
    added = [n for n, origin in enumerate(work.origins[work.section]) if isinstance(origin, Added)]
    survivors = count = 0
    for at in added:
        plain = work.insns[at]
        for changed in dict.fromkeys(variants(plain)):
            if changed == plain:
                continue
            count += 1
            work.insns[at] = changed
            if not work.prove().findings:
                survivors += 1
                assert_means_the_same(work, f"{at}: {text_of(plain)} -> {text_of(changed)}")
        work.insns[at] = plain
    assert count > 250
    assert survivors < count / 20


def assert_means_the_same(work: Patched, what: str) -> None:
    intent = work.intent
    link = (intent.success, intent.redirect)
    for entry in work.entries:
        for returned in (0, 1, 2, 3, 4, 5, 1 << 32 | 2, 1 << 32 | 4, (1 << 64) - 1, 1 << 31):
            slot, result = run_entry(work, entry, returned)
            goes_on, after = step(link, entry.state, returned)  # type: ignore[arg-type]
            wanted = intent.hook.slot(after, intent.index + 1)
            code = returned & 0xFFFF_FFFF
            if goes_on:
                assert slot == (None if intent.ends else wanted), what
                code = code if after is None else after
            else:
                assert slot is None, what
            assert result == code, what


def run_entry(work: Patched, entry: Entry, returned: int) -> tuple[int | None, int]:
    """The slot that the entry tail-calls and its result, where the body returns this."""
    made: list[int] = []

    def call(number: int, machine: tinybpf.Tiny, slot: int) -> int:
        if machine.insns[slot].src == 1:
            assert machine.registers[1] == tinybpf.CONTEXT
            machine.registers[1:6] = [0xBAD] * 5
            return returned
        assert number == 12
        assert machine.registers[1] == tinybpf.CONTEXT
        made.append(machine.registers[3] & 0xFFFF_FFFF)
        machine.registers[1:6] = [0xBAD] * 5
        return 0xBAD

    insns = [isa.Insn(*insn) for insn in work.insns]
    machine = tinybpf.Tiny(insns, call)
    start = entry.start
    if entry.inline:
        at = entry.body + entry.exits[-1]
        start = at + 1 + insns[at].offset
        machine.registers[0] = returned
        if entry.body > entry.start:  # what the preamble keeps, the body leaves alone
            keep = insns[entry.start]
            if keep.opcode == STX_DW:
                machine.store(tinybpf.FRAME + keep.offset, 8, tinybpf.CONTEXT)
            else:
                machine.registers[keep.dst] = tinybpf.CONTEXT
        else:
            machine.registers[6] = tinybpf.CONTEXT
    else:
        machine.registers[1] = tinybpf.CONTEXT
    result = machine.run(start)
    return (made[0] if made else None), result & 0xFFFF_FFFF


# reading instructions


@pytest.mark.parametrize("order", ["<", ">"])
def test_instructions_are_read_as_the_transformer_reads_them(order: str) -> None:
    """Two decoders that share nothing, on everything in the corpus."""
    folder = CORPUS / ("el" if order == "<" else "eb")
    count = 0
    for path in sorted(folder.glob("*.o")):
        obj = read_object(path.read_bytes())
        for section in obj.executable:
            mine = decode(section.data, order)
            assert [tuple(insn) for insn in mine] == [
                tuple(insn) for insn in isa.decode(section.data, order)
            ]
            assert b"".join(encode(insn, order) for insn in mine) == section.data
            count += len(mine)
    assert count > 5000


# facts of hand-written programs


def facts_of(insns: list[Insn], functions: tuple[list[Insn], ...] = (), **options: Any) -> Facts:
    """Facts of a program made of these instructions; functions follow it in the same section."""
    code = list(insns)
    spans = [("main", 0, len(insns))]
    for number, function in enumerate(functions):
        spans.append((f"f{number}", len(code), len(code) + len(function)))
        code += function
    data = b"".join(encode(insn, "<") for insn in code)
    section = Section(1, "xdp", 1, 6, 8, 0, data, len(data), 0, 0)
    symbols = tuple(
        Symbol(n, name, 1, start * 8, (end - start) * 8, 2, 1, 0)
        for n, (name, start, end) in enumerate(spans)
    )
    obj = Obj("<", (), (section._replace(index=0, name="", type=0, data=b""), section), symbols)
    return analyse(obj, Function("main", 1, 0, len(insns), 0), **options)


def I(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> Insn:  # noqa: E743
    return Insn(code, dst, src, off, imm)


EXIT, LOOKUP = I(0x95), I(0x85, imm=1)
FP_TO_R2 = [I(MOV64_REG, 2, 10), I(0x07, 2, imm=-16)]


@pytest.mark.parametrize(
    ("insns", "lowest"),
    [
        ([EXIT], 0),
        ([I(STX_DW, 10, 1, -24), EXIT], -24),
        ([*FP_TO_R2, I(0x7A, 2, off=-8), EXIT], -24),
        ([*FP_TO_R2, I(STX_DW, 10, 2, -8), I(LDX_DW, 3, 10, -8), I(0x72, 3, off=-3), EXIT], -19),
        # an index of 0 to 7 below a buffer: bounded, because a mask says so
        ([I(0x61, 3, 1), I(0x57, 3, imm=7), *FP_TO_R2, I(0x0F, 2, 3), I(0x72, 2), EXIT], -16),
        # an index that nothing bounds
        ([I(LDX_DW, 3, 1), *FP_TO_R2, I(0x0F, 2, 3), I(0x72, 2), EXIT], None),
        # a loop that sinks
        ([*FP_TO_R2, I(0x07, 2, imm=-8), I(0x72, 2), I(0x15, 1, off=-3), EXIT], None),
        # a callback's helper with a context on the stack and an unknown function
        ([*FP_TO_R2, I(MOV64_REG, 3, 2), I(0x85, imm=181), EXIT], None),
    ],
)  # fmt: skip
def test_lowest_stack_address(insns: list[Insn], lowest: int | None) -> None:
    found = facts_of(insns).lowest
    assert found == lowest if lowest is not None else found < -512


def test_lowest_through_a_function() -> None:
    """A pointer that is given away: the function goes 8 further down, and back up in its own frame."""
    function = [I(STX_DW, 10, 1, -256), I(0x7A, 1, off=-8), I(MOV64, 0), EXIT]
    main = [*FP_TO_R2, I(MOV64_REG, 1, 2), I(0x85, src=1, imm=1), EXIT]
    assert facts_of(main, (function,)).lowest == -24


def slot_findings(facts: Facts, cell: int) -> list[Finding]:
    data = b"".join(encode(insn, "<") for insn in [EXIT])
    section = Section(0, "xdp", 1, 6, 8, 0, data, len(data), 0, 0)
    obj = Obj("<", (), (section,), ())
    entry = Entry(0, "main", None, 0, 0, 1, 0, 0, 1)
    return check_slots(obj, Function("main", 0, 0, 1, 0), obj, entry, (cell,), facts)


@pytest.mark.parametrize(
    ("lowest", "cell", "outcome"),
    [
        (-16, -24, None),
        (-17, -24, Outcome.NOT_EQUAL),
        (-16, -16, Outcome.NOT_EQUAL),
        (-(1 << 40), -24, Outcome.INCONCLUSIVE),
        (-512, -520, Outcome.NOT_EQUAL),
        (0, -12, Outcome.NOT_EQUAL),
    ],
)
def test_slot_for_the_context(lowest: int, cell: int, outcome: Outcome | None) -> None:
    findings = slot_findings(Facts({}, lowest, (0, 0)), cell)
    assert [f.outcome for f in findings] == ([] if outcome is None else [outcome])
    assert all(f.rule == "context-slot" for f in findings)


def test_kept_register_is_followed() -> None:
    """The context survives in r6, is lost in r7 on one way, and a call takes it from r5."""
    insns = [
        I(MOV64_REG, 6, 1), I(MOV64_REG, 7, 1), I(MOV64_REG, 5, 1), I(0x15, 3, off=1, imm=0),
        I(MOV64, 7), I(0x85, imm=5), EXIT,
    ]  # fmt: skip
    (state,) = facts_of(insns).exits.values()
    assert state.registers[6] is CONTEXT
    assert state.registers[7] is None
    assert state.registers[5] is None


@pytest.mark.parametrize(
    ("insns", "unwritten"),
    [
        # struct { u32 a; u8 b; } with three bytes of padding, as a key of eight
        (
            [I(0x62, 10, off=-8, imm=1), I(0x72, 10, off=-4, imm=2)],
            [(-3, 3, "bpf_map_lookup_elem")],
        ),
        # cleared first, as compilers do it
        ([I(0x7A, 10, off=-8), I(0x62, 10, off=-8, imm=1), I(0x72, 10, off=-4, imm=2)], []),
        # written on one way only
        ([I(0x15, 0, off=1), I(0x7A, 10, off=-8)], [(-8, 8, "bpf_map_lookup_elem")]),
        # written byte by byte
        ([I(0x72, 10, off=-n, imm=n) for n in range(1, 9)], []),
    ],
)
def test_unwritten_keys(insns: list[Insn], unwritten: list[tuple[int, int, str]]) -> None:
    main = [I(MOV64, 0), *insns, I(0x18, 1, 0, 0, 7), I(0), I(MOV64_REG, 2, 10),
            I(0x07, 2, imm=-8), LOOKUP, EXIT]  # fmt: skip
    facts = with_map(main, 8)
    assert [tuple(read)[2:] for read in facts.unwritten] == unwritten


def with_map(main: list[Insn], key: int) -> Facts:
    """Facts of a program whose first ``lddw`` of 7 is the map ``m`` (by relocation)."""
    from bpfchain.verify.static.model import Relocation

    at = next(n for n, insn in enumerate(main) if insn.code == 0x18)
    data = b"".join(encode(insn, "<") for insn in main)
    section = Section(1, "xdp", 1, 6, 8, 0, data, len(data), 0, 0)
    maps = Section(2, ".maps", 1, 3, 8, 0, bytes(32), 32, 0, 0)
    null = Section(0, "", 0, 0, 0, 0, b"", 0, 0, 0)
    symbols = (Symbol(0, "main", 1, 0, len(data), 2, 1, 0), Symbol(1, "m", 2, 0, 32, 1, 1, 0))
    obj = Obj("<", (), (null, section, maps), symbols, {1: (Relocation(at * 8, 1, 1),)})
    return analyse(obj, Function("main", 1, 0, len(main), 0), sizes={"m": (key, 4)})


def test_correlated_ways_are_followed_one_by_one() -> None:
    """Written under a condition and read under the same one: no way reads what was not written."""
    insns = [
        I(MOV64, 6), I(0x61, 3, 1), I(0x15, 3, off=2, imm=0), I(0x7A, 10, off=-8), I(MOV64, 6, imm=1),
        I(0x15, 6, off=1, imm=0), I(LDX_DW, 3, 10, -8), I(MOV64, 0), EXIT,
    ]  # fmt: skip
    assert facts_of(insns).unwritten == ()
    assert [r.offset for r in facts_of(insns, budget=0).unwritten] == [-8]


def test_written_by_a_loop_with_a_counter() -> None:
    loop = [
        I(MOV64_REG, 2, 10), I(0x07, 2, imm=-16), I(MOV64, 3),
        I(0x72, 2), I(0x07, 2, imm=1), I(0x07, 3, imm=1), I(0x55, 3, off=-4, imm=16),
        I(LDX_DW, 0, 10, -16), EXIT,
    ]  # fmt: skip
    assert facts_of(loop).unwritten == ()
    loop[6] = loop[6]._replace(imm=4)
    (read,) = facts_of(loop).unwritten
    assert (read.offset, read.size) == (-12, 4)


def test_functions_have_frames_of_their_own() -> None:
    """The caller writes its r10-8; the function reads its own, which nobody wrote."""
    function = [I(LDX_DW, 0, 10, -8), EXIT]
    main = [I(0x7A, 10, off=-8), I(0x85, src=1, imm=1), EXIT]
    (read,) = facts_of(main, (function,)).unwritten
    assert (read.slot, read.offset, read.how) == (3, -8, "load")


def test_a_function_writes_for_its_caller() -> None:
    function = [I(0x7A, 1), I(MOV64, 0), EXIT]
    main = [*FP_TO_R2, I(MOV64_REG, 1, 2), I(0x85, src=1, imm=2), I(LDX_DW, 0, 10, -16), EXIT]
    assert facts_of(main, (function,)).unwritten == ()


# facts against runs

_regs, _imms = st.sampled_from((0, 3, 6, 7)), st.sampled_from((-1, 0, 1, 2, 3, 7, 8, 16, 255))
_alu_ops = st.sampled_from((0x07, 0x0F, 0x17, 0x1F, 0x47, 0x4F, 0x57, 0x5F, 0xA7, 0xB7, 0xBF, 0x04,
                            0x0C, 0x54, 0xB4, 0xBC, 0x67, 0x77, 0xC7, 0x64, 0x27))  # fmt: skip
_body = st.one_of(
    st.builds(lambda op, d, s, n: I(op, d, s if op & 8 else 0, 0, 0 if op & 8 else n % 32 if op >> 4 in (6, 7, 12) else n),
              _alu_ops, _regs, _regs, _imms),
    st.builds(lambda d, n: I(0x07, d, imm=8 * n), st.sampled_from((8, 9)), st.integers(-6, 2)),
    st.builds(lambda d, s: I(0x0F, d, s), st.sampled_from((8, 9)), _regs),
    st.builds(I, st.sampled_from((STX_DW, 0x63, 0x73)),
              st.sampled_from((8, 9, 10)), st.sampled_from((0, 3, 8)), st.sampled_from((-32, -24, -20, -16, -8))),
    st.builds(I, st.sampled_from((LDX_DW, 0x61, 0x71)),
              st.sampled_from((0, 3, 6, 9)), st.sampled_from((8, 10)), st.sampled_from((-32, -24, -20, -16, -8))),
    st.builds(lambda op, d, n, o: I(op, d, 0, o, n),
              st.sampled_from((0x15, 0x55, 0x25, 0x35, 0xA5, 0xB5, 0x65, 0xC5, 0x16, 0x26, 0xA6)), _regs, _imms,
              st.integers(-5, 6)),
    st.just(EXIT),
    st.just(LOOKUP),
)  # fmt: skip


@st.composite
def programs(draw: st.DrawFn) -> list[Insn]:
    front = [I(MOV64, n) for n in (0, 3, 6, 7)] + [I(MOV64_REG, 8, 10), I(MOV64_REG, 9, 10)]
    insns = [*front, *draw(st.lists(_body, min_size=2, max_size=26)), EXIT]
    for at, insn in enumerate(insns):
        if insn.code & 7 in (5, 6) and insn.code not in (0x85, 0x95):
            goal = min(max(at + 1 + insn.off, len(front)), len(insns) - 1)
            insns[at] = insn._replace(off=goal - at - 1)
    return insns


class Watched(tinybpf.Tiny):
    """Notes whether a byte of the stack was loaded that nobody stored."""

    unwritten = False

    def load(self, address: int, size: int) -> int:
        inside = tinybpf.FRAME - 512 <= address <= tinybpf.FRAME - size
        if inside and any(address + n not in self.memory for n in range(size)):
            self.unwritten = True
        return super().load(address, size)


@pytest.mark.timeout(120)
@settings(max_examples=1200)
@given(programs(), st.integers(0, (1 << 64) - 1))
def test_facts_hold_in_every_run(insns: list[Insn], answer: int) -> None:
    facts = facts_of(insns)

    def helper(number: int, machine: tinybpf.Tiny, slot: int) -> int:
        machine.registers[1:6] = [0xBAD] * 5
        return answer

    machine = Watched([isa.Insn(*insn) for insn in insns], helper,
                      other_load=lambda address, size: answer & (1 << 8 * size) - 1, steps=400)  # fmt: skip
    machine.registers[1] = tinybpf.CONTEXT
    try:
        result = machine.run()
    except tinybpf.StuckError:
        result = None  # a loop: what it touched so far counts all the same
    low = min((offset for offset, _ in machine.touched), default=0)
    if facts.lowest >= -512:
        assert low >= facts.lowest
    if machine.unwritten and low >= -512:
        assert facts.unwritten, "a byte was read that nobody wrote"
    if result is None:
        return
    state = facts.exits[machine.exit_slot]
    for register, value in enumerate(state.registers[:10]):
        if isinstance(value, Num):
            assert value.low <= machine.registers[register] <= value.high, register
        elif value is CONTEXT:
            assert machine.registers[register] == tinybpf.CONTEXT


def test_what_is_kept_is_what_the_preamble_kept() -> None:
    """A slot and a register are told apart, and nothing is kept where nothing was."""
    assert Kept() != Kept(cells=(-16,))
    facts = facts_of([I(0x72, 10, off=-1), EXIT], cells={-16: CONTEXT})
    assert facts.exits[1].cell(-16) is CONTEXT
    facts = facts_of([I(0x72, 10, off=-9), EXIT], cells={-16: CONTEXT})
    assert facts.exits[1].cell(-16) is None
