"""Every corpus object, patched in every way, loads with every loader that takes it as it is.

What does not is listed by name, with the reason, in ``expected.toml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from bpfchain.transform.errors import BpfchainError
from bpfchain.transform.request import Patched
from patched.expected import differences, rules
from patched.loading import BPFTOOLS, LOADERS, Job, Loaded, load, warnings
from patched.objects import VARIANTS, corpus_objects, patch, patch_all, programs_of

pytestmark = pytest.mark.usefixtures("kernel")
FILE = "expected.toml"
ALL = "all"
"""The way in which every program of an object becomes a link, one after the other."""

Results = Mapping[str, Mapping[str, Loaded]]


@pytest.fixture(scope="module")
def as_is(kernel: None) -> Results:
    """Loader -> object -> what became of it unpatched."""
    objects = corpus_objects()
    jobs = [Job(one.path, one.load_type) for one in objects]
    names = [one.name for one in objects]
    return {loader: dict(zip(names, load(loader, jobs), strict=True)) for loader in LOADERS}


def outcomes() -> dict[str, Patched | BpfchainError]:
    """``OBJECT: WAY`` -> the patched object or the refusal."""
    found: dict[str, Patched | BpfchainError] = {}
    for one in corpus_objects():
        data = one.path.read_bytes()
        for way in VARIANTS:
            found[f"{one.name}: {way}"] = patch(data, one.program, one.section, one.hook, way)
        programs = programs_of(data)
        if one.expect == "link" and len(programs) > 1:
            found[f"{one.name}: {ALL}"] = patch_all(data, programs, "auto", one.hook)
    return found


@pytest.fixture(scope="module")
def patched(kernel: None) -> Mapping[str, Patched | BpfchainError]:
    return outcomes()


def complaint(result: Loaded, wanted: set[str]) -> str | None:
    """Why an object did not load with all programs that it has; None if it did."""
    if result.error is not None:
        return result.error
    if not result.programs:
        return "no program was loaded"
    if set(result.programs) != wanted:
        return f"programs {sorted(result.programs)}, not {sorted(wanted)}"
    return None


@pytest.mark.parametrize("loader", LOADERS)
def test_objects_load_as_they_are_or_are_listed(as_is: Results, loader: str) -> None:
    results = {
        one.name: complaint(as_is[loader][one.name], set(programs_of(one.path.read_bytes())))
        for one in corpus_objects()
    }
    assert sum(message is None for message in results.values()) > len(results) // 2
    said = differences(rules(FILE, "as_is", loader), results, kind="does not load as it is")
    assert not said, "\n".join(said)


def test_refusals_are_listed(patched: Mapping[str, Patched | BpfchainError]) -> None:
    results = {
        case: f"{one.kind}: {one.message}" if isinstance(one, BpfchainError) else None
        for case, one in patched.items()
    }
    said = differences(rules(FILE, "refused"), results, kind="not made a link")
    assert not said, "\n".join(said)


@pytest.mark.parametrize("loader", LOADERS)
def test_patched_objects_load(
    as_is: Results,
    patched: Mapping[str, Patched | BpfchainError],
    tmp_path: Path,
    loader: str,
) -> None:
    by_name = {one.name: one for one in corpus_objects()}
    cases, jobs, wanted = [], [], []
    for number, (case, outcome) in enumerate(patched.items()):
        one = by_name[case.split(":")[0]]
        before = set(programs_of(one.path.read_bytes()))
        if isinstance(outcome, BpfchainError):
            continue
        # The two with legacy maps load only after the patch, which converts them.
        if complaint(as_is[loader][one.name], before) and not one.name.startswith("legacy_maps"):
            continue
        path = tmp_path / f"{number}.o"
        path.write_bytes(outcome.data)
        cases.append(case)
        jobs.append(Job(path, one.load_type))
        wanted.append(before | {entry.name for entry in outcome.entries})
        states = 1 + ("states" in case or "hazard" in case)
        assert len(outcome.entries) == states, case
        assert len(wanted[-1]) == len(before) + states - 1, case
    done = load(loader, jobs)
    results = {
        case: complaint(result, programs)
        for case, result, programs in zip(cases, done, wanted, strict=True)
    }
    if loader in BPFTOOLS:
        for case, result in zip(cases, done, strict=True):
            before_said = warnings(as_is[loader][case.split(":")[0]])
            assert warnings(result) <= before_said or results[case], (case, result.output)
    loaded = sum(message is None for message in results.values())
    print(f"{loader}: {loaded} of {len(results)} patched objects loaded")
    assert loaded > 400
    said = differences(rules(FILE, "patched", loader), results, kind="does not load patched")
    assert not said, "\n".join(said)
