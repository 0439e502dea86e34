"""Scenarios: the published schema, what is written and read, and every way to get one wrong."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfchain.loader.programs import load_raw
from bpfchain.loader.uapi import ProgType
from bpfchain.transform.errors import RefusedError, UsageError
from bpfchain.transform.policy import HOOKS, hook_named
from bpfchain.verify.contexts import PLAIN_BYTES, SkbContext, XdpContext, kind_of, plain_contexts
from bpfchain.verify.helper_answers import HELPERS, Answers, FibAnswer
from bpfchain.verify.scenario import MapEntry, Scenario, scenario_beside, schema_text

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads(schema_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

EXAMPLE: dict[str, Any] = {
    "version": 1,
    "description": "two interfaces, a blocked port",
    "contexts": {
        "xdp": [{"ingress_ifindex": 2, "rx_queue_index": 1}, {}],
        "skb": [{"mark": 7, "priority": 1, "cb": [1, 2, 3, 4, 5], "tstamp": 99}],
        "raw": ["00 11 22 33 44 55 66 77", "ffffffffffffffff"],
    },
    "maps": {
        "blocked": [{"key": 443, "value": 1}, {"key": "bb01", "value": [1, 0, 0, 0]}],
        ".data": [{"key": 0, "value": -1}],
    },
    "answers": {
        "time_base": 1_000_000_000, "time_step": "0x10", "seed": 42, "cpu": 1, "pid": 10, "tgid": 9,
        "uid": 1000, "gid": 100, "comm": "curl",
        "fib_lookup": [{"result": 0, "params": "02" * 64}, {"result": 4}],
        "helpers": {"get_socket_cookie": 77, "check_mtu": "0102", "get_prandom_u32": ["0a", 11]},
    },
    "kconfig": {"CONFIG_HZ": 250, "CONFIG_DEFAULT_HOSTNAME": "none"},
    "ksyms": {"bpf_prog_active": "0xffffffff82a00000", "jiffies": 4096},
    "memory": [{"address": "0xffff888000000000", "bytes": "0102 0304"}],
    "times": [1, "2", "0x3"],
}  # fmt: skip


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_an_example_with_everything() -> None:
    VALIDATOR.validate(EXAMPLE)
    scenario = Scenario.from_dict(EXAMPLE)
    assert scenario.xdp == (XdpContext(ingress_ifindex=2, rx_queue_index=1), XdpContext())
    assert scenario.skb == (SkbContext(mark=7, priority=1, cb=(1, 2, 3, 4, 5), tstamp=99),)
    assert scenario.raw == (bytes.fromhex("0011223344556677"), b"\xff" * 8)
    assert scenario.maps["blocked"] == (MapEntry(443, 1), MapEntry(b"\xbb\x01", b"\1\0\0\0"))
    assert scenario.answers.fib_lookup == (FibAnswer(0, b"\x02" * 64), FibAnswer(4))
    assert scenario.answers.time_step == 16
    assert scenario.ksyms == {"bpf_prog_active": 0xFFFFFFFF82A00000, "jiffies": 4096}
    assert scenario.memory == {0xFFFF888000000000: b"\1\2\3\4"}
    assert scenario.times == (1, 2, 3)
    assert set(EXAMPLE) == set(SCHEMA["properties"])  # the example leaves nothing out
    assert set(EXAMPLE["answers"]) == set(SCHEMA["properties"]["answers"]["properties"])


def test_what_is_read_is_written_again() -> None:
    scenario = Scenario.from_dict(EXAMPLE)
    VALIDATOR.validate(scenario.to_dict())
    assert Scenario.from_json(scenario.to_json(), "x") == scenario
    assert Scenario().to_dict() == {"version": 1}
    assert Scenario.from_dict({"version": 1}) == Scenario()


U32, U64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
NAMES = st.from_regex(r"[A-Za-z0-9_.$]{1,10}", fullmatch=True)
CONTENTS = st.one_of(st.binary(max_size=9), st.integers(-(1 << 63), (1 << 64) - 1))
SCENARIOS = st.builds(
    Scenario,
    description=st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20),
    xdp=st.lists(st.builds(XdpContext, ingress_ifindex=U32, rx_queue_index=U32)).map(tuple),
    skb=st.lists(
        st.builds(SkbContext, mark=U32, cb=st.tuples(*[U32] * 5), tstamp=U64, hash=U32,
                  gso_size=st.integers(0, 0xFFFF))
    ).map(tuple),
    raw=st.lists(st.binary(min_size=8, max_size=8)).map(tuple),
    maps=st.dictionaries(
        NAMES, st.lists(st.builds(MapEntry, CONTENTS, CONTENTS), min_size=1, max_size=3).map(tuple)
    ),
    answers=st.builds(
        Answers, time_base=U64, seed=U64, pid=U32, comm=st.from_regex(r"[ -~]{0,15}", fullmatch=True),
        fib_lookup=st.lists(
            st.builds(FibAnswer, st.integers(-4095, 4095), st.none() | st.binary(min_size=64, max_size=64))
        ).map(tuple),
        helpers=st.dictionaries(
            st.sampled_from(["get_numa_node_id", "skb_cgroup_id"]),
            st.one_of(U64, st.binary(), st.lists(st.binary(), min_size=1).map(tuple)),
        ),
    ),
    kconfig=st.dictionaries(NAMES, st.one_of(U64, st.sampled_from(["", "y", "some text"]))),
    ksyms=st.dictionaries(NAMES, U64),
    memory=st.dictionaries(st.sampled_from([0, 4096, 1 << 63]), st.binary(min_size=1, max_size=64)),
    times=st.lists(U64).map(tuple),
)  # fmt: skip


@given(SCENARIOS)
def test_any_scenario_is_read_as_it_was_written(scenario: Scenario) -> None:
    document = json.loads(scenario.to_json())
    VALIDATOR.validate(document)
    assert Scenario.from_dict(document) == scenario


def changed(path: str, value: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(EXAMPLE))
    at: Any = document
    *steps, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    for step in steps:
        at = at[step]
    at[last] = value
    return document


WRONG: list[tuple[str, Any, str]] = [
    ("version", 2, "in 'version': 2 is unknown, this bpfchain reads 1"),
    ("maps_", {}, "in 'maps_': no such key"),
    ("description", "a\nb", "in 'description': expected text without control characters"),
    ("contexts/xdp/0/ingress_ifindex", -1, "in 'contexts.xdp[0].ingress_ifindex': -1 is outside 0..4294967295"),
    ("contexts/xdp/0/ifindex", 1, "in 'contexts.xdp[0].ifindex': no such key"),
    ("contexts/xdp", [], "in 'contexts.xdp': is empty: leave it out for the defaults"),
    ("contexts/skb/0/len", 60, "in 'contexts.skb[0].len': no such key"),
    ("contexts/skb/0/cb", [1, 2], "in 'contexts.skb[0].cb': expected five integers of 32 bits"),
    ("contexts/skb/0/gso_size", 65536, "in 'contexts.skb[0].gso_size': 65536 is outside 0..65535"),
    ("contexts/raw/1", "ff", "in 'contexts.raw[1]': all contexts have one length, and it is not 0"),
    ("contexts/raw/0", "fff", "in 'contexts.raw[0]': expected bytes as pairs of hexadecimal digits, with or without spaces"),
    ("maps/blocked", [], "in 'maps.blocked': is empty: leave the map out"),
    ("maps/blocked/0/key", "xyz", "in 'maps.blocked[0].key': expected bytes as pairs of"),
    ("maps/blocked/0/key", True, "in 'maps.blocked[0].key': expected a hexadecimal text, a list of bytes or an integer"),
    ("maps/blocked/0/key", [256], "in 'maps.blocked[0].key': expected integers from 0 to 255"),
    ("maps/blocked/0/value", 1 << 64, "in 'maps.blocked[0].value': does not fit 64 bits: write it as bytes"),
    ("maps/blocked/0/flags", 1, "in 'maps.blocked[0].flags': no such key"),
    ("maps/a b", [{"key": 1, "value": 1}], "in 'maps.a b': expected a name of letters, digits, '_', '.' or '$'"),
    ("answers/time_base", 1 << 64, "in 'answers.time_base': is outside 0..0xffffffffffffffff"),
    ("answers/pid", 1 << 32, "in 'answers.pid': is outside 0..0xffffffff"),
    ("answers/comm", "sixteen bytes ok", "in 'answers.comm': expected a name of at most 15 bytes"),
    ("answers/fib_lookup/0/params", "00", "in 'answers.fib_lookup[0].params': has 1 bytes, struct bpf_fib_lookup has 64"),
    ("answers/helpers/bpf_ktime_get_ns", 1, "in 'answers.helpers.bpf_ktime_get_ns': is no helper whose answers can be recorded here"),
    ("answers/helpers/get_prandom_u32", [], "in 'answers.helpers.get_prandom_u32': is empty"),
    ("kconfig/CONFIG_HZ", -1, "in 'kconfig.CONFIG_HZ': -1 is outside"),
    ("ksyms/jiffies", "jiffies", "in 'ksyms.jiffies': expected an integer, or a text such as 0xffff888000000000"),
    ("memory/0/bytes", "", "in 'memory[0].bytes': is empty"),
    ("memory/0/address", (1 << 64) - 1, "in 'memory[0].bytes': ends beyond the last address"),
    ("times/1", None, "in 'times[1]': expected an integer, or a text such as"),
]  # fmt: skip
BEYOND_THE_SCHEMA = ("contexts.raw[1]", "memory[0].bytes': ends")
"""Rules that span values: bpfchain checks them, the schema cannot."""


@pytest.mark.parametrize(("path", "value", "message"), WRONG, ids=[w[2][:60] for w in WRONG])
def test_what_is_wrong_is_refused_with_its_path(path: str, value: Any, message: str) -> None:
    document = changed(path, value)
    with pytest.raises(RefusedError) as caught:
        Scenario.from_dict(document)
    assert caught.value.message.startswith(message)
    assert VALIDATOR.is_valid(document) == any(rule in message for rule in BEYOND_THE_SCHEMA)


def test_overlapping_memory_is_refused() -> None:
    memory = [{"address": 16, "bytes": "00112233"}, {"address": 18, "bytes": "00"}]
    with pytest.raises(RefusedError, match=r"in 'memory\[1\].address': overlaps what is at 0x10"):
        Scenario.from_dict({"version": 1, "memory": memory})


def test_a_file_that_is_no_json_names_itself() -> None:
    with pytest.raises(RefusedError, match=r"^x.scenario.json: is not JSON: .* line 1 column 2"):
        Scenario.from_json(b"{", "x.scenario.json")


def test_seeds_take_the_maps_sizes_and_byte_order() -> None:
    scenario = Scenario(
        maps={"m": (MapEntry(443, -2), MapEntry(b"\1\2", b"\1\2\3\4")), "other": (MapEntry(1, 1),)}
    )
    assert scenario.seeds({"m": (2, 4)}) == (
        ("m", b"\xbb\x01", b"\xfe\xff\xff\xff"), ("m", b"\1\2", b"\1\2\3\4"),
    )  # fmt: skip
    assert scenario.seeds({"m": (2, 4)}, "big")[0] == ("m", b"\x01\xbb", b"\xff\xff\xff\xfe")
    assert scenario.unknown_maps(["m", "n"]) == ("other",)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (MapEntry(256, 0), "scenario: key of entry 0 of map m is 256, which 1 bytes do not hold"),
        (
            MapEntry(0, -129),
            "scenario: value of entry 0 of map m is -129, which 1 bytes do not hold",
        ),
        (MapEntry(b"ab", 0), "scenario: key of entry 0 of map m has 2 bytes, the map's have 1"),
    ],
)
def test_seeds_that_do_not_fit(entry: MapEntry, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Scenario(maps={"m": (entry,)}).seeds({"m": (1, 1)})
    assert caught.value.message == message


def test_kconfig_as_memory() -> None:
    scenario = Scenario(kconfig={"A": 0, "B": 250, "C": 0x1_0000, "D": "text"})
    assert scenario.kconfig_bytes() == {
        "A": b"\0", "B": b"\xfa", "C": b"\0\0\1", "D": b"text",
    }  # fmt: skip


def test_answers_by_helper() -> None:
    found = Scenario.from_dict(EXAMPLE).answers.by_helper()
    assert found["get_current_pid_tgid"] == 9 << 32 | 10
    assert found["get_current_uid_gid"] == 100 << 32 | 1000
    assert found["get_current_comm"] == b"curl" + bytes(12)
    assert found["get_smp_processor_id"] == 1
    assert found["fib_lookup"] == (bytes(8) + b"\x02" * 64, b"\x04" + bytes(7))
    assert found["get_socket_cookie"] == 77
    assert found["get_prandom_u32"] == (b"\x0a", b"\x0b" + bytes(7))


def test_the_helpers_are_those_that_the_emulator_asks_for() -> None:
    """Also those with keys of their own: what is read must be what is used."""
    source = (ROOT / "emulator/native/src/helpers/answers.rs").read_text()
    listed = source.split("const NAMES", 1)[1].split("= [", 1)[1].split("]", 1)[0]
    known = set(re.findall(r'"(\w+)"', listed))
    assert set(HELPERS) | {"fib_lookup", "ktime_step_ns"} == known
    assert Scenario.from_dict(EXAMPLE).answers.by_helper().keys() <= known


def test_a_scenario_lies_beside_its_capture() -> None:
    assert scenario_beside(Path("a/x.pcap")) == Path("a/x.scenario.json")
    assert scenario_beside(Path("x.y.pcapng")) == Path("x.y.scenario.json")


SKB_FIELDS = {"mark": 8, "priority": 32, "ingress_ifindex": 36, "ifindex": 40, "tstamp": 152,
              "wire_len": 160, "gso_segs": 164, "gso_size": 176, "hwtstamp": 184}  # fmt: skip


@pytest.mark.usefixtures("kernel")
def test_the_kernel_takes_skb_contexts_and_reads_the_same() -> None:
    """Field by field: what a scenario says is what a program loads at the field's offset."""
    frame = bytes(12) + b"\x88\xb5" + bytes(86)
    given = dict.fromkeys(SKB_FIELDS, 1) | {"mark": 0xABCD, "priority": 3, "wire_len": 1000}
    given |= {"tstamp": 0x1234, "gso_size": 500, "hwtstamp": 0x777}
    context = SkbContext(**given)  # type: ignore[arg-type]
    assert context.not_in_test_runs == ()
    for name, at in SKB_FIELDS.items():
        wide = name in ("tstamp", "hwtstamp")
        load = struct.pack("<BBhi", 0x79 if wide else 0x61, 0x10, at, 0)
        with load_raw(ProgType.SCHED_CLS, load + bytes.fromhex("9500000000000000")) as program:
            assert program.test_run(frame, context.pack()).retval == given[name], name


@pytest.mark.usefixtures("kernel")
def test_default_contexts_are_the_kernels() -> None:
    frame = bytes(60)
    for kind, at in ((ProgType.SCHED_CLS, range(8, 76, 4)), (ProgType.XDP, (12, 16))):
        default = SkbContext().pack() if kind == ProgType.SCHED_CLS else XdpContext().pack()
        for offset in at:
            if kind == ProgType.SCHED_CLS and offset == 16:
                continue  # protocol: it follows from the frame
            load = struct.pack("<BBhi", 0x61, 0x10, offset, 0)
            with load_raw(kind, load + bytes.fromhex("9500000000000000")) as program:
                expected = struct.unpack_from("<I", default, offset)[0]
                assert program.test_run(frame).retval == expected, (kind, offset)


def test_fields_that_no_test_run_takes_are_told() -> None:
    assert SkbContext(mark=1, hash=5, vlan_tci=1).not_in_test_runs == ("vlan_tci", "hash")


@pytest.mark.parametrize("hook", [h for h in HOOKS if kind_of(h) == "plain"], ids=lambda h: h.name)
def test_plain_contexts(hook: Any) -> None:
    for size in (0, 8, 300, 301):
        contexts = plain_contexts(hook, size)
        assert len(set(contexts)) == len(contexts) >= 8
        (length,) = {len(context) for context in contexts}
        assert length >= max(size, PLAIN_BYTES[hook.context])
        assert length % 8 == 0
        assert bytes(length) in contexts
        assert b"\xff" * length in contexts
    assert plain_contexts(hook) == plain_contexts(hook)


def test_socket_contexts_lie_as_the_header_says() -> None:
    """Offsets from <linux/bpf.h>, not from the code under test."""
    seen = {
        (struct.unpack_from("<I", c, 28)[0], struct.unpack_from(">H", c, 24)[0])
        for c in plain_contexts(hook_named("cgroup/connect4"))
    }
    assert {(2, 443), (10, 53)} <= seen
    socks = plain_contexts(hook_named("cgroup/sock_create"))
    assert {(2, 443), (10, 53)} <= {
        (struct.unpack_from("<I", c, 4)[0], struct.unpack_from(">H", c, 48)[0]) for c in socks
    }
    lookups = plain_contexts(hook_named("sk_lookup"))
    assert {(2, 443), (10, 53)} <= {
        (struct.unpack_from("<I", c, 8)[0], struct.unpack_from("<I", c, 60)[0]) for c in lookups
    }
    messages = plain_contexts(hook_named("sk_msg"))
    assert {(2, 64), (10, 64)} <= {
        (struct.unpack_from("<I", c, 16)[0], struct.unpack_from("<I", c, 68)[0]) for c in messages
    }
    registers = plain_contexts(hook_named("kprobe"))
    assert any(struct.unpack_from("<QQ", c, 104) == (1, 0x246) for c in registers)  # si, di
