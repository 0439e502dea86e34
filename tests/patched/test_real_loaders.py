"""Every object of Debian's BPF packages: each program of it, made a link, loads with every loader
that takes the object as it is; and so do all its programs, patched one after the other.

Objects that are in several packages byte for byte are loaded once. What is refused, and what a
loader does not take, is listed with its reason in ``expected_real.toml``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import pytest

from bpfchain.transform.errors import BpfchainError
from patched.expected import differences, rules
from patched.loading import LOADERS, Job, Loaded, load
from patched.objects import patch, patch_all, programs_of
from support import real

pytestmark = [
    pytest.mark.real, pytest.mark.timeout(600), pytest.mark.usefixtures("kernel"),
]  # fmt: skip
FILE = "expected_real.toml"
STRATEGIES = ("inline", "subprog")
Results = Mapping[str, Mapping[str, Loaded]]


def distinct() -> list[real.RealObject]:
    """Every object once, by its bytes."""
    return list({one.sha256: one for one in reversed(real.real_objects())}.values())[::-1]


def load_type(one: real.RealObject) -> str | None:
    arguments = real.type_arguments(one.data)
    return arguments[1] if arguments else None


def hook_of(section: str) -> str | None:
    """What ``--hook`` must say: suricata's sections name none."""
    return "tc" if section in ("filter", "loadbalancer") else None


def complaint(result: Loaded, wanted: set[str]) -> str | None:
    """Why an object did not load with all its programs; None if it did."""
    if result.error is not None:
        return result.error
    if not result.programs:
        return "no program was loaded"
    if set(result.programs) != wanted:
        return f"programs {sorted(result.programs)}, not {sorted(wanted)}"
    return None


@pytest.fixture(scope="module")
def as_is(kernel: None) -> dict[str, dict[str, str | None]]:
    """Loader -> label -> why it does not load unpatched, None if it does."""
    objects = distinct()
    jobs = [Job(one.path, load_type(one)) for one in objects]
    return {
        loader: {
            one.label: complaint(result, set(programs_of(one.data)))
            for one, result in zip(objects, load(loader, jobs), strict=True)
        }
        for loader in LOADERS
    }


@pytest.fixture(scope="module")
def patched(
    kernel: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, tuple[real.RealObject, Job]], dict[str, str | None]]:
    """``LABEL PROGRAM: STRATEGY`` -> object and patched file; the same -> refusal or None.

    PROGRAM is ``*all*`` where all were patched one after the other.
    """
    folder = tmp_path_factory.mktemp("patched")
    files: dict[str, tuple[real.RealObject, Job]] = {}
    refusals: dict[str, str | None] = {}

    def keep(one: real.RealObject, case: str, data: bytes) -> None:
        path = folder / f"{len(files)}.o"
        path.write_bytes(data)
        files[case] = one, Job(path, load_type(one))

    for one in distinct():
        programs = programs_of(one.data)
        for strategy in STRATEGIES:
            for program, section in programs.items():
                case = f"{one.label} {program}: {strategy}"
                done = patch(one.data, program, section, hook_of(section), strategy)
                if isinstance(done, BpfchainError):
                    refusals[case] = f"{done.kind}: {done.message}"
                    continue
                refusals[case] = None
                keep(one, case, done.data)
            refused: list[tuple[str, str]] = []
            hook = next(iter({hook_of(section) for section in programs.values()}))
            done = patch_all(one.data, programs, strategy, hook, refused)
            if not isinstance(done, BpfchainError) and len(programs) - len(refused) > 1:
                keep(one, f"{one.label} *all*: {strategy}", done.data)
            # What alone can be a link can be one beside others, and the other way round.
            assert {name for name, _ in refused} == {
                program
                for program in programs
                if refusals[f"{one.label} {program}: {strategy}"] is not None
            }, (one.label, strategy, refused)
    return files, refusals


def test_every_object_has_programs() -> None:
    assert all(programs_of(one.data) for one in distinct())
    assert len(distinct()) > 150


@pytest.mark.parametrize("loader", LOADERS)
def test_objects_load_as_they_are_or_are_listed(
    as_is: Mapping[str, Mapping[str, str | None]], loader: str
) -> None:
    loaded = sum(message is None for message in as_is[loader].values())
    print(f"{loader}: {loaded} of {len(as_is[loader])} objects load as they are")
    assert loaded > 20
    said = differences(rules(FILE, "as_is", loader), as_is[loader], kind="does not load as it is")
    assert not said, "\n".join(said)


def test_refusals_are_listed(
    patched: tuple[dict[str, tuple[real.RealObject, Job]], dict[str, str | None]],
) -> None:
    _, refusals = patched
    links = sum(message is None for message in refusals.values())
    reasons = Counter(
        re.sub(r"^(\w+): program \S+ \([^)]*\):? ?", r"\1: ", message or "made a link")
        for message in refusals.values()
    )
    print(f"{links} of {len(refusals)} made links", *reasons.most_common(), sep="\n")
    assert links > 800
    said = differences(rules(FILE, "refused"), refusals, kind="not made a link")
    assert not said, "\n".join(said)


@pytest.mark.parametrize("loader", LOADERS)
def test_patched_objects_load(
    as_is: Mapping[str, Mapping[str, str | None]],
    patched: tuple[dict[str, tuple[real.RealObject, Job]], dict[str, str | None]],
    loader: str,
) -> None:
    files = {
        case: (one, job)
        for case, (one, job) in patched[0].items()
        if as_is[loader][one.label] is None
    }
    done = load(loader, [job for _, job in files.values()])
    results = {
        case: complaint(result, set(programs_of(one.data)))
        for (case, (one, _)), result in zip(files.items(), done, strict=True)
    }
    loaded = sum(message is None for message in results.values())
    print(
        f"{loader}: {loaded} of {len(results)} patched objects loaded, "
        f"{sum('*all*' in case for case in results)} of them with all programs patched"
    )
    assert loaded > 100
    said = differences(rules(FILE, "patched", loader), results, kind="does not load patched")
    assert not said, "\n".join(said)
