"""bpfchain build: a whole chain from one file, or nothing."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from support.commands import run

COMMAND = ("bpfchain", "build", "chain.toml", "-o", "out")


def test_builds_objects_and_manifest(here: Path) -> None:
    done = run(*COMMAND, cwd=here)
    assert done.code == 0, done.stderr
    assert done.stdout == b""
    assert sorted(p.name for p in (here / "out").iterdir()) == [
        "link0.o", "link1.o", "link2.o", "manifest.json",
    ]  # fmt: skip
    # what no single link knows: REDIRECT may be saved before links 1 and 2, and 2 is the last
    requests = {
        "filter": Request(index=0, redirect="REDIRECT", hook="xdp"),
        "metrics": Request(index=1, saved="REDIRECT", hook="xdp"),
        "log": Request(index=2, saved="REDIRECT", hook="xdp", last=True),
    }
    manifest = json.loads((here / "out" / "manifest.json").read_text())
    told = []
    for (name, request), link in zip(requests.items(), manifest["links"], strict=True):
        expected = transform_object((here / f"{name}.o").read_bytes(), request)
        assert (here / "out" / f"link{request.index}.o").read_bytes() == expected.data
        assert link["object"] == f"link{request.index}.o"
        assert link["output"]["sha256"] == sha256(expected.data).hexdigest()
        told.append(f"{expected.after.instructions - expected.before.instructions:+d}")
    assert (manifest["chain"], manifest["hook"], manifest["extensible"]) == ("edge", "xdp", False)
    said, _, proof = done.stderr.partition(", link 0 ")
    assert said == (
        "out/manifest.json: chain edge on xdp, 3 links: "
        f"filter (inline, {told[0]}, S=PASS, R=REDIRECT), metrics (inline, {told[1]}, S=PASS), "
        f"log_tcp (inline, {told[2]})"
    )
    assert proof.count("equal on ") == 3
    assert [link["input"]["file"] for link in manifest["links"]] == [
        "../filter.o", "../metrics.o", "../log.o",
    ]  # fmt: skip
    assert all(link["verified"]["static"]["result"] == "equal" for link in manifest["links"])


def test_same_inputs_same_bytes(here: Path) -> None:
    for seed, folder in (("1", "a"), ("2", "b")):
        done = run("bpfchain", "build", "chain.toml", "-o", folder, cwd=here, PYTHONHASHSEED=seed)
        assert done.code == 0
    files = [{p.name: p.read_bytes() for p in (here / f).iterdir()} for f in ("a", "b")]
    assert files[0] == files[1]


def test_json_prints_the_manifest(here: Path) -> None:
    done = run(*COMMAND, "--json", "-q", cwd=here)
    assert done.stderr == ""
    assert done.text == (here / "out" / "manifest.json").read_text()


def test_objects_are_named_relative_to_the_file(
    here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = run("bpfchain", "build", here / "chain.toml", "-o", "out", cwd=elsewhere)
    assert done.code == 0, done.stderr
    assert (elsewhere / "out" / "link2.o").exists()


def test_a_second_build_replaces_and_names_what_is_left_over(here: Path) -> None:
    assert run(*COMMAND, cwd=here).code == 0
    chain = (here / "chain.toml").read_text()
    (here / "chain.toml").write_text(chain[: chain.rindex("[[link]]")])
    done = run(*COMMAND, cwd=here)
    assert done.code == 0
    assert done.stderr.startswith(
        "warning: out/link2.o: is of an older chain: manifest.json does not name it\n"
    )
    assert len(json.loads((here / "out" / "manifest.json").read_text())["links"]) == 2
    assert [p for p in here.iterdir() if p.name.startswith(".")] == []


def test_one_refused_link_and_nothing_is_written(here: Path) -> None:
    shutil.copy(here / "verdict_netfilter.o", here / "log.o")
    before = sorted(here.iterdir())
    done = run(*COMMAND, cwd=here)
    assert done.code == 3
    assert done.stderr.startswith("refused: log.o: ")
    assert len(done.stderr.splitlines()) <= 2
    assert sorted(here.iterdir()) == before


def test_a_refusal_leaves_the_older_chain_alone(here: Path) -> None:
    assert run(*COMMAND, cwd=here).code == 0
    older = {p.name: p.read_bytes() for p in (here / "out").iterdir()}
    (here / "metrics.o").write_bytes(b"\x7fELF")
    done = run(*COMMAND, cwd=here)
    assert done.code == 3
    assert done.stderr.startswith("refused: metrics.o: not an ELF file\n")
    assert {p.name: p.read_bytes() for p in (here / "out").iterdir()} == older


BROKEN = [
    ("name = ", 3, "refused: chain.toml: is not TOML: "),
    (
        'name = "x"\nlink = []\n',
        3,
        "refused: chain.toml: in 'link': a chain has 1 to 33 links, not 0\n",
    ),
    (
        '[[link]]\nobject = "filtr.o"\n',
        3,
        "refused: chain.toml: ",
    ),
    (
        'name = "x"\n[[link]]\nobject = "filtr.o"\n',
        2,
        "usage: filtr.o: no such file\n  hint: did you mean filter.o?\n",
    ),
    (
        'name = "x"\n[[link]]\nobject = "filter.o"\nsuccess = "PAS"\n',
        3,
        "refused: chain.toml: in 'link[0].success': no code named 'PAS'\n  hint: did you mean PASS?\n",
    ),
    (
        'name = "x"\n[[link]]\nobject = "filter.o"\n[[link]]\nobject = "verdict_netfilter.o"\n',
        3,
        "refused: chain.toml: link 1 (verdict_netfilter.o) is for hook netfilter, "
        "link 0 (filter.o) for xdp\n",
    ),
]


@pytest.mark.parametrize(("text", "code", "expected"), BROKEN, ids=range(len(BROKEN)))
def test_a_wrong_chain_file(here: Path, text: str, code: int, expected: str) -> None:
    (here / "chain.toml").write_text(text)
    done = run(*COMMAND, cwd=here)
    assert done.stderr.startswith(expected)
    assert done.code == code
    assert len(done.stderr.splitlines()) <= 2
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["chan.toml", "-o", "out"], "usage: chan.toml: no such file\n  hint: did you mean chain.toml?\n"),
        (
            ["chain.toml", "-o", "filter.o"],
            "usage: -o filter.o is no folder\n  hint: name a folder for the objects and the manifest\n",
        ),
        (["chain.toml"], "usage: --output is missing\n  hint: `bpfchain build --help` shows what it takes\n"),
        (
            ["-", "-o", "out"],
            "usage: CHAIN.TOML cannot be -: its objects are named relative to it\n",
        ),
    ],
)  # fmt: skip
def test_usage(here: Path, arguments: list[str], expected: str) -> None:
    done = run("bpfchain", "build", *arguments, cwd=here)
    assert (done.code, done.stdout, done.stderr) == (2, b"", expected)


def test_targets_are_passed_on(here: Path) -> None:
    done = run(*COMMAND, "--kernel", "six", cwd=here)
    assert done.code == 2
    assert done.stderr.endswith("--kernel: 'six' is not a version such as 6.1\n")


def test_a_program_is_chosen_in_the_file(here: Path) -> None:
    chain = 'name = "x"\n[[link]]\nobject = "three_progs.o"\n'
    (here / "chain.toml").write_text(chain)
    done = run(*COMMAND, cwd=here)
    assert (done.code, done.stderr) == (
        2,
        "usage: three_progs.o: it holds 3 programs (before, middle, after): choose one with "
        "`program` in the chain file\n",
    )
    (here / "chain.toml").write_text(chain + 'program = "middle"\n')
    assert run(*COMMAND, cwd=here).code == 0
