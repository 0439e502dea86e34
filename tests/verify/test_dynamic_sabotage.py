"""Damaged patches, shown by the runs alone on every engine, each with a small counterexample that is
a regression recording.

The faults are those of ``support.sabotage``; test_sabotage.py asks the static checker of them too.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfchain.transform.transform import transform_object
from bpfchain.verify.dynamic import check_dynamic
from bpfchain.verify.engines import ENGINES
from bpfchain.verify.recording import read_recording
from bpfchain.verify.result import Outcome
from bpfchain.verify.scenario import scenario_beside
from bpfchain.verify.static.intent import Intent
from support.proofs import builtin, compiled, corpus, intent_of, link_of
from support.sabotage import FAULTS, SUBJECTS, Fault

SOURCE = Path(__file__).parent / "subjects" / "codes.c"
BY_NAME = {fault.name: fault for fault in FAULTS}
SHOWN = [
    "exit unpatched", "exit unpatched in a state's entry", "epilogue jump off by one",
    "wrong slot", "own slot", "constant of a state wrong", "state lost", "context clobbered",
    "context from another register", "S and R exchanged", "a code of S missing",
    "a code of R missing", "a foreign code goes on", "result of an empty slot",
    "saved code not returned", "result register", "body register", "body stack offset",
    "relocation to the wrong map", "relocation lost", "map value size", "constant data changed",
    "entries swapped", "extra write", "wrapper passes a wrong context", "C not reset",
    "C of another code",
]  # fmt: skip
"""Faults that packets of any corpus show."""
BODY = {
    "body register": "xdp", "body stack offset": "xdp", "relocation to the wrong map": "xdp",
    "relocation lost": "xdp", "map value size": "xdp",
}  # fmt: skip
"""Faults whose first difference is in the body itself, and the section that names it."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    import subprocess

    out = tmp_path_factory.mktemp("subject") / "codes.o"
    include = next(Path("/usr/include").glob("*-linux-gnu*/asm/types.h")).parents[1]
    command = ["clang", "-target", "bpf", "-O2", "-g", "-mcpu=v2", f"-I{include}", "-c"]
    subprocess.run([*command, str(SOURCE), "-o", str(out)], check=True)
    return out.read_bytes()


def damaged(original: bytes, fault: Fault) -> tuple[bytes, Intent]:
    sound = transform_object(original, SUBJECTS[fault.subject])
    return fault.apply(sound.data), intent_of(sound.data, sound.program)


@pytest.mark.parametrize("name", SHOWN)
def test_the_interpreter_shows_it(name: str, original: bytes, tmp_path: Path) -> None:
    fault = BY_NAME[name]
    patched, intent = damaged(original, fault)
    saved = tmp_path / "counterexample.pcapng"
    result = check_dynamic(original, patched, intent, [builtin()], save_to=saved)
    assert result.outcome is Outcome.NOT_EQUAL
    example = result.counterexample
    assert example is not None
    assert example.expected != example.got
    assert result.dimensions[example.dimension] == "not equal"
    # small: no packets before it but where a map is the state, and hardly any bytes left
    assert len(example.before) <= 1
    assert len(example.data) <= 64
    assert sum(map(bool, example.data)) <= 4
    assert example.first_difference is not None
    if name in BODY:
        assert example.first_difference.section == BODY[name]
        assert example.first_difference.source.startswith("codes.c:")
    # the saved recording shows the same, alone
    assert example.saved_as == str(saved)
    assert result.findings[0].hint == f"saved as {saved}"
    kept = read_recording(saved)
    assert scenario_beside(saved).exists()
    assert kept.packets == (*example.before, example.data)
    again = check_dynamic(original, patched, intent, [kept])
    assert again.outcome is Outcome.NOT_EQUAL
    assert again.counterexample is not None
    assert again.counterexample.dimension == example.dimension
    assert (
        check_dynamic(original, sound_of(original, fault), intent, [kept]).outcome is Outcome.EQUAL
    )


def sound_of(original: bytes, fault: Fault) -> bytes:
    return transform_object(original, SUBJECTS[fault.subject]).data


@pytest.mark.parametrize("engine", ["ubpf-jit", "kernel"])
@pytest.mark.parametrize("name", SHOWN)
def test_the_other_engines_show_it(name: str, engine: str, original: bytes, kernel: None) -> None:
    patched, intent = damaged(original, BY_NAME[name])
    result = check_dynamic(original, patched, intent, [builtin()], engine=engine)
    assert result.outcome is Outcome.NOT_EQUAL
    if result.counterexample is None:  # the verifier or the linker refuses the damaged code
        assert [f.rule for f in result.findings] == ["load"]


STATEFUL = """
struct {{ __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, __u32);
         __type(value, __u64); }} seen SEC(".maps");
SEC("xdp") int counts(struct xdp_md *ctx)
{{
    __u32 zero = 0;
    __u8 *data = (void *)(long)ctx->data;
    __u64 *count = bpf_map_lookup_elem(&seen, &zero);
    if (!count || (void *)(data + 60) > (void *)(long)ctx->data_end)
        return 2;
    if (data[12] == 8 && data[13] == 6)
        *count += 1;
    return *count > {limit} && data[12] == 8 && data[13] == 0 ? 1 : 2;
}}"""


def test_packets_before_it_are_found(tmp_path: Path) -> None:
    """Three ARP frames and then an IPv4 one: nothing less shows the difference."""
    original, other = (compiled(STATEFUL.format(limit=n)) for n in (1000, 2))
    patched, intent = link_of(other, index=0)
    result = check_dynamic(
        original, patched, intent, [read_recording(_arp(tmp_path))],
        save_to=tmp_path / "small.pcapng",
    )  # fmt: skip
    example = result.counterexample
    assert example is not None
    assert example.dimension == "verdict"
    assert [packet[12:14] for packet in example.before] == [b"\x08\x06"] * 3
    assert example.data[12:14] == b"\x08\x00"
    assert "after 3 other packets" in result.findings[0].message
    kept = read_recording(tmp_path / "small.pcapng")
    assert len(kept.packets) == 4
    assert check_dynamic(original, patched, intent, [kept]).outcome is Outcome.NOT_EQUAL


def _arp(folder: Path) -> Path:
    from bpfchain.verify.captures import to_pcap

    def frame(kind: int, size: int) -> bytes:
        return bytes(range(1, 13)) + bytes([8, kind]) + bytes(n % 251 for n in range(size))

    frames = [frame(6 if n % 5 == 0 else 0, 60 + n) for n in range(60)]
    path = folder / "many.pcap"
    path.write_bytes(to_pcap(frames, [1_000_000 * n for n in range(len(frames))]))
    return path


def test_a_map_difference_is_laid_to_its_packet(tmp_path: Path) -> None:
    """Maps are compared at a batch's end: which packet it was is found by bisection."""
    source = STATEFUL.replace("*count += 1", "*count += {step}")
    original, other = (compiled(source.format(limit=1000, step=n)) for n in (1, 2))
    patched, intent = link_of(other, index=0)
    result = check_dynamic(original, patched, intent, [read_recording(_arp(tmp_path))])
    example = result.counterexample
    assert example is not None
    assert (example.dimension, example.packet, example.before) == ("map", 0, ())
    assert example.got == "map seen[00000000] holds 0200000000000000"
    assert example.expected == "0100000000000000"
    place = example.first_difference
    assert place is not None
    assert place.section == "xdp"


@pytest.mark.parametrize("engine", ENGINES)
def test_packet_context_and_events_are_compared(engine: str, kernel: None) -> None:
    cases = {
        "packet": ("xdp", "data[3] ^= {n};"),
        "context": ("tc", "ctx->mark = {n};"),
    }
    for dimension, (section, act) in cases.items():
        kind = "__sk_buff" if section == "tc" else "xdp_md"
        source = f"""
        SEC("{section}") int acts(struct {kind} *ctx)
        {{{{
            __u8 *data = (void *)(long)ctx->data;
            if ((void *)(data + 14) > (void *)(long)ctx->data_end)
                return 0;
            {act}
            return 0;
        }}}}"""
        original, other = (compiled(source.format(n=n)) for n in (1, 2))
        patched, intent = link_of(other, index=0)
        result = check_dynamic(original, patched, intent, [builtin()], engine=engine)
        assert result.outcome is Outcome.NOT_EQUAL
        assert result.counterexample is not None
        assert result.counterexample.dimension == dimension
        assert result.findings[0].rule == dimension


@pytest.mark.parametrize("act", ['bpf_printk("%d", {n})', "bpf_redirect({n}, 0)"])
def test_effects_of_helpers_are_compared(act: str) -> None:
    source = f'SEC("xdp") int acts(struct xdp_md *ctx) {{{{ {act}; return 2; }}}}'
    original, other = (compiled(source.format(n=n)) for n in (1, 2))
    patched, intent = link_of(other, index=0)
    result = check_dynamic(original, patched, intent, [builtin()])
    assert result.counterexample is not None
    assert result.counterexample.dimension == "events"


def test_the_order_of_effects_is_compared() -> None:
    source = """
    SEC("xdp") int acts(struct xdp_md *ctx)
    {{ bpf_printk("{a}"); bpf_printk("{b}"); return 2; }}"""
    original, other = (compiled(source.format(a=a, b=b)) for a, b in ("xy", "yx"))
    patched, intent = link_of(other, index=0)
    result = check_dynamic(original, patched, intent, [builtin()])
    assert result.counterexample is not None
    assert result.counterexample.dimension == "order"


def test_a_lost_map_is_a_difference() -> None:
    patched, intent = link_of(corpus("always_pass"), index=0)
    intent_other = intent_of(link_of(corpus("always_pass"), index=0)[0], "always_pass")
    source = """
    struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, __u32);
             __type(value, __u64); } seen SEC(".maps");
    SEC("xdp") int always_pass(struct xdp_md *ctx)
    {
        __u32 zero = 0;
        return bpf_map_lookup_elem(&seen, &zero) ? 2 : 1;
    }"""
    result = check_dynamic(compiled(source), patched, intent_other, [builtin()])
    assert intent == intent_other
    assert result.outcome is Outcome.NOT_EQUAL
    assert "the patched object has no map seen" in [f.message for f in result.findings]
