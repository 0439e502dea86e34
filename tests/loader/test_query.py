"""Ids, names and links as the kernel tells them, and which network namespace this is."""

from __future__ import annotations

import errno
import os

import pytest

from bpfchain.loader import netns, query
from bpfchain.loader.links import link_create
from bpfchain.loader.maps import Map
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import AttachType, LinkType, MapType, ProgType
from support.bpfcode import bpf_descriptors
from support.counting import Counting, gone
from support.nets import in_netns

pytestmark = pytest.mark.usefixtures("kernel")


def test_ids_of_all_objects() -> None:
    before = bpf_descriptors()

    def work() -> None:
        with (
            Map.create(MapType.ARRAY, 4, 4, 1) as map,
            Counting(ProgType.XDP, 2, AttachType.XDP, name="told") as one,
            link_create(one.program, 1, AttachType.XDP) as link,
        ):
            assert map.id in list(query.map_ids())
            assert one.counter.id in list(query.map_ids())
            assert one.id in list(query.program_ids())
            assert link.info().id in list(query.link_ids())
            assert link.info() in list(query.links())
            assert query.links_of(one.id, LinkType.XDP) == (link.info(),)
            assert query.links_of(one.id, LinkType.TCX) == ()
            assert query.program_info(one.id) == one.program.info()
            assert query.program_name(one.id) == "told"
            assert query.called(one.id) == f"told (id {one.id})"
            assert not query.is_dispatcher(one.id, 1)
            assert query.dispatched(one.id) == ()
            last = link.info().id
        assert last not in list(query.link_ids())
        assert gone(one)
        assert query.program_name(one.id) is None
        assert query.called(one.id) == f"program {one.id} of unknown name"

    in_netns(work)
    assert bpf_descriptors() == before


def test_what_may_not_be_known_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise BpfError(errno.EPERM, "BPF_X")

    monkeypatch.setattr(query, "bpf", refused)
    monkeypatch.setattr("bpfchain.loader.syscall.bpf", refused)
    assert query.program_info(1) is None
    assert query.links_of(1, LinkType.XDP) is None
    assert query.dispatched(1) is None
    with pytest.raises(BpfError, match="EPERM"):
        list(query.program_ids())


def test_a_namespace_has_a_number_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for _ in range(2):
        in_netns(lambda: seen.append(netns.key()))
    assert len({netns.key(), *seen}) == 3
    assert all(one.isdecimal() for one in seen)
    assert netns.key() == str(netns.cookie())

    # before 5.14: an option that does not exist
    monkeypatch.setattr(netns, "SO_NETNS_COOKIE", 0x7FFF)
    assert netns.cookie() is None
    assert netns.key() == f"inode{os.stat('/proc/self/ns/net').st_ino}"
