"""Programs that do not end, fault or are too large, and recordings of which nothing can be run: one
clear line each, and never equal."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bpfchain.transform.errors import BpfchainError, InconclusiveError, OptionError, UsageError
from bpfchain.verify.captures import to_pcap
from bpfchain.verify.dynamic import check_dynamic
from bpfchain.verify.recording import Recording, read_recording
from bpfchain.verify.result import DynamicResult, Outcome
from support.proofs import builtin, compiled, corpus, link_of


def prove(data: bytes, recordings: list[Recording] | None = None, **more: object) -> DynamicResult:
    patched, intent = link_of(data, index=0)
    return check_dynamic(
        data, patched, intent, [builtin()] if recordings is None else recordings, **more  # type: ignore[arg-type]
    )  # fmt: skip


def recording(folder: Path, *frames: bytes, link_type: int = 1) -> Recording:
    path = folder / "some.pcap"
    path.write_bytes(to_pcap(frames, [0] * len(frames), link_type))
    return read_recording(path)


ENDLESS = """
SEC("xdp") int endless(struct xdp_md *ctx)
{
    __u64 n = ctx->data_end - ctx->data;
    if (n > LEAST)
        for (;;)
            asm volatile("%0 += 1" : "+r"(n));
    return 2;
}"""


@pytest.mark.parametrize("least", [0, 3000])
def test_a_program_that_never_ends(least: int) -> None:
    """Also where it does so on few packets only; and it does not take forever to say."""
    begun = time.monotonic()
    result = prove(compiled(ENDLESS, (f"-DLEAST={least}",)))
    assert result.outcome is Outcome.INCONCLUSIVE
    assert result.findings[0].rule == "endless"
    message = result.findings[0].message
    assert message.startswith("the original does not end (more than 1000000 instructions): packet ")
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return *(__u64 *)8;", "read of 8 bytes out of bounds"),
        ("*(volatile __u32 *)(long)(ctx->data_end) = 1; return 2;", "write of 4 bytes"),
        ("return bpf_map_lookup_elem((void *)8, ctx) != 0;", "fault"),
    ],
)
def test_an_original_that_faults(body: str, says: str) -> None:
    result = prove(compiled(f'SEC("xdp") int wild(struct xdp_md *ctx) {{ {body} }}'))
    assert result.outcome is Outcome.INCONCLUSIVE
    (finding,) = {f.message: f for f in result.findings}.values()
    assert finding.message.startswith("the original itself faults: packet 0 of builtin, and on ")
    assert says in finding.message
    assert finding.place is not None
    assert (finding.place.file, finding.place.section) == ("in", "xdp")


@pytest.mark.parametrize("engine", ["ubpf", "ubpf-jit"])
def test_an_original_that_faults_on_some_packets(engine: str) -> None:
    """The others are still compared."""
    source = """
    SEC("xdp") int some(struct xdp_md *ctx)
    {
        __u8 *data = (void *)(long)ctx->data;
        return data[60] > 16 ? 1 : 2;
    }"""
    result = prove(compiled(source), engine=engine)
    assert result.packets == sum(result.codes.values()) + _faulted(result)
    if engine == "ubpf":  # the JIT checks no bounds: it reads what lies behind a short frame
        assert result.outcome is Outcome.INCONCLUSIVE
        assert set(result.codes) == {"DROP", "PASS"}


def _faulted(result: DynamicResult) -> int:
    words = [f.message for f in result.findings if f.rule == "fault"]
    counts = [int(text.split("and on ")[1].split()[0]) + 1 for text in words if "and on" in text]
    return sum(counts)


WILD = """
SEC("xdp") int wild(struct xdp_md *ctx)
{
    return ctx->data_end - ctx->data > 60 ? *(__u64 *)8 : 2;
}"""


def test_a_crash_under_the_jit_is_a_fault() -> None:
    """In a child: this process goes on, and the packet that did it is named."""
    result = prove(compiled(WILD), engine="ubpf-jit")
    assert result.outcome is Outcome.INCONCLUSIVE
    (finding,) = result.findings
    first = next(n for n, packet in enumerate(builtin().packets) if len(packet) > 60)
    assert finding.message == (
        f"the original itself faults: packet {first} of builtin: the JIT's process died of SIGSEGV"
    )


@pytest.mark.parametrize("engine", ["ubpf", "ubpf-jit"])
def test_only_the_patched_program_faults(engine: str) -> None:
    sound = compiled('SEC("xdp") int wild(struct xdp_md *ctx) { return 2; }')
    patched, intent = link_of(compiled(WILD), index=0)
    result = check_dynamic(sound, patched, intent, [builtin()], engine=engine)
    assert result.outcome is Outcome.NOT_EQUAL
    assert result.counterexample is not None
    assert result.counterexample.dimension == "fault"
    assert len(result.counterexample.data) == 61


HUGE = """
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1 << 20); __type(key, __u32);
         __type(value, char[4096]); } huge SEC(".maps");
SEC("xdp") int reads(struct xdp_md *ctx)
{
    __u32 zero = 0;
    return bpf_map_lookup_elem(&huge, &zero) ? 2 : 1;
}"""


def test_a_map_of_four_gigabytes() -> None:
    with pytest.raises(InconclusiveError) as caught:
        prove(compiled(HUGE))
    assert caught.value.message.startswith("map huge: 1048576 entries of 4096 bytes")
    assert caught.value.hint == "run it with --engine kernel"


def test_no_packet_that_the_hook_takes(tmp_path: Path) -> None:
    result = prove(corpus("filter"), [recording(tmp_path, bytes(5), bytes(13))])
    assert result.outcome is Outcome.INCONCLUSIVE
    (finding,) = result.findings
    assert finding.message == f"no packet of {tmp_path}/some.pcap could be run"
    assert finding.hint == "2 packets: shorter than an Ethernet header (14 bytes)"
    (use,) = result.corpora
    assert use.skipped == (("shorter than an Ethernet header (14 bytes)", 2),)
    assert result.dimensions == {}


def test_no_recording() -> None:
    result = prove(corpus("filter"), [])
    assert result.outcome is Outcome.INCONCLUSIVE
    assert result.findings[0].message == "no packet of no recording could be run"


def test_a_capture_that_does_not_fit_the_hook(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs Ethernet frames"):
        prove(corpus("filter"), [recording(tmp_path, bytes(40), link_type=101)])


def test_frames_longer_than_a_page(tmp_path: Path) -> None:
    """XDP runs on them, in fragments; an skb's test run does not take them: skipped, and counted."""
    long = recording(tmp_path, bytes(9000), bytes(64))
    assert prove(corpus("filter"), [long]).packets == 2
    result = prove(corpus("tc_unspec"), [long])
    assert result.packets == 1
    (use,) = result.corpora
    assert use.skipped == (("longer than a test run of an skb takes (3712 bytes)", 1),)


def test_a_patched_object_that_does_not_load() -> None:
    data = corpus("filter")
    patched, intent = link_of(data, index=0)
    broken = patched.replace(b"\x85\x00\x00\x00\x0c\x00\x00\x00", b"\xff" * 8, 1)
    assert broken != patched
    result = check_dynamic(data, broken, intent, [builtin()])
    assert result.outcome is Outcome.NOT_EQUAL
    assert result.findings[0].rule == "load"
    assert "the patched object does not load, the original does" in result.findings[0].message


def test_an_original_that_does_not_link() -> None:
    data = corpus("filter")
    patched, intent = link_of(data, index=0)
    result = check_dynamic(corpus("metrics"), patched, intent, [builtin()])
    assert result.outcome is Outcome.INCONCLUSIVE
    assert "the original does not load" in result.findings[0].message


def test_big_endian_objects_are_said_not_to_run() -> None:
    from support.proofs import PROGRAMS

    data = (PROGRAMS / "eb" / "filter.o").read_bytes()
    patched, intent = link_of(data, index=0)
    with pytest.raises(InconclusiveError, match="big-endian"):
        check_dynamic(data, patched, intent, [builtin()])


def test_an_engine_that_does_not_exist() -> None:
    patched, intent = link_of(corpus("filter"), index=0)
    with pytest.raises(OptionError, match="no engine named 'xbpf'"):
        check_dynamic(corpus("filter"), patched, intent, [builtin()], engine="xbpf")


def test_errors_are_single_lines() -> None:
    for source in (HUGE,):
        with pytest.raises(BpfchainError) as caught:
            prove(compiled(source))
        assert "\n" not in caught.value.message
