"""What a bpffs keeps of a chain: the frozen record, and the lock of the target."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bpfchain.loader.hooks import Target
from bpfchain.loader.lock import check_bpffs, holder, locked
from bpfchain.loader.maps import Map
from bpfchain.loader.places import ChainPlace
from bpfchain.loader.store import (
    Record,
    frozen_array,
    generations,
    object_array,
    pin_record,
    read_record,
    remove_generation,
    unnamed,
)
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import MapType
from bpfchain.transform.errors import HostError
from bpfchain.transform.manifest import new_manifest
from bpfchain.transform.policy import hook_named
from support.chains import bpftool
from support.commands import ROOT
from support.manifests import make_link, make_record

RECORD = Record(
    number=4, created_ns=1_700_000_000_123_456_789, operation="recreate",
    target=Target(hook=hook_named("xdp"), kind="xdp", interface="eth0.1é", ifindex=7, mode="generic"),
    entry=2, folder="/tmp/a b", pins={"slots": 5, "p0": 6, "m0_x": 7}, bypassed=(1,),
    manifest=new_manifest("edge", make_record(make_link(0)), make_record(make_link(1))),
)  # fmt: skip


def test_a_record_is_read_back() -> None:
    assert Record.from_json(RECORD.to_json()) == RECORD


def test_a_pinned_record_cannot_be_changed(bpffs: Path) -> None:
    path = bpffs / "manifest"
    pin_record(path, RECORD)
    assert read_record(path) == RECORD
    told = bpftool("map", "show", "pinned", path)
    assert (told["type"], told["frozen"], told["max_entries"]) == ("array", 1, 1)
    with Map.get_pinned(path) as array, pytest.raises(BpfError, match="EPERM"):
        array.update(bytes(4), bytes(array.value_size))


def test_no_record(bpffs: Path) -> None:
    assert read_record(bpffs / "manifest") is None


def test_a_record_of_another_version(bpffs: Path) -> None:
    path = bpffs / "manifest"
    with frozen_array(b'{"format":99}', "x") as array:
        array.pin(path)
    with pytest.raises(HostError, match=r"manifest: is not readable \(format 99\)"):
        read_record(path)


def test_objects_are_kept(bpffs: Path) -> None:
    data = os.urandom(200_000)
    with object_array(RECORD.manifest.links[0], data) as array:
        assert array.lookup(bytes(4)) == data


def place(bpffs: Path) -> ChainPlace:
    return ChainPlace(bpffs / "bpfchain", "1", "xdp", "eth0", "edge")


def test_generations(bpffs: Path) -> None:
    """Complete with a record, by number, and removed with everything in them."""
    where = place(bpffs)
    for number in (2, 10, 1):
        where.generation(number).mkdir(parents=True)
        with Map.create(MapType.ARRAY, 4, 4, 1) as array:
            array.pin(where.generation(number) / "m0_x")
            array.pin(where.generation(number) / "m1_y")
            array.pin(where.generation(number) / "new_p1")
    pin_record(where.generation(10) / "manifest", RECORD)
    found = generations(where)
    assert [(one.number, one.record is not None) for one in found] == [
        (1, False), (2, False), (10, True)
    ]  # fmt: skip
    assert unnamed(found[-1].folder, RECORD) == ["m1_y"]
    remove_generation(where.generation(10))
    assert [one.number for one in generations(where)] == [1, 2]


HOLD = """
import sys
from pathlib import Path
from bpfchain.loader.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_writer(bpffs: Path) -> None:
    folder = place(bpffs).target_folder
    with (
        subprocess.Popen(
            [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": f"{ROOT}/loader:{ROOT}/transform"},
        ) as other
    ):  # fmt: skip
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(HostError) as raised, locked(folder):
            pass
        assert f"process {other.pid} (" in raised.value.message
        assert (holder(folder) or "").startswith(f"process {other.pid} ")
        other.kill()
        other.wait()
        with locked(folder):  # what was killed holds nothing
            assert (holder(folder) or "").startswith(f"process {os.getpid()} ")
    assert list(bpffs.iterdir()) == []


def test_the_lock_leaves_no_folders_but_what_is_used(bpffs: Path) -> None:
    where = place(bpffs)
    with locked(where.target_folder):
        where.folder.mkdir()
    assert where.folder.is_dir()
    where.folder.rmdir()
    with locked(where.target_folder):
        pass
    assert list(bpffs.iterdir()) == []


def test_not_a_bpffs(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="is not a bpffs") as raised:
        check_bpffs(tmp_path)
    assert raised.value.hint == f"mount -t bpf bpf {tmp_path}"
    with pytest.raises(HostError, match="no such file"):
        check_bpffs(tmp_path / "none")
