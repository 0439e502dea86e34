"""Whole chains beside the composed reference: sound ones are equal, damaged ones are found, and ones
that are not whole are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bpfchain.emulator.link import link_object
from bpfchain.transform.elf_read import read_object
from bpfchain.transform.errors import RefusedError
from bpfchain.transform.manifest import Share, SharedMap
from bpfchain.verify.engines import ENGINES
from bpfchain.verify.recording import read_recording
from bpfchain.verify.reference import chain_result
from bpfchain.verify.result import ChainResult, Outcome
from bpfchain.verify.tail_budget import check_budget, own_attempts
from bpfchain.verify.whole import ChainLink, check_chain, share_of
from support.proofs import builtin, compiled, corpus, link_of


def chain(
    originals: Sequence[bytes], *, redirect: str | None = None, mode: str = "slots",
    last: bool = True, **more: Any,
) -> list[ChainLink]:  # fmt: skip
    links, saved = [], set[int]()
    for index, data in enumerate(originals):
        options = dict(more)
        if mode == "slots" and index:
            options["saved"] = ",".join(map(str, sorted(saved))) or None
        if data == corpus("tailcall_values"):
            options["program"] = "entry"  # the others are its targets
        patched, intent = link_of(
            data, index=index, redirect=redirect, saved_code=mode,
            last=last and index == len(originals) - 1, **options,
        )  # fmt: skip
        saved |= set(intent.redirect)
        links.append(
            ChainLink(original=data, patched=patched, intent=intent, name=f"link{index}.o")
        )
    return links


def prove(links: Sequence[ChainLink], **more: Any) -> ChainResult:
    return check_chain(links, more.pop("recordings", [builtin()]), **more)


def byte_program(place: int, name: str = "byte") -> bytes:
    """Its code comes from bytes of the frame; it changes another byte."""
    return compiled(
        f"""
    SEC("xdp") int {name}(struct xdp_md *ctx)
    {{
        __u8 *data = (void *)(long)ctx->data;
        __u32 more = 0;
        if ((void *)(data + 14) > (void *)(long)ctx->data_end)
            return 0;
        data[5] += data[{place}] + {place};
        if ((void *)(data + 34) <= (void *)(long)ctx->data_end)
            more = data[17] + data[23] + data[33];
        return (__u32)(data[{place}] + data[13] + more) % 6;
    }}"""
    )


CHAINS: dict[str, tuple[list[bytes], dict[str, Any]]] = {
    "thesis": ([corpus("filter"), corpus("metrics"), corpus("log")], {}),
    "thesis, codes saved": (
        [corpus("filter"), corpus("metrics"), corpus("log")], {"redirect": "TX,REDIRECT"},
    ),
    "bytes": ([byte_program(n) for n in (0, 5, 11)], {"redirect": "TX,DROP"}),
    "bytes, subprog": (
        [byte_program(n) for n in (0, 5, 11)], {"redirect": "TX,DROP", "strategy": "subprog"},
    ),
    "bytes, code in a map": (
        [byte_program(n) for n in (0, 5, 11)], {"redirect": "TX,DROP", "mode": "map"},
    ),
    "extensible": ([byte_program(n) for n in (0, 5)], {"redirect": "TX", "last": False}),
    "one link": ([byte_program(0)], {"redirect": "TX"}),
    "resized frames": ([corpus("xdp_adjust"), corpus("metrics"), byte_program(5)], {}),
    "effects": ([corpus("printk"), corpus("log_perf"), corpus("xdp_redirect")], {}),
    "own tail calls": ([byte_program(0), corpus("tailcall_values")], {"strategy": "subprog"}),
}  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CHAINS)
def test_sound_chains_are_equal(name: str, engine: str, kernel: None) -> None:
    originals, options = CHAINS[name]
    links = chain(originals, **options)
    result = prove(links, engine=engine, name="edge")
    assert result.dynamic.findings == ()
    assert result.dynamic.outcome is Outcome.EQUAL
    assert result.name == "edge"
    assert result.dynamic.packets > 400
    assert sum(result.verdicts.values()) == result.dynamic.packets
    assert all(mine == theirs for mine, theirs in result.verdicts)
    assert result.reached[0] == result.dynamic.packets
    assert list(result.reached) == list(range(len(links)))


def test_the_verdicts_are_the_references() -> None:
    """Counted beside a second composition: Python's own of what the programs do with bytes."""
    places = (0, 5, 11)
    links = chain([byte_program(n) for n in places], redirect="TX,DROP")
    result = prove(links)
    verdicts: dict[str, int] = {}
    reached = [0, 0, 0]
    for packet in builtin().inputs(links[0].intent.hook).packets:
        data = bytearray(packet)

        def run(index: int, data: bytearray = data) -> int:
            place = places[index]
            data[5] = (data[5] + data[place] + place) & 0xFF
            more = data[17] + data[23] + data[33] if len(data) >= 34 else 0
            return (data[place] + data[13] + more) % 6

        sets = [({2}, {3, 1})] * 3
        code, count = chain_result(sets, run)
        name = links[0].intent.hook.name_of(code)
        verdicts[name] = verdicts.get(name, 0) + 1
        for index in range(count):
            reached[index] += 1
    assert {mine: count for (mine, _), count in result.verdicts.items()} == verdicts
    assert [result.reached[n] for n in range(3)] == reached
    assert len(verdicts) >= 5
    assert min(reached) > 50


MOV_R3, CALL_12 = b"\xb7\x03\x00\x00", b"\x85\x00\x00\x00\x0c\x00\x00\x00"


def slot(number: int) -> bytes:
    return MOV_R3 + number.to_bytes(4, "little")


DAMAGE = {
    "another slot": (1, slot(2), slot(3)),
    "its own slot": (1, slot(2), slot(1)),
    "no tail call": (0, CALL_12, b"\xb7\x00\x00\x00" + bytes(4)),
    "the body": (2, b"\x00\x00\x06\x00\x00\x00", b"\x00\x00\x05\x00\x00\x00"),
}
"""Link, instruction (or its end), what it becomes: the modulus is the only 6 in the code."""


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_chains_are_found(name: str, tmp_path: Path) -> None:
    index, sound, damaged = DAMAGE[name]
    links = chain([byte_program(n) for n in (0, 5, 11)])
    code = read_object(links[index].patched).section("xdp")
    assert code is not None
    assert sound in code.data
    patched = links[index].patched.replace(code.data, code.data.replace(sound, damaged, 1))
    broken = [*links]
    broken[index] = ChainLink(
        original=links[index].original, patched=patched, intent=links[index].intent
    )
    saved = tmp_path / "chain.pcapng"
    result = prove(broken, save_to=saved)
    assert result.dynamic.outcome is Outcome.NOT_EQUAL
    example = result.dynamic.counterexample
    assert example is not None
    assert example.before == ()
    assert sum(map(bool, example.data)) <= 3
    again = prove(broken, recordings=[read_recording(saved)])
    assert again.dynamic.outcome is Outcome.NOT_EQUAL
    assert prove(links, recordings=[read_recording(saved)]).dynamic.outcome is Outcome.EQUAL


SHARED = """
struct {{ __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, __u32);
         __type(value, __u64); }} seen SEC(".maps");
SEC("xdp") int shares(struct xdp_md *ctx)
{{
    __u32 zero = 0;
    __u64 *count = bpf_map_lookup_elem(&seen, &zero);
    if (!count)
        return 0;
    *count += {step};
    return *count % 3 ? 2 : 1;
}}"""


@pytest.mark.parametrize("engine", ENGINES)
def test_shared_maps_are_one_map(engine: str, kernel: None) -> None:
    """With one map for both links the packets must be composed one by one."""
    links = chain([compiled(SHARED.format(step=n)) for n in (1, 4)])
    one = Share(map="seen", links=(SharedMap(index=0, map="seen"), SharedMap(index=1, map="seen")))
    together = prove(links, engine=engine, share=share_of([one]))
    apart = prove(links, engine=engine)
    assert together.dynamic.outcome is apart.dynamic.outcome is Outcome.EQUAL
    assert together.verdicts != apart.verdicts
    # what the chain gives with a shared map, computed here
    count, drops = 0, 0
    for _ in range(together.dynamic.packets):
        for step in (1, 4):
            count += step
            if count % 3 == 0:
                drops += 1
                break
    assert together.verdicts["DROP", "DROP"] == drops


def test_answers_in_another_order_are_not_compared() -> None:
    source = 'SEC("xdp") int chance(struct xdp_md *ctx) { return bpf_get_prandom_u32() & 3; }'
    result = prove(chain([compiled(source), compiled(source)]))
    assert result.dynamic.outcome is Outcome.UNMODELLED
    assert "bpf_get_prandom_u32" in result.dynamic.findings[0].message
    # one link alone that asks is compared
    mixed = prove(chain([corpus("metrics"), compiled(source), corpus("log")]))
    assert mixed.dynamic.outcome is Outcome.EQUAL
    assert len(mixed.verdicts) == 4


def test_hooks_without_packets_run_on_contexts() -> None:
    verdict = corpus("verdict_kprobe")
    links = chain([verdict, verdict], program="verdict_kprobe")
    result = prove(links)
    assert result.dynamic.outcome is Outcome.EQUAL
    assert result.dynamic.packets >= 8
    assert result.reached[1] == result.dynamic.packets


def test_what_is_not_modelled_is_said() -> None:
    result = prove(chain([corpus("always_pass"), corpus("ksyms_weak")]))
    assert result.dynamic.outcome is Outcome.UNMODELLED
    assert result.dynamic.unmodelled == ("kernel function bpf_rcu_read_lock",)


# chains that are not whole


def refusal(links: Sequence[ChainLink], **more: Any) -> str:
    with pytest.raises(RefusedError) as caught:
        prove(links, **more)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_gaps_and_doubles_are_refused() -> None:
    links = chain([byte_program(n) for n in (0, 5, 11)])
    assert "no link 1" in refusal([links[0], links[2]])
    assert "no link 0" in refusal(links[1:])
    assert "no link 1" in refusal([links[0], links[0], links[1]])
    assert refusal([]) == "the chain has no links"


def test_slots_that_are_reachable_and_not_filled_are_refused() -> None:
    first = chain([byte_program(0)], redirect="TX", last=False)[0]
    patched, intent = link_of(byte_program(5), index=1)
    second = ChainLink(original=byte_program(5), patched=patched, intent=intent, name="l1.o")
    message = refusal([first, second])
    assert message == (
        "link 1 (l1.o) has no entry for a saved TX, which link 0 (link0.o) can save: "
        "the chain would end there silently"
    )


def test_a_last_link_that_is_not_the_last_is_refused() -> None:
    ends = chain([byte_program(0)])[0]
    patched, intent = link_of(byte_program(5), index=1)
    behind = ChainLink(original=byte_program(5), patched=patched, intent=intent)
    assert "was patched with --last" in refusal([ends, behind])


def test_links_of_several_hooks_are_refused() -> None:
    first = chain([byte_program(0)], last=False)[0]
    patched, intent = link_of(corpus("tc_unspec"), index=1)
    other = ChainLink(original=corpus("tc_unspec"), patched=patched, intent=intent)
    assert "has hook tc, link 0 has xdp" in refusal([first, other])


# tail calls


def test_the_budget() -> None:
    assert check_budget(31, 1, "the chain") == 33
    with pytest.raises(RefusedError, match="can attempt 34 tail calls"):
        check_budget(31, 2, "the chain")
    assert check_budget(32, 0, "the chain") == 33
    with pytest.raises(RefusedError):
        check_budget(33, 0, "the chain")


def test_own_tail_calls_count() -> None:
    assert own_attempts(link_object(corpus("filter")), "filter", "link 0") == 0
    values = own_attempts(link_object(corpus("tailcall_values")), "entry", "link 0")
    assert values >= 1


TAILS = """
int second(struct xdp_md *ctx);
int first(struct xdp_md *ctx);
struct {{ __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 4); __type(key, __u32);
         __array(values, int(void *)); }} next SEC(".maps") = {{ .values = {{ {values} }} }};
SEC("xdp") int second(struct xdp_md *ctx) {{ {second} return 2; }}
SEC("xdp") int first(struct xdp_md *ctx) {{ {first} return 2; }}
"""


def tails(values: str, first: str, second: str) -> int:
    data = compiled(TAILS.format(values=values, first=first, second=second))
    return own_attempts(link_object(data), "first", "link 0")


CALL = "bpf_tail_call(ctx, &next, {});"


def test_the_bound_follows_the_targets() -> None:
    one, two = CALL.format(0), CALL.format(1)
    assert tails("[0] = (void *)&second", one, "") == 1
    assert tails("[0] = (void *)&second", one + two, "") == 2


def test_targets_that_come_back_are_refused() -> None:
    with pytest.raises(RefusedError, match="come back to first"):
        tails("[0] = (void *)&first", CALL.format(0), "")
    with pytest.raises(RefusedError, match="come back to"):
        tails("[0] = (void *)&first, [1] = (void *)&second", CALL.format(1), CALL.format(0))


def test_tail_calls_in_a_loop_are_refused() -> None:
    loop = f"for (__u64 n = ctx->data; n; n--) {{ {CALL.format(0)} }}"
    with pytest.raises(RefusedError, match="is in a loop"):
        tails("[0] = (void *)&second", loop, "")


def test_unknown_targets_are_refused() -> None:
    with pytest.raises(RefusedError, match="where its tail calls through next go is not known"):
        tails("", CALL.format(0), "")


def test_a_chain_of_more_than_the_kernel_follows_is_refused() -> None:
    links = chain([corpus("always_pass")] * 33, last=False)
    assert prove(links).dynamic.outcome is Outcome.EQUAL  # the last of 33 attempts none
    patched, intent = link_of(corpus("tailcall_values"), index=0, program="entry",
                              strategy="subprog")  # fmt: skip
    links[0] = ChainLink(original=corpus("tailcall_values"), patched=patched, intent=intent)
    assert "can attempt 34 tail calls" in refusal(links)
