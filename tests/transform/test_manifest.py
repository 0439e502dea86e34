"""The manifest as a value: its form, what it refuses and where, and whole chains."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings

from bpfchain.transform.chain_check import check_chain, validate_complete
from bpfchain.transform.codes import CodeSet
from bpfchain.transform.errors import RefusedError
from bpfchain.transform.link import Link
from bpfchain.transform.manifest import (
    Manifest,
    ManifestError,
    Share,
    SharedMap,
    new_manifest,
    record_of,
    schema_text,
)
from bpfchain.transform.manifest_link import DEBUG_KINDS, STRATEGIES
from bpfchain.transform.manifest_proof import RESULTS
from bpfchain.transform.policy import hook_named
from bpfchain.transform.request import ALLOWANCES, Cost, EntryProgram, MapUse, Need, Patched
from bpfchain.transform.version import VERSION
from support.manifest_strategies import manifests
from support.manifests import (
    COUNTERS,
    PROOF,
    REDIRECT,
    edge,
    edge_records,
    entries_of,
    make_link,
    make_record,
)

SCHEMA = json.loads(schema_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def document() -> dict[str, Any]:
    """The JSON of a manifest in which every list has an item and every object is there."""
    found: dict[str, Any] = json.loads(json.dumps(edge().to_dict()))
    return found


def at(value: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def changed(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """The document with one place replaced."""
    found = document()
    at(found, path[:-1])[path[-1]] = value
    return found


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value in the document."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    if isinstance(value, list):
        for n, item in enumerate(value):
            yield from places(item, (*path, n))


def refusal(value: Any) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        Manifest.from_dict(value)
    return caught.value


# What the brief of the format says, written down by hand.
LINK_1 = {
    "index": 1,
    "object": "link1.o",
    "input": {"file": "prog.o", "sha256": "0" * 63 + "1"},
    "output": {"sha256": "0" * 61 + "101"},
    "program": "prog",
    "section": "xdp",
    "entries": [
        {"state": None, "program": "prog", "slot": 1},
        # XDP_REDIRECT is the fifth code, so state 5: 5 * 33 + 1
        {"state": {"code": 4, "name": "REDIRECT"}, "program": "prog__redirect", "slot": 166},
    ],
    "strategy": "subprog",
    "why": "cheapest",
    "keep": None,
    "success": [{"code": 2, "name": "PASS"}],
    "redirect": [],
    "saved": [{"code": 4, "name": "REDIRECT"}],
    "last": False,
    "pinned": False,
    "frags": False,
    "instructions": {"before": 42, "after": 60},
    "stack": {"before": 16, "after": None},
    "debug": "dropped",
    "license": "GPL",
    "maps": [
        {"name": "bpfchain_slots", "type": 3, "key_size": 4, "value_size": 4, "max_entries": 264,
         "flags": None},
        {"name": "counters", "type": 6, "key_size": 4, "value_size": 8, "max_entries": 5, "flags": 0},
    ],
    "needs": [
        {"what": "tail calls", "why": "beside subprograms", "kernels": {"arm64": "6.0", "riscv64": None}}
    ],
    "redirects": [],
    "tail_calls": False,
    "allowed": ["stack-residue"],
    "warnings": ["reads 4 bytes of stack before writing them"],
    "verified": {
        "tool": {"name": "bpfchain", "version": "0.4.0"},
        "static": {"result": "equal", "readers": ["pyelftools"]},
        "dynamic": {
            "result": "inconclusive", "engines": ["ubpf", "kernel"],
            "corpora": [{"name": "small.pcap", "sha256": "c" * 64}],
            "packets": 412, "coverage": {"edges": 31, "of": 32}, "seed": 7,
        },
    },
}  # fmt: skip


def test_a_manifest_is_written_as_the_format_says() -> None:
    written = edge().to_dict()
    links = written.pop("links")
    assert written == {
        "version": 1,
        "tool": {"name": "bpfchain", "version": VERSION},
        "chain": "edge",
        "hook": "xdp",
        "attach_type": "BPF_XDP",
        "prog_type": "BPF_PROG_TYPE_XDP",
        "saved_code": "slots",
        "slots": {"map": "bpfchain_slots", "max_entries": 264},
        "extensible": False,
        "share": [
            {
                "map": "all_counters",
                "links": [{"index": 0, "map": "counters"}, {"index": 2, "map": "counters"}],
            }
        ],
    }
    assert [link["index"] for link in links] == [0, 1, 2]
    assert links[1] == LINK_1


@pytest.mark.parametrize(
    ("hook", "codes", "expected"),
    [
        ("xdp", CodeSet.any(), {"any": True}),
        ("xdp", CodeSet(), []),
        ("xdp", CodeSet.of(1, 2), [{"code": 1, "name": "DROP"}, {"code": 2, "name": "PASS"}]),
        (
            "tcx/ingress",
            CodeSet.of(-1, 9),
            [{"code": -1, "name": "NEXT"}, {"code": 9, "name": "9"}],
        ),
        ("socket", CodeSet(((1, 1500),)), [{"from": 1, "to": 1500}]),
        (
            "tc",
            CodeSet.excluding(2, 7),
            {"not": [{"code": 2, "name": "SHOT"}, {"code": 7, "name": "REDIRECT"}]},
        ),
    ],
)
def test_codes_stand_beside_their_names(hook: str, codes: CodeSet, expected: Any) -> None:
    link = make_link(0, hook_named(hook), success=codes)
    manifest = new_manifest("c", make_record(link))
    written = manifest.to_dict()
    assert written["links"][0]["success"] == expected
    VALIDATOR.validate(written)
    assert Manifest.from_dict(written).links[0].link.success == codes


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(manifests())
def test_any_valid_manifest_reads_back_equal_and_fits_the_schema(manifest: Manifest) -> None:
    manifest.validate()
    written = json.loads(json.dumps(manifest.to_dict(), allow_nan=False))
    VALIDATOR.validate(written)
    assert Manifest.from_dict(written) == manifest


def test_the_schema_is_a_schema_and_its_words_are_those_of_the_code() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    link = SCHEMA["$defs"]["link"]["properties"]
    assert tuple(link["strategy"]["enum"]) == STRATEGIES
    assert tuple(link["debug"]["enum"]) == DEBUG_KINDS
    assert tuple(link["allowed"]["items"]["enum"]) == ALLOWANCES
    assert tuple(SCHEMA["$defs"]["result"]["enum"]) == RESULTS


OPEN = {
    ("links", 1, "verified"),
    ("links", 1, "verified", "static"),
    ("links", 1, "verified", "dynamic"),
}
FREE = {("links", 1, "needs", 0, "kernels"), ("links", 1, "verified", "dynamic", "seed")}
"""Where keys are names of architectures, and a key that the format does not know."""


def test_every_key_is_needed_and_no_other_is_taken() -> None:
    whole = document()
    tried = 0
    for path in [(), *places(whole)]:
        found = copy.deepcopy(whole)
        value = at(found, path)
        if not isinstance(value, dict):
            continue
        value["no_such_key"] = 1
        if path in OPEN:
            assert Manifest.from_dict(found).to_dict() == found
        elif path not in FREE:
            refusal(found)
        assert VALIDATOR.is_valid(found) == (path in OPEN), path
        for key in at(whole, path):
            if path in FREE or (*path, key) in FREE:
                continue
            found = copy.deepcopy(whole)
            del at(found, path)[key]
            assert not VALIDATOR.is_valid(found), (path, key)
            refusal(found)
            tried += 1
    assert tried > 150


WRONG: tuple[Any, ...] = (1.5, "\n", {"no": 1}, [[]])


def test_no_value_may_be_of_another_kind() -> None:
    tried = 0
    for path in places(document()):
        if path in FREE or path[:2] == ("links", 2):  # of the same form as link 0
            continue
        for wrong in WRONG:
            found = changed(path, wrong)
            assert not VALIDATOR.is_valid(found), (path, wrong)
            refusal(found)
            tried += 1
    assert tried > 400


def test_true_is_no_integer_and_null_only_where_it_says_something() -> None:
    for path in places(document()):
        value = at(document(), path)
        if path in FREE or value is None or isinstance(value, dict | list):
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            refusal(changed(path, True))
        if path[-1] not in ("key_size", "value_size", "max_entries", "type", "flags", "before",
                            "after", "keep", "arm64", "slots", "file") or path[0] == "slots":  # fmt: skip
            refusal(changed(path, None))


@pytest.mark.parametrize(
    ("path", "value", "message", "hint"),
    [
        (
            ("version",),
            2,
            f"in 'version': 2 is unknown to bpfchain {VERSION}, which reads 1",
            "use the version of bpfchain that wrote the manifest",
        ),
        (("version",), "1", "in 'version': expected an integer, found text", None),
        (("chain",), "a/b", "in 'chain': expected a name of 1 to 64 characters without '/', found 'a/b'",
         None),
        (("hook",), "xpd", "in 'hook': no hook named 'xpd'", "did you mean xdp?"),
        (("attach_type",), None, "in 'attach_type': must be BPF_XDP for hook xdp", None),
        (
            ("prog_type",),
            "BPF_PROG_TYPE_SCHED_CLS",
            "in 'prog_type': must be BPF_PROG_TYPE_XDP for hook xdp",
            None,
        ),
        (
            ("saved_code",),
            "slot",
            "in 'saved_code': 'slot' is not one of slots, map",
            "did you mean slots?",
        ),
        (
            ("slots", "max_entries"),
            528,
            "in 'slots.max_entries': 528 is the table of another version: xdp has 264 slots",
            "patch the links again with one version",
        ),
        (
            ("slots", "map"),
            "chain-slots",
            "in 'slots.map': expected a map name: 1 to 15 letters, digits or '_', found 'chain-slots'",
            None,
        ),
        (("links",), {}, "in 'links': expected a list, found an object", None),
        (("links", 1), None, "in 'links[1]': expected an object, found null", None),
        (("links", 2, "index"), 1, "in 'links[2].entries[0].slot': 2 is another link's or state's slot: "
         "it must be 1", None),
        (("links", 0, "index"), 33, "in 'links[0].index': 33 is outside 0..32", None),
        (
            ("links", 0, "object"),
            "/tmp/x.o",
            "in 'links[0].object': expected a relative path, found '/tmp/x.o'",
            None,
        ),
        (
            ("links", 0, "input", "sha256"),
            "1F",
            "in 'links[0].input.sha256': expected 64 lower-case hexadecimal digits, found '1F'",
            None,
        ),
        (("links", 0, "program"), "other", "in 'links[0].program': the first entry is prog, not the "
         "program", None),
        (
            ("links", 0, "succes"),
            [],
            "in 'links[0].succes': no such key",
            "did you mean success?",
        ),
        (
            ("links", 1, "entries", 1, "slot"),
            "166",
            "in 'links[1].entries[1].slot': expected an integer, found text",
            None,
        ),
        (
            ("links", 1, "entries", 1, "slot"),
            133,
            "in 'links[1].entries[1].slot': 133 is another link's or state's slot: it must be 166",
            None,
        ),
        (
            ("links", 1, "entries", 1, "state"),
            {"code": 1, "name": "DROP"},
            "in 'links[1].entries[1].state': DROP is not in 'saved'",
            None,
        ),
        (
            ("links", 1, "entries", 1, "program"),
            "prog",
            "in 'links[1].entries[1].program': two entries have the name prog",
            None,
        ),
        (
            ("links", 1, "entries"),
            [{"state": None, "program": "prog", "slot": 1}],
            "in 'links[1].entries': there must be one for each state, in this order: none, REDIRECT",
            None,
        ),
        (
            ("links", 0, "success"),
            [{"code": 2, "name": "DROP"}],
            "in 'links[0].success[0].name': code 2 of xdp is PASS, not DROP",
            None,
        ),
        (
            ("links", 0, "success"),
            [{"code": 9, "name": "9"}],
            "in 'links[0].success': 9 is no code of xdp",
            "its codes: ABORTED,DROP,PASS,TX,REDIRECT",
        ),
        (
            ("links", 0, "success"),
            {"any": False},
            "in 'links[0].success.any': can only be true",
            "no code at all is an empty list",
        ),
        (
            ("links", 0, "success"),
            "PASS",
            "in 'links[0].success': expected an object, found text",
            None,
        ),
        (
            ("links", 0, "redirect"),
            {"any": True},
            "in 'links[0].redirect': takes a finite list of codes, not any or a complement",
            None,
        ),
        (
            ("links", 0, "redirect"),
            [{"from": 3, "to": 2}],
            "in 'links[0].redirect[0].to': 2 is outside 3..2147483647",
            None,
        ),
        (
            ("links", 0, "saved"),
            [{"code": 4, "name": "REDIRECT"}],
            "in 'links[0].saved': nothing can be saved before link 0",
            None,
        ),
        (
            ("links", 1, "saved"),
            [{"code": 4, "name": "REDIRECT"}] * 2,
            "in 'links[1].saved': a code is there twice",
            None,
        ),
        (
            ("links", 1, "needs", 0, "kernels", "arm64"),
            "six",
            "in 'links[1].needs[0].kernels.arm64': expected a kernel version such as 5.10, found 'six'",
            None,
        ),
        (
            ("links", 1, "allowed", 0),
            "anything",
            "in 'links[1].allowed[0]': 'anything' is not one of nested-runs, redirect-hazard, "
            "stack-residue",
            None,
        ),
        (
            ("links", 1, "verified", "static", "result"),
            "not equal",
            "in 'links[1].verified.static.result': 'not equal' is not one of equal, inconclusive, "
            "not-run",
            "did you mean equal?",
        ),
        (
            ("links", 1, "verified", "dynamic", "coverage", "edges"),
            33,
            "in 'links[1].verified.dynamic.coverage.edges': 33 is outside 0..32",
            None,
        ),
        (
            ("share", 0, "links"),
            [{"index": 0, "map": "counters"}],
            "in 'share[0].links': a map is shared by at least two",
            None,
        ),
        (("links", 0, "why"), "\ud800", "in 'links[0].why': is not text that UTF-8 can hold", None),
        (
            ("slots", "a\nb"),
            1,
            "in 'slots.'a\\nb'': no such key",
            "the keys here: map, max_entries",
        ),
        (("links", 0, "index"), 1 << 70, "in 'links[0].index': it is outside 0..32", None),
    ],
)  # fmt: skip
def test_an_error_says_where_in_the_document(
    path: tuple[str | int, ...], value: Any, message: str, hint: str | None
) -> None:
    error = refusal(changed(path, value))
    assert error.message == message
    assert error.hint == hint
    assert error.exit_code == 3


def test_a_missing_key_and_a_wrong_document() -> None:
    found = document()
    del found["links"][2]["debug"]
    assert refusal(found).message == "in 'links[2].debug': is missing"
    assert refusal([]).message == "expected an object, found a list"
    assert refusal(None).message == "expected an object, found null"


def test_links_and_shares_are_in_order() -> None:
    found = document()
    found["links"].reverse()
    assert refusal(found).message == "in 'links[1].index': 1 comes after 2: indexes must rise"
    found = document()
    found["share"] *= 2
    assert refusal(found).message == "in 'share[1].map': names must rise"
    found["share"] = [found["share"][0], {**found["share"][1], "map": "zz"}]
    assert (
        refusal(found).message
        == "in 'share[1].links': map counters of link 0 is already in all_counters"
    )
    found = document()
    found["share"][0]["links"].reverse()
    assert refusal(found).message == "in 'share[0].links': must be in order, each map once"


def test_the_version_is_looked_at_before_anything_else() -> None:
    assert refusal({"version": 7, "chains": []}).message.startswith("in 'version': 7 is unknown")


def test_validate_finds_values_that_no_document_can_say() -> None:
    first = edge_records()[0]
    edge().validate()
    for change, message in (
        ({"object": "/abs.o"}, "in 'links[0].object': expected a relative path, found '/abs.o'"),
        ({"frags": 1}, "in 'links[0].frags': expected true or false, found an integer"),
        (
            {"strategy": "fused"},
            "in 'links[0].strategy': 'fused' is not one of inline, subprog, none",
        ),
        (
            {"entries": ()},
            "in 'links[0].entries': there must be one for each state, in this order: none",
        ),
    ):
        with pytest.raises(ManifestError) as caught:
            edge().with_record(replace(first, **change)).validate()
        assert caught.value.message == message
        with pytest.raises(ManifestError) as caught:
            replace(first, **change).validate()
        assert caught.value.message == message.replace("links[0].", "")
    unsorted = Need("x", "y", (("riscv64", None), ("arm64", "6.0")))
    with pytest.raises(ManifestError) as caught:
        replace(first, needs=(unsorted,)).validate()
    assert caught.value.message == "in 'needs': reads back as another value"


def test_record_of_takes_over_what_was_patched() -> None:
    link = make_link(1, saved=(REDIRECT,))
    patched = Patched(
        data=b"\x7fELF", link=link, program="filter", section="xdp/filter",
        entries=entries_of(link, "filter"), strategy="inline", why="r8 is free", keep="r8",
        before=Cost(10, 8), after=Cost(17, 8), frags=True, debug="kept", license="GPL",
        maps=(COUNTERS,), needs=(Need("jit", "w", (("x86_64", "5.10"), ("arm64", None))),),
        redirects=("bpf_redirect_map", "bpf_redirect", "bpf_redirect"), tail_calls=True, pinned=True,
        allowed=("stack-residue", "redirect-hazard"), warnings=("b", "a"),
    )  # fmt: skip
    record = record_of(
        patched,
        object_path="out/l.o",
        input_path="in/l.o",
        input_sha256="a" * 64,
        output_sha256="b" * 64,
    )
    record.validate()
    assert (record.object, record.input_file, record.input_sha256, record.output_sha256) == (
        "out/l.o",
        "in/l.o",
        "a" * 64,
        "b" * 64,
    )
    for same in ("link", "program", "section", "entries", "strategy", "why", "keep", "before", "after",
                 "frags", "debug", "license", "maps", "tail_calls", "pinned", "warnings"):  # fmt: skip
        assert getattr(record, same) == getattr(patched, same), same
    assert record.needs == (Need("jit", "w", (("arm64", None), ("x86_64", "5.10"))),)
    assert record.redirects == ("bpf_redirect", "bpf_redirect_map")
    assert record.allowed == ("redirect-hazard", "stack-residue")
    assert record.verified is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"hook": hook_named("xdp/devmap")},
            "link 1 (link1.o) has hook xdp/devmap, the chain edge has xdp",
        ),
        (
            {"hook": replace(hook_named("xdp"), states=16)},
            "link 1 (link1.o) has slots 528, the chain edge has 264",
        ),
        ({"mode": "map"}, "link 1 (link1.o) has saved-code mode map, the chain edge has slots"),
        (
            {"slots_map": "blue"},
            "link 1 (link1.o) has slots map blue, the chain edge has bpfchain_slots",
        ),
    ],
)
def test_a_link_of_another_chain_is_refused(other: dict[str, Any], message: str) -> None:
    hint = "a chain has one hook, one mode and one slots map: use a manifest of its own for another"
    first, stranger = make_record(make_link(0)), make_record(make_link(1, **other))
    with pytest.raises(ManifestError) as caught:
        new_manifest("edge", first, stranger)
    assert (caught.value.message, caught.value.hint) == (message, hint)
    forced = replace(new_manifest("edge", first), links=(first, stranger))
    with pytest.raises(ManifestError) as caught:
        forced.validate()
    assert caught.value.message == f"in 'links[1]': {message}"


def test_two_records_of_one_index_are_refused() -> None:
    with pytest.raises(ManifestError, match=r"^two records for link 0$"):
        new_manifest("edge", make_record(make_link(0)), make_record(make_link(0)))


# --- whole chains


def problems(*records: Any, **changes: Any) -> list[tuple[str, str | None, int | None, bool]]:
    manifest = new_manifest("edge", *records, **changes)
    manifest.validate()
    return [(p.message, p.hint, p.index, p.fatal) for p in check_chain(manifest)]


def test_a_whole_chain_has_no_problems() -> None:
    assert check_chain(edge()) == ()
    assert validate_complete(edge()) == ()
    assert problems(make_record(make_link(0))) == []


def test_a_chain_of_33_links_is_whole() -> None:
    records = [make_record(make_link(index)) for index in range(33)]
    assert problems(*records) == []


def test_no_link_may_be_missing() -> None:
    _, one, two = edge_records()
    assert problems(one, two) == [
        (
            "link 0 is missing: the chain would end before link 1 (link1.o)",
            "patch it into this manifest, or number the links from 0 without gaps",
            0,
            True,
        )
    ]
    with pytest.raises(RefusedError) as caught:
        validate_complete(new_manifest("edge", one, two))
    assert caught.value.message == "link 0 is missing: the chain would end before link 1 (link1.o)"
    empty = replace(edge(), links=(), share=())
    empty.validate()
    assert [p.message for p in check_chain(empty)] == ["chain edge has no links"]


def test_only_the_highest_link_may_be_the_last() -> None:
    records = make_record(make_link(0, last=True)), make_record(make_link(1))
    assert problems(*records) == [
        (
            "link 0 (link0.o) was patched with --last, but link 1 (link1.o) comes after it",
            "patch link 0 again without --last",
            0,
            True,
        )
    ]
    last = make_record(make_link(0, last=True))
    assert problems(last) == []
    assert problems(last, extensible=True) == [
        (
            "link 0 (link0.o) was patched with --last, but the chain is extensible",
            "patch link 0 again without --last",
            0,
            True,
        )
    ]


def test_frags_are_all_or_none() -> None:
    records = make_record(make_link(0)), make_record(make_link(1), frags=True, section="xdp.frags")
    assert problems(*records) == [
        (
            "link 1 (link1.o) handles frags (section xdp.frags) and link 0 (link0.o) does not "
            "(section xdp): the kernel refuses such a chain",
            "give both the same kind of section",
            1,
            True,
        )
    ]


def test_two_links_in_one_file_must_have_been_written_together() -> None:
    one = make_record(make_link(0), object="both.o")
    two = make_record(make_link(1), object="both.o")
    assert problems(one, two) == [
        (
            "links 0 and 1 are both both.o, with different sha256: one of them was overwritten",
            "write each link to a file of its own",
            1,
            True,
        )
    ]
    assert problems(one, replace(two, output_sha256=one.output_sha256)) == []


def saving(index: int, redirect: tuple[int, ...], saved: tuple[int, ...], **changes: Any) -> Link:
    return make_link(index, redirect=CodeSet.of(*redirect), saved=saved, **changes)


def test_every_state_that_reaches_a_link_has_an_entry() -> None:
    # TX (3) saved by link 0 lives on through link 1, which saves REDIRECT (4) itself
    zero = make_record(saving(0, (3,), ()))
    one = make_record(saving(1, (4,), (3,)))
    assert problems(zero, one, make_record(saving(2, (), (3, 4)))) == []
    expected = (
        "link 2 (link2.o) has no entry for a saved TX, which link 0 (link0.o) can save: "
        "the chain would end there silently",
        "patch link 2 again with --saved TX,REDIRECT",
        2,
        True,
    )
    assert problems(zero, one, make_record(saving(2, (), (4,)))) == [expected]
    assert problems(zero, one, make_record(saving(2, (), ()))) == [
        (expected[0].replace("saved TX", "saved TX,REDIRECT"), *expected[1:])
    ]
    # an entry for a state that cannot come does no harm
    assert problems(make_record(make_link(0)), make_record(saving(1, (), (1, 2)))) == []


def test_the_per_cpu_map_needs_no_entry_a_state() -> None:
    zero = make_record(saving(0, (3,), (), mode="map"))
    one = make_record(saving(1, (), (), mode="map"))
    assert problems(zero, one) == []


def test_a_redirecting_link_and_redirect_helpers_behind_it() -> None:
    zero = make_record(saving(0, (4,), ()), redirects=("bpf_redirect_map",))
    one = make_record(saving(1, (), (4,)), redirects=("bpf_redirect", "unknown tail-call targets"))
    message = (
        "link 1 (link1.o) can call bpf_redirect, unknown tail-call targets after link 0 (link0.o) "
        "saved REDIRECT: the packet can go elsewhere"
    )
    hint = "put it before link 0, or patch it with --allow redirect-hazard"
    assert problems(zero, one) == [(message, hint, 1, True)]
    allowed = replace(one, allowed=("redirect-hazard",))
    assert problems(zero, allowed) == [(message, hint, 1, False)]
    assert validate_complete(new_manifest("edge", zero, allowed)) == (message,)
    # a saved TX is no redirect, and before the redirecting link the helpers may be called
    assert problems(make_record(saving(0, (3,), ())), replace(one, link=saving(1, (), (3,)),
                    entries=entries_of(saving(1, (), (3,)), "prog"))) == []  # fmt: skip
    assert problems(make_record(make_link(0), redirects=("bpf_redirect",)),
                    make_record(saving(1, (4,), ()))) == []  # fmt: skip


def test_tail_calls_of_a_body_are_a_warning() -> None:
    zero, one = make_record(make_link(0), tail_calls=True), make_record(make_link(1, last=True))
    assert problems(zero, one) == [
        (
            "link 0 (link0.o) makes tail calls of its own: that they and the chain's 1 stay within "
            "the kernel's 33 is not checked here",
            None,
            0,
            False,
        )
    ]


def shared(*members: tuple[int, str]) -> tuple[Share, ...]:
    return (Share(map="all", links=tuple(SharedMap(index=i, map=m) for i, m in members)),)


def test_shared_maps_exist_and_are_alike() -> None:
    zero, one = make_record(make_link(0)), make_record(make_link(1))
    assert problems(zero, one, share=shared((1, "counters"), (0, "counters"))) == []
    assert problems(zero, one, share=shared((0, "counters"), (2, "counters"))) == [
        ("share all: link 2 is not in the chain", None, 2, True)
    ]
    assert problems(zero, one, share=shared((0, "counters"), (1, "stats"))) == [
        ("share all: link 1 (link1.o) has no map stats", "its maps: counters", 1, True)
    ]
    assert problems(zero, one, share=shared((0, "bpfchain_slots"), (1, "counters"))) == [
        (
            "share all: link 0 (link0.o): bpfchain_slots is the chain's own map",
            "links of a chain share it anyway: leave it out",
            0,
            True,
        )
    ]
    larger = replace(one, maps=(MapUse("counters", 6, 4, 16, 5, None),))
    assert problems(zero, larger, share=shared((0, "counters"), (1, "counters"))) == [
        (
            "share all: link 1 (link1.o): map counters is defined otherwise than counters of link 0: "
            "value size 16, not 8, flags None, not 0",
            None,
            1,
            True,
        )
    ]


def test_fatal_problems_come_first() -> None:
    zero, two = make_record(make_link(0), tail_calls=True), make_record(make_link(2))
    assert [fatal for *_, fatal in problems(zero, two)] == [True, False]


def test_the_proof_is_kept_with_keys_of_a_later_verifier() -> None:
    found = document()
    found["links"][1]["verified"]["dynamic"]["shards"] = [1, {"a": None}]
    kept = Manifest.from_dict(found)
    assert kept.links[1].verified != PROOF
    assert kept.to_dict() == found


def test_an_entry_of_the_record_is_the_programs() -> None:
    entries = make_record(make_link(1, saved=(REDIRECT,))).entries
    assert entries == (EntryProgram("prog", None, 1), EntryProgram("prog__redirect", 4, 166))
