"""Paths of chains below a bpffs: names that it takes, and that can be read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bpfchain.loader.hooks import Target
from bpfchain.loader.places import (
    HOST,
    ChainPlace,
    all_places,
    escape,
    place_of,
    state_root,
    unescape,
)
from bpfchain.transform.policy import hook_named

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)


@given(NAMES)
@example("")
@example(".")
@example("..")
@example("eth0.100")
@example("%2E")
@example("%")
@example("/sys/fs/cgroup/a.slice")
@example("é")
@example("%~" + "0" * 32)
@example("é" * 60)
def test_escaped_names_are_read_back(name: str) -> None:
    text = escape(name)
    assert text
    assert not set("./\0") & set(text)
    assert len(text.encode()) <= 200
    if "%~" not in text:
        assert unescape(text) == name
    assert escape(unescape(text)) == text


@given(st.sets(NAMES, min_size=2, max_size=2))
def test_two_names_are_two_files(names: set[str]) -> None:
    first, second = names
    assert escape(first) != escape(second)


def test_long_names_differ_by_their_end() -> None:
    long = "/sys/fs/cgroup/" + "a" * 300
    assert escape(long) != escape(long + "b")
    assert len(escape(long)) <= 200


def test_a_bpffs_takes_them(bpffs: Path) -> None:
    """It refuses dots, for one."""
    with pytest.raises(PermissionError):
        (bpffs / "eth0.100").mkdir()
    for name in ("eth0.100", "..", "", "a b", "é", "/x" * 200, "\n"):
        (bpffs / escape(name)).mkdir()


def test_places_are_found_again(tmp_path: Path) -> None:
    places = [
        ChainPlace(tmp_path, "7", "xdp", "eth0.100", "edge"),
        ChainPlace(tmp_path, "7", "xdp", "eth0.100", "other"),
        ChainPlace(tmp_path, "8", "xdp", "eth0.100", "edge"),
        ChainPlace(tmp_path, "7", "tcx_ingress", "eth0.100", "edge"),
        ChainPlace(tmp_path, HOST, "cgroup/connect4", "/sys/fs/cgroup/a.slice", "e.dge"),
    ]
    for place in places:
        place.folder.mkdir(parents=True)
    assert len({place.folder for place in places}) == len(places)
    assert set(all_places(tmp_path)) == set(places)


def test_a_name_that_was_cut_is_found_again(tmp_path: Path) -> None:
    long = "/sys/fs/cgroup/" + "kubepods.slice/" * 30
    place = ChainPlace(tmp_path, HOST, "cgroup/connect4", long, "é" * 64)
    place.folder.mkdir(parents=True)
    (found,) = all_places(tmp_path)
    assert found.folder == place.folder
    assert found.at(long)
    assert found.named("é" * 64)
    assert not found.named("é" * 63)


def test_only_interfaces_and_sockets_have_a_namespace(tmp_path: Path) -> None:
    root = state_root(tmp_path)
    xdp = Target(hook=hook_named("xdp"), kind="xdp", interface="lo", ifindex=1)
    tracing = Target(hook=hook_named("raw_tp"), kind="raw_tp", name="sched_switch")
    assert place_of(tracing, "edge", root).namespace == HOST
    assert place_of(xdp, "edge", root).namespace not in ("", HOST)
