"""Nothing changes but what must: original and patched objects held against each other.

Both are read by pyelftools, LIEF and bpftool, not by the transformer's own codec.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from bpfchain.transform.errors import BpfchainError
from patched import compare
from patched.objects import corpus_objects, hook_for, patch, programs_of
from patched.readers import View, btf_types, disagreements, read
from support import real

STRATEGIES = ("inline", "subprog")
SLOTS = "bpfchain_slots"


def complaints(data: bytes, cases: Iterable[tuple[str, str, str | None]]) -> Iterator[str]:
    """For each (program, section, hook) and both strategies: what changed and should not.

    A last empty line for each patched object, so that they can be counted.
    """
    old = read(data)
    types = btf_types(data, ["bpftool"])
    for program, section, hook in cases:
        for strategy in STRATEGIES:
            done = patch(data, program, section, hook, strategy)
            if isinstance(done, BpfchainError):
                continue
            assert done.strategy in (strategy, "none"), (program, done.strategy)
            if done.strategy == "none":
                yield from (f"{program}: {line}" for line in unpatched(old, read(done.data)))
                yield ""
                continue
            new = read(done.data)
            said = compare.differences(old, new, program, strategy)
            said += disagreements(done.data, new)
            converted = "maps" in old.sections
            said += compare.btf_differences(
                None if converted else types, btf_types(done.data, ["bpftool"]), SLOTS
            )
            yield from (f"{program}: {strategy}: {line}" for line in said)
            yield ""


def unpatched(old: View, new: View) -> Iterator[str]:
    """A program that needs no patch: all is as it was, ``.bpfchain`` comes."""
    if set(new.sections) - set(old.sections) - {".BTF", ".maps"} != {".bpfchain"}:
        yield f"new sections: {sorted(set(new.sections) - set(old.sections))}"
    for name in old.sections:
        if name in (".shstrtab", ".symtab", ".strtab", "maps") or "maps" in old.sections:
            continue
        if name not in new.sections or old.sections[name].data != new.sections[name].data:
            yield f"section {name} differs"


DAMAGES = {
    "body": "body's instructions differ",
    "other": "function second: its instructions differ",
    "subprogram": "function small: its instructions differ",
    "license": "section license: its bytes differ",
    "BTF": "BTF type",
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_change_is_found(damage: str, strategy: str) -> None:
    """One other bit in a patched two_progs.o is found."""
    (one,) = [o for o in corpus_objects() if o.name == "two_progs"]
    data = one.path.read_bytes()
    old = read(data)
    done = patch(data, "first", "xdp", None, strategy)
    assert not isinstance(done, BpfchainError)
    broken = bytearray(done.data)
    body = old.code("first")
    places = {
        "body": lambda: done.data.index(body[16:48]) + 4,
        "other": lambda: done.data.index(old.code("second")) + 4,
        "subprogram": lambda: done.data.index(old.code("small")) + 4,
        "license": lambda: done.data.index(old.sections["license"].data),
        "BTF": lambda: done.data.index(old.sections[".BTF"].data[24:64]) + 8,
    }
    broken[places[damage]()] ^= 1
    new = read(bytes(broken))
    said = compare.differences(old, new, "first", strategy)
    said += compare.btf_differences(
        btf_types(data, ["bpftool"]), btf_types(bytes(broken), ["bpftool"]), SLOTS
    )
    assert any(DAMAGES[damage] in line for line in said), said


def by_case(one: object) -> str:
    return str(getattr(one, "name", None) or getattr(one, "label", one))


@pytest.mark.parametrize("one", [o for o in corpus_objects() if o.expect == "link"], ids=by_case)
def test_corpus(one: object) -> None:
    path, hook = one.path, one.hook  # type: ignore[attr-defined]
    data = path.read_bytes()
    programs = programs_of(data)
    cases = [
        (program, section, hook)
        for program, section in programs.items()
        if hook_for(section, hook) is not None
    ]
    said = list(complaints(data, cases))
    assert said.count("") > 0, "nothing was patched"
    found = [line for line in said if line]
    assert not found, "\n".join(found)


@pytest.mark.real
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "package", ["libxdp1", "xdp-tools", "libbpf-tools", "suricata", "xdp-tests"]
)
def test_real(package: str) -> None:
    """Every program of each object that can be a link."""
    objects = {one.sha256: one for one in real.real_objects() if one.package == package}
    said = []
    for one in objects.values():
        able = [
            (program, section, "tc" if section in ("filter", "loadbalancer") else None)
            for program, section in programs_of(one.data).items()
            if hook_for(section, None) or section in ("filter", "loadbalancer")
        ]
        said += [line and f"{one.label}: {line}" for line in complaints(one.data, able)]
    print(f"{package}: {said.count('')} patched objects compared")
    assert said.count("") >= len(objects) // 2
    found = [line for line in said if line]
    assert not found, "\n".join(found)
