"""The JSON report: its schema, that it is canonical, that it loses nothing that a gate needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import bpfchain.verify
from bpfchain.verify.reports.json_report import VERSION, render, to_json
from support import sample_reports as samples

SCHEMA_FILE = Path(bpfchain.verify.__file__).parent / "schema" / "report-1.json"
SCHEMA = json.loads(SCHEMA_FILE.read_text())


def test_the_schema_is_one_and_of_this_version() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["version"]["const"] == VERSION
    assert SCHEMA["$id"] == f"urn:bpfchain:report-{VERSION}"


@pytest.mark.parametrize("name", samples.ALL)
def test_every_report_is_valid(name: str) -> None:
    text = render(samples.ALL[name]())
    text.encode()  # no half of a surrogate pair is left
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(text))


def test_every_key_is_required_and_no_other_is_allowed() -> None:
    """So that a key which the schema forgets, or the report, is a test that fails."""

    def look(node: Any) -> int:
        if isinstance(node, list):
            return sum(map(look, node))
        if not isinstance(node, dict):
            return 0
        objects = sum(map(look, node.values()))
        if node.get("type") == "object" and "properties" in node:
            assert sorted(node["required"]) == sorted(node["properties"])
            assert node["additionalProperties"] is False
            objects += 1
        return objects

    assert look(SCHEMA) > 15


def test_equal_values_give_equal_bytes_and_keys_are_sorted() -> None:
    assert render(samples.equal()) == render(samples.equal())
    pairs: list[list[str]] = []
    json.loads(render(samples.equal()), object_pairs_hook=lambda p: pairs.append([k for k, _ in p]))
    assert len(pairs) > 20
    assert all(keys == sorted(keys) for keys in pairs)


def test_what_a_gate_reads() -> None:
    found = to_json(samples.chain_not_equal())
    assert found["outcome"] == "not-equal"
    assert found["reason"] == "chain: packet 3 of builtin: verdict PASS, was DROP"
    assert {"reference": "DROP", "chain": "PASS", "packets": 9} in found["chain"]["verdicts"]
    assert {"link": 1, "packets": 0} in found["chain"]["reached"]
    assert "12 packets of small.pcap (over 3 520 bytes)" in found["not_checked"]
    assert "chain: link 1 (reached by no packet)" in found["not_checked"]
    assert found["links"][0]["input"] == {"name": "filter.o", "sha256": "01" * 32}
    assert found["links"][2]["dynamic"]["codes_never_seen"] == ["TX"]


def test_coverage_counts_what_was_executed() -> None:
    (link,) = to_json(samples.inconclusive())["links"]
    covered = link["dynamic"]["coverage"]
    assert covered["instructions"] == {"all": 12, "executed": 10}
    assert covered["edges"] == {"all": 6, "seen": 5}
    assert covered["executed"] == {"xdp": [[0, 7], [10, 11]]}
    assert covered["never_executed"] == {"xdp": [[8, 9]]}
    assert covered["lines"][4] == {
        "file": "src/count.c", "line": 24, "instructions": 2, "executed": 0,
    }  # fmt: skip


def test_the_counterexample_is_whole() -> None:
    (link,) = to_json(samples.not_equal())["links"]
    example = link["dynamic"]["counterexample"]
    assert bytes.fromhex(example["data"]) == samples.PACKET
    assert [len(packet) // 2 for packet in example["before"]] == [40, len(samples.PACKET)]
    assert example["maps"] == [{"map": "rules", "key": "5000", "value": "01000000"}]
    assert (example["dimension"], example["expected"], example["got"]) == (
        "verdict",
        "DROP",
        "PASS",
    )
    assert example["first_difference"]["source"] == "src/filter.c:88"
