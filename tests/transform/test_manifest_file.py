"""Manifest files: the same bytes in any order, no half file, one writer at a time."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfchain.transform.errors import HostError, RefusedError
from bpfchain.transform.manifest import Manifest, ManifestError, new_manifest
from bpfchain.transform.manifest_file import (
    SIZE_MAX,
    dumps,
    loads,
    lock_path,
    locked,
    object_path,
    read_manifest,
    record_link,
    write_manifest,
)
from bpfchain.transform.policy import hook_named
from support.manifest_strategies import manifests
from support.manifests import edge, edge_records, make_link, make_record


def start(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A process of its own that runs the code with our import path."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Its output; fails with what it said where it did."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(manifests())
def test_the_text_is_canonical_and_reads_back(manifest: Manifest) -> None:
    text = dumps(manifest)
    assert loads(text.encode()) == manifest
    assert dumps(loads(text.encode())) == text
    value = json.loads(text)
    assert text == json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def test_the_text_does_not_depend_on_hashing() -> None:
    code = (
        "import sys; from support.manifests import edge;"
        "from bpfchain.transform.manifest_file import dumps; sys.stdout.write(dumps(edge()))"
    )
    texts = {finish(start(code, PYTHONHASHSEED=seed)) for seed in ("0", "1", "77")}
    assert texts == {dumps(edge())}


def test_records_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    texts = set()
    for n, order in enumerate(itertools.permutations(edge_records())):
        path = tmp_path / str(n) / "edge.json"
        path.parent.mkdir()
        for record in order:
            record_link(path, None, record)
        texts.add(path.read_bytes())
        assert os.listdir(path.parent) == ["edge.json"]
    assert texts == {dumps(new_manifest("edge", *edge_records())).encode()}


def test_a_record_is_replaced_by_index_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "edge.json"
    write_manifest(path, edge())
    again = replace(edge_records()[1], why="another reason")
    returned = record_link(path, "edge", again)
    zero, _, two = edge_records()
    assert read_manifest(path) == returned
    assert returned.links == (zero, again, two)
    assert returned.share == edge().share  # what the chain's author said of it stays
    record_link(path, None, again)
    assert read_manifest(path) == returned


def test_the_file_is_made_with_the_umask_and_named_after_the_file(tmp_path: Path) -> None:
    path = tmp_path / "blue.chain.json"
    before = os.umask(0o027)
    try:
        record_link(path, None, make_record(make_link(0)))
    finally:
        os.umask(before)
    assert read_manifest(path).chain == "blue.chain"
    assert path.stat().st_mode & 0o777 == 0o640


RECORDER = """
import sys
from pathlib import Path
from bpfchain.transform.manifest_file import record_link
from support.manifests import make_link, make_record
print("ready", flush=True)
sys.stdin.readline()
for index in sys.argv[2:]:
    record_link(Path(sys.argv[1]), None, make_record(make_link(int(index))))
"""


def test_eight_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "edge.json"
    expected = dumps(new_manifest("edge", *(make_record(make_link(i)) for i in range(32))))
    writers = [start(RECORDER, str(path), *(str(i) for i in range(n, 32, 8))) for n in range(8)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            seen.add(len(read_manifest(path).links))  # a reader never sees half a file
    for writer in writers:
        finish(writer)
    assert path.read_text() == expected
    assert os.listdir(tmp_path) == ["edge.json"]
    assert seen, "nothing was read while the writers ran"


HOLDER = """
import sys, time
from pathlib import Path
from bpfchain.transform.manifest_file import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


def test_a_held_lock_is_waited_for_and_then_named(tmp_path: Path) -> None:
    path = tmp_path / "edge.json"
    holder = start(HOLDER, str(path))
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(HostError) as caught:
            record_link(path, None, edge_records()[0], seconds=0.05)
        assert caught.value.message == f"{tmp_path}/.edge.json.lock: another process holds the lock"
        assert caught.value.hint == (
            "wait for it to end; a file that no process holds open locks nothing"
        )
        assert caught.value.exit_code == 5
        assert not path.exists()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    # what the killed process left behind is in nobody's way, and goes
    assert lock_path(path).exists()
    record_link(path, None, edge_records()[0], seconds=0.05)
    assert os.listdir(tmp_path) == ["edge.json"]


def test_a_lock_file_that_was_removed_meanwhile_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "edge.json"
    real = fcntl.flock
    calls = []

    def first_loses_the_file(handle: int, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            lock_path(path).unlink()  # as the holder before us does
        real(handle, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", first_loses_the_file)
        with locked(path):
            assert len(calls) == 2
            assert lock_path(path).exists()
    assert os.listdir(tmp_path) == []


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_nothing_is_left_behind_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "edge.json"
    before = handles()
    path.mkdir()
    with pytest.raises(HostError) as caught:
        write_manifest(path, edge())
    assert caught.value.message == f"{path}: cannot write the manifest: Is a directory"
    with pytest.raises(HostError) as caught:
        record_link(path, None, edge_records()[0])
    assert caught.value.message == f"{path}: cannot read the manifest: Is a directory"
    assert os.listdir(tmp_path) == ["edge.json"]
    with pytest.raises(HostError) as caught:
        record_link(tmp_path / "none" / "edge.json", None, edge_records()[0])
    assert caught.value.message == (
        f"{tmp_path}/none/.edge.json.lock: cannot make the lock: No such file or directory"
    )
    with pytest.raises(HostError) as caught:
        read_manifest(tmp_path / "none.json")
    assert caught.value.message == (
        f"{tmp_path}/none.json: cannot read the manifest: No such file or directory"
    )
    assert handles() == before


FULL_DISK = """
import resource, sys
from pathlib import Path
from bpfchain.transform.errors import HostError
from bpfchain.transform.manifest_file import record_link
from support.manifests import edge_records
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    record_link(Path(sys.argv[1]), None, edge_records()[2])
except HostError as error:
    print(error.message)
"""


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "edge.json"
    record_link(path, None, edge_records()[0])
    before = path.read_bytes()
    said = finish(start(FULL_DISK, str(path)))
    assert said == f"{path}: cannot write the manifest: File too large\n"
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["edge.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON: Expecting value at line 1 column 1"),
        (b'{"version": 1,\n "version": 1}', "is not JSON that can be read: the key 'version' is there "
         "twice in one object"),
        (b"\xff", "is not JSON: byte 0 is not UTF-8"),
        (b'{"a": NaN}', "is not JSON that can be read: NaN is no JSON number"),
        (b'{"a": 1e999}', "is not JSON that can be read: it holds a number that is too large"),
        (b'{"a": "\\ud800"}', "is not JSON that can be read: it holds half of a surrogate pair"),
        (b"[" * 65 + b"0" + b"]" * 65, "is not JSON that can be read: it is nested too deeply"),
        (b"[" * 200_000, "is not JSON that can be read: it is nested too deeply"),
        (b"[]", "expected an object, found a list"),
        (b'{"version": 2}', "in 'version': 2 is unknown to bpfchain 0.1.0, which reads 1"),
        (b" " * (SIZE_MAX + 1), "is larger than 16 MiB: not a manifest"),
    ],
    ids=range(11),
)  # fmt: skip
def test_a_file_that_is_no_manifest_is_refused_and_kept(
    tmp_path: Path, text: bytes, message: str
) -> None:
    path = tmp_path / "edge.json"
    path.write_bytes(text)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert caught.value.message == f"{path}: {message}"
    assert caught.value.exit_code == 3
    with pytest.raises(ManifestError) as caught:
        record_link(path, None, edge_records()[0])
    assert caught.value.message == f"{path}: {message}"
    assert path.read_bytes() == text
    assert os.listdir(tmp_path) == ["edge.json"]


def test_an_integer_of_many_digits_is_no_traceback() -> None:
    with pytest.raises(ManifestError, match=r"^is not JSON that can be read: Exceeds the limit"):
        loads(b'{"version": ' + b"1" * 5000 + b"}")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused(data: st.DataObject) -> None:
    text = bytearray(TEXT)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place] = data.draw(st.integers(0, 255))
    try:
        manifest = loads(bytes(text))
    except ManifestError as error:
        said = error.message
    else:
        said = ""
        assert loads(dumps(manifest).encode()) == manifest
    assert "\n" not in said


TEXT = dumps(edge()).encode()


def test_a_chain_of_another_hook_mode_or_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "edge.json"
    record_link(path, None, edge_records()[0])
    before = path.read_bytes()
    strangers = (
        (make_link(1, hook_named("tcx/ingress")), "has hook tcx/ingress, the chain edge has xdp"),
        (make_link(1, mode="map"), "has saved-code mode map, the chain edge has slots"),
        (make_link(1, slots_map="blue"), "has slots map blue, the chain edge has bpfchain_slots"),
    )
    for link, message in strangers:
        with pytest.raises(RefusedError) as caught:
            record_link(path, None, make_record(link))
        assert caught.value.message == f"{path}: link 1 (link1.o) {message}"
    with pytest.raises(RefusedError) as caught:
        record_link(path, "core", edge_records()[1])
    assert caught.value.message == f"{path}: is the manifest of chain edge, not of core"
    assert caught.value.hint == "name another manifest file, or remove this one"
    with pytest.raises(ManifestError) as caught:
        record_link(path, None, replace(edge_records()[1], object=""))
    assert caught.value.message == "in 'links[0].object': expected a relative path, found ''"
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["edge.json"]


def test_an_invalid_manifest_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "edge.json"
    with pytest.raises(ManifestError):
        write_manifest(path, replace(edge(), chain="a/b"))
    assert os.listdir(tmp_path) == []


def test_objects_are_named_from_the_manifests_folder(tmp_path: Path) -> None:
    assert object_path(tmp_path / "out" / "edge.json", tmp_path / "out" / "l0.o") == "l0.o"
    assert object_path(tmp_path / "out" / "edge.json", tmp_path / "obj" / "l0.o") == "../obj/l0.o"
    assert object_path(Path("edge.json"), Path("build/l0.o")) == "build/l0.o"
