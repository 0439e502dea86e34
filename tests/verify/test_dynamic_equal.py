"""What the transformer makes of the corpus is equal to the original, on every engine that runs it."""

from __future__ import annotations

from typing import Any

import pytest

from bpfchain.transform.errors import RefusedError
from bpfchain.verify.dynamic import check_dynamic
from bpfchain.verify.engines import engine_named
from bpfchain.verify.result import DynamicResult, Finding, Outcome, Place, Residue
from support.proofs import Subject, builtin, compiled, corpus, link_of, subjects

UNMODELLED = {
    "core_kprobe": "bpf_get_current_task", "ksyms_func": "kernel function bpf_rcu_read_lock",
    "ksyms_weak": "kernel function bpf_rcu_read_lock", "ksyms_var_typed": "bpf_this_cpu_ptr",
    "callback_timer": "bpf_timer_init (array map)", "sk_ref": "bpf_sk_lookup_tcp",
    "cgroup_storage": "bpf_get_local_storage (cgroup storage map)",
}  # fmt: skip
"""What uBPF's side does not model of these."""
KERNEL_LACKS = {
    "legacy_maps": "legacy map definitions", "legacy_maps_g": "legacy map definitions",
    "ksyms_var_typed": "bpf_prog_active",
}  # fmt: skip
"""Why the kernel does not load these originals."""
SUBJECTS = list(subjects())
KERNEL_SUBJECTS = [s for s in SUBJECTS if engine_named("kernel").refuses(s.hook) is None]


def variants(subject: Subject) -> list[dict[str, Any]]:
    """First, in the middle in every state, last; inline or subprog; the code in a map."""
    hook = subject.hook
    codes = ",".join(str(code.value) for code in hook.codes[:2] if code.value in hook.legal)
    return [
        {"index": 0},
        {"index": 0, "redirect": codes, "strategy": "subprog"},
        {"index": 3, "redirect": codes, "saved": codes},
        {"index": 5, "saved": codes, "last": True},
        {"index": 0, "redirect": codes, "saved_code": "map"},
        {"index": 4, "redirect": codes, "saved_code": "map"},
    ]


def prove(subject: Subject, engine: str, options: dict[str, Any]) -> DynamicResult | None:
    try:
        patched, intent = link_of(
            subject.data, program=subject.program, hook=subject.hook.name, **options
        )
    except RefusedError:
        return None
    return check_dynamic(subject.data, patched, intent, [builtin()], engine=engine)


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_equal_in_the_interpreter(subject: Subject) -> None:
    results = [prove(subject, "ubpf", options) for options in variants(subject)]
    proved = [result for result in results if result is not None]
    assert len(proved) >= 4
    for result in proved:
        missing = UNMODELLED.get(subject.obj)
        if missing is None:
            assert result.findings == ()
            assert result.outcome is Outcome.EQUAL
            assert set(result.dimensions.values()) == {"equal"}
            assert sum(result.codes.values()) == result.packets > 5
        else:
            assert result.outcome is Outcome.UNMODELLED
            assert result.unmodelled == (missing,)
            assert all(f.outcome is Outcome.UNMODELLED for f in result.findings)
        assert result.fills == (0x00, 0xA5)
        assert result.coverage is not None
        assert any(result.coverage.instructions.values())


@pytest.mark.parametrize("subject", KERNEL_SUBJECTS, ids=str)
def test_equal_in_the_kernel(subject: Subject, kernel: None) -> None:
    results = [prove(subject, "kernel", options) for options in variants(subject)[2:3]]
    for result in results:
        if result is None:
            continue
        if subject.obj in KERNEL_LACKS:
            assert result.outcome is Outcome.INCONCLUSIVE
            assert KERNEL_LACKS[subject.obj] in result.findings[0].message
            continue
        assert result.findings == ()
        assert result.outcome is Outcome.EQUAL
        assert result.dimensions["verdict"] == "equal"
        assert "no redirect targets" in result.dimensions["events"]
        assert result.fills == ()


@pytest.mark.parametrize("subject", [s for s in SUBJECTS if s.obj in ("filter", "log", "metrics",
                                     "verdict_tc", "tailcall_own", "static_subprog")], ids=str)  # fmt: skip
def test_equal_under_the_jit(subject: Subject) -> None:
    for options in variants(subject):
        result = prove(subject, "ubpf-jit", options)
        if result is None:
            continue
        assert result.findings == ()
        assert result.outcome is Outcome.EQUAL
        assert result.coverage is None
        assert result.executed is None


def test_codes_and_coverage_are_counted() -> None:
    subject = next(s for s in SUBJECTS if s.obj == "exits_const")
    result = prove(subject, "ubpf", {"index": 0, "redirect": "TX"})
    assert result is not None
    seen = set(result.codes)
    assert {"PASS", "DROP"} <= seen
    assert set(result.codes_unseen) == {"ABORTED", "DROP", "PASS", "TX", "REDIRECT"} - seen
    coverage = result.coverage
    assert coverage is not None
    assert coverage.section == "xdp"
    assert coverage.instructions["xdp", 0]
    jumps = {(section, at) for section, at, _ in coverage.edges}
    assert jumps
    assert len(coverage.edges) == 2 * len(jumps)
    for section, at in jumps:  # an edge was taken where, and only where, its jump ran
        ran = coverage.edges[section, at, True] or coverage.edges[section, at, False]
        assert ran == coverage.instructions[section, at]
    assert result.executed is not None
    assert result.executed[1] > result.executed[0] > result.packets
    (use,) = result.corpora
    assert (use.name, use.packets) == ("builtin", len(builtin().packets))
    assert use.packets - sum(count for _, count in use.skipped) == result.packets
    assert result.protocols["tcp"] > 20


def test_answers_that_were_made_up_are_named() -> None:
    source = """
    SEC("xdp") int asks(struct xdp_md *ctx)
    {
        return (bpf_get_prandom_u32() & 3) + (bpf_ktime_get_ns() & 1);
    }"""
    data = compiled(source)
    patched, intent = link_of(data, index=0)
    result = check_dynamic(data, patched, intent, [builtin()])
    assert result.outcome is Outcome.EQUAL
    assert result.nondeterministic == ("bpf_ktime_get_ns", "bpf_get_prandom_u32")
    assert len(result.codes) > 3


def test_random_verdicts_are_not_compared_in_the_kernel(kernel: None) -> None:
    source = 'SEC("xdp") int chance(struct xdp_md *ctx) { return bpf_get_prandom_u32() & 3; }'
    data = compiled(source)
    patched, intent = link_of(data, index=0)
    result = check_dynamic(data, patched, intent, [builtin()], engine="kernel")
    assert result.outcome is Outcome.INCONCLUSIVE
    (finding,) = {f.rule: f for f in result.findings}.values()
    assert finding.rule == "nondeterministic"
    assert "bpf_get_prandom_u32" in finding.message


@pytest.mark.parametrize("engine", ["kernel"])
def test_types_that_the_kernel_does_not_run(engine: str, kernel: None) -> None:
    data = corpus("verdict_kprobe")
    patched, intent = link_of(data, index=0, program="verdict_kprobe")
    result = check_dynamic(data, patched, intent, [builtin()], engine=engine)
    reason = "the kernel runs no kprobe programs on request"
    assert result.outcome is Outcome.UNMODELLED
    assert result.unmodelled == (reason,)
    assert result.dimensions == {"verdict": f"not run: {reason}"}
    (use,) = result.corpora
    assert use.packets == 0


RESIDUE = """
SEC("xdp") int residue(struct xdp_md *ctx)
{
    __u64 word;
    asm volatile("%0 = *(u64 *)(r10 - 64)" : "=r"(word));
    return word & 0xff ? 1 : 2;
}"""


def test_a_verdict_by_residue_is_inconclusive() -> None:
    data = compiled(RESIDUE)
    patched, intent = link_of(data, index=0)
    known = Residue(Place("in", "xdp", 0, "residue"), -64, 8, "load")
    result = check_dynamic(data, patched, intent, [builtin()], residue=[known])
    assert result.outcome is Outcome.INCONCLUSIVE
    (finding,) = result.findings
    assert (finding.rule, finding.place) == ("residue", known.place)
    assert "PASS or DROP" in finding.message
    assert "8 bytes at r10-64 are read (load)" in finding.message
    allowed = check_dynamic(data, patched, intent, [builtin()], residue=[known], allow_residue=True)
    assert allowed.outcome is Outcome.EQUAL
    assert [f.rule for f in allowed.findings] == ["residue"]


def test_residue_in_a_map_is_noted() -> None:
    source = """
    struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, __u32);
             __type(value, __u64); } seen SEC(".maps");
    SEC("xdp") int residue(struct xdp_md *ctx)
    {
        __u32 zero = 0;
        __u64 word, *value = bpf_map_lookup_elem(&seen, &zero);
        asm volatile("%0 = *(u64 *)(r10 - 64)" : "=r"(word));
        if (value)
            *value = word;
        return 2;
    }"""
    data = compiled(source)
    patched, intent = link_of(data, index=0)
    result = check_dynamic(data, patched, intent, [builtin()])
    assert result.outcome is Outcome.EQUAL
    assert _rules(result.findings) == ["residue"]
    assert "map seen" in result.findings[0].message


def _rules(findings: tuple[Finding, ...]) -> list[str]:
    return [found.rule for found in findings]
