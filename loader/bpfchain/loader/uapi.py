"""Numbers and memory layouts of bpf(2), as data: the one place that knows them.

Source: ``<linux/bpf.h>``; what is younger than Debian bookworm's header (tcx, netfilter) is from
the type information of Linux 6.18. ``tests/loader/test_uapi.py`` compares both with a compiled C
program.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping

OBJ_NAME_LEN = 16
"""Bytes of a name in the kernel, the closing zero included."""


class Cmd(enum.IntEnum):
    """Commands of bpf(2) that this package uses (``enum bpf_cmd``)."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    PROG_GET_NEXT_ID = 11
    MAP_GET_NEXT_ID = 12
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    RAW_TRACEPOINT_OPEN = 17
    MAP_LOOKUP_AND_DELETE_ELEM = 21
    MAP_FREEZE = 22
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_GET_FD_BY_ID = 30
    LINK_GET_NEXT_ID = 31
    ENABLE_STATS = 32
    LINK_DETACH = 34


class MapType(enum.IntEnum):
    """``enum bpf_map_type``, ``BPF_MAP_TYPE_`` left off."""

    UNSPEC = 0
    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    STACK_TRACE = 7
    CGROUP_ARRAY = 8
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    SOCKMAP = 15
    CPUMAP = 16
    XSKMAP = 17
    SOCKHASH = 18
    CGROUP_STORAGE = 19
    REUSEPORT_SOCKARRAY = 20
    PERCPU_CGROUP_STORAGE = 21
    QUEUE = 22
    STACK = 23
    SK_STORAGE = 24
    DEVMAP_HASH = 25
    STRUCT_OPS = 26
    RINGBUF = 27
    INODE_STORAGE = 28
    TASK_STORAGE = 29
    BLOOM_FILTER = 30
    USER_RINGBUF = 31
    CGRP_STORAGE = 32
    ARENA = 33


PER_CPU_MAPS = frozenset(
    {
        MapType.PERCPU_HASH,
        MapType.PERCPU_ARRAY,
        MapType.LRU_PERCPU_HASH,
        MapType.PERCPU_CGROUP_STORAGE,
    }
)
"""Maps whose lookups and updates move one value per possible CPU (syscall.c, map_value_size)."""

FD_VALUE_MAPS = frozenset(
    {
        MapType.PROG_ARRAY,
        MapType.PERF_EVENT_ARRAY,
        MapType.CGROUP_ARRAY,
        MapType.ARRAY_OF_MAPS,
        MapType.HASH_OF_MAPS,
    }
)
"""Maps that are given a file descriptor and answer, where they answer, with an id."""


class ProgType(enum.IntEnum):
    """``enum bpf_prog_type``, ``BPF_PROG_TYPE_`` left off."""

    UNSPEC = 0
    SOCKET_FILTER = 1
    KPROBE = 2
    SCHED_CLS = 3
    SCHED_ACT = 4
    TRACEPOINT = 5
    XDP = 6
    PERF_EVENT = 7
    CGROUP_SKB = 8
    CGROUP_SOCK = 9
    LWT_IN = 10
    LWT_OUT = 11
    LWT_XMIT = 12
    SOCK_OPS = 13
    SK_SKB = 14
    CGROUP_DEVICE = 15
    SK_MSG = 16
    RAW_TRACEPOINT = 17
    CGROUP_SOCK_ADDR = 18
    LWT_SEG6LOCAL = 19
    LIRC_MODE2 = 20
    SK_REUSEPORT = 21
    FLOW_DISSECTOR = 22
    CGROUP_SYSCTL = 23
    RAW_TRACEPOINT_WRITABLE = 24
    CGROUP_SOCKOPT = 25
    TRACING = 26
    STRUCT_OPS = 27
    EXT = 28
    LSM = 29
    SK_LOOKUP = 30
    SYSCALL = 31
    NETFILTER = 32


class AttachType(enum.IntEnum):
    """``enum bpf_attach_type``, ``BPF_`` left off."""

    CGROUP_INET_INGRESS = 0
    CGROUP_INET_EGRESS = 1
    CGROUP_INET_SOCK_CREATE = 2
    CGROUP_SOCK_OPS = 3
    SK_SKB_STREAM_PARSER = 4
    SK_SKB_STREAM_VERDICT = 5
    CGROUP_DEVICE = 6
    SK_MSG_VERDICT = 7
    CGROUP_INET4_BIND = 8
    CGROUP_INET6_BIND = 9
    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_INET4_POST_BIND = 12
    CGROUP_INET6_POST_BIND = 13
    CGROUP_UDP4_SENDMSG = 14
    CGROUP_UDP6_SENDMSG = 15
    LIRC_MODE2 = 16
    FLOW_DISSECTOR = 17
    CGROUP_SYSCTL = 18
    CGROUP_UDP4_RECVMSG = 19
    CGROUP_UDP6_RECVMSG = 20
    CGROUP_GETSOCKOPT = 21
    CGROUP_SETSOCKOPT = 22
    TRACE_RAW_TP = 23
    TRACE_FENTRY = 24
    TRACE_FEXIT = 25
    MODIFY_RETURN = 26
    LSM_MAC = 27
    TRACE_ITER = 28
    CGROUP_INET4_GETPEERNAME = 29
    CGROUP_INET6_GETPEERNAME = 30
    CGROUP_INET4_GETSOCKNAME = 31
    CGROUP_INET6_GETSOCKNAME = 32
    XDP_DEVMAP = 33
    CGROUP_INET_SOCK_RELEASE = 34
    XDP_CPUMAP = 35
    SK_LOOKUP = 36
    XDP = 37
    SK_SKB_VERDICT = 38
    SK_REUSEPORT_SELECT = 39
    SK_REUSEPORT_SELECT_OR_MIGRATE = 40
    PERF_EVENT = 41
    TRACE_KPROBE_MULTI = 42
    LSM_CGROUP = 43
    STRUCT_OPS = 44
    NETFILTER = 45
    TCX_INGRESS = 46
    TCX_EGRESS = 47


class LinkType(enum.IntEnum):
    """``enum bpf_link_type``, ``BPF_LINK_TYPE_`` left off."""

    UNSPEC = 0
    RAW_TRACEPOINT = 1
    TRACING = 2
    CGROUP = 3
    ITER = 4
    NETNS = 5
    XDP = 6
    PERF_EVENT = 7
    KPROBE_MULTI = 8
    STRUCT_OPS = 9
    NETFILTER = 10
    TCX = 11
    UPROBE_MULTI = 12
    NETKIT = 13
    SOCKMAP = 14


BPF_ANY, BPF_NOEXIST, BPF_EXIST = 0, 1, 2
BPF_F_REPLACE = 4
BPF_F_XDP_HAS_FRAGS = 1 << 5
BPF_F_TEST_RUN_ON_CPU = 1
BPF_F_RDONLY_PROG = 1 << 7
BPF_STATS_RUN_TIME = 0
BPF_F_ALLOW_OVERRIDE, BPF_F_ALLOW_MULTI = 1 << 0, 1 << 1
BPF_F_QUERY_EFFECTIVE = 1 << 0
XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE = 1 << 1, 1 << 2


class Layout:
    """A C structure as named fields, aligned as the kernel's are (a u64 by 8 everywhere).

    Made from the C type (for the test), a member of it that all fields are in (``""``: none), and
    fields ``"name"`` followed by ``I``, ``Q``, ``i`` or ``<n>s`` as in :mod:`struct`.
    """

    __slots__ = ("_blank", "_struct", "c_type", "member", "offsets", "size")

    def __init__(self, c_type: str, member: str, **fields: str) -> None:
        self.c_type = c_type
        self.member = member
        offsets: dict[str, int] = {}
        spec, at = "=", 0
        for name, code in fields.items():
            width = struct.calcsize("=" + code)
            pad = 0 if code.endswith("s") else -at % width
            spec += f"{pad}x{code}"
            offsets[name] = at + pad
            at += pad + width
        pad = -at % 8
        self._struct = struct.Struct(f"{spec}{pad}x")
        self.offsets: Mapping[str, int] = offsets
        self.size = self._struct.size
        self._blank = dict(zip(offsets, self._struct.unpack(bytes(self.size)), strict=True))

    def pack(self, **values: int | bytes) -> bytearray:
        """The structure with ``values``, all other fields zero. TypeError: no such field."""
        unknown = values.keys() - self.offsets.keys()
        if unknown:
            names = ", ".join(sorted(unknown))
            raise TypeError(f"{self.c_type} {self.member} has no field {names}")
        return bytearray(self._struct.pack(*(self._blank | values).values()))

    def unpack(self, data: bytes | bytearray) -> dict[str, int]:
        """The integer fields of ``data`` (at least ``size`` bytes); see :meth:`text` for others."""
        values = zip(self.offsets, self._struct.unpack_from(data), strict=True)
        return {name: value for name, value in values if isinstance(value, int)}

    def raw(self, data: bytes | bytearray, name: str) -> bytes:
        """The bytes of the field ``name``, which is one of the ``<n>s`` kind."""
        at = dict(zip(self.offsets, self._struct.unpack_from(data), strict=True))[name]
        assert isinstance(at, bytes), f"{name} is not a field of bytes"
        return at

    def text(self, data: bytes | bytearray, name: str) -> str:
        """The zero-terminated name in the field ``name``."""
        return self.raw(data, name).split(b"\0", 1)[0].decode("utf-8", "replace")


_ATTR = "union bpf_attr"
_NAME = f"{OBJ_NAME_LEN}s"

MAP_CREATE = Layout(
    _ATTR, "",
    map_type="I", key_size="I", value_size="I", max_entries="I", map_flags="I", inner_map_fd="I",
    numa_node="I", map_name=_NAME, map_ifindex="I", btf_fd="I", btf_key_type_id="I",
    btf_value_type_id="I", btf_vmlinux_value_type_id="I", map_extra="Q",
)  # fmt: skip
MAP_ELEM = Layout(_ATTR, "", map_fd="I", key="Q", value="Q", flags="Q")
PROG_LOAD = Layout(
    _ATTR, "",
    prog_type="I", insn_cnt="I", insns="Q", license="Q", log_level="I", log_size="I", log_buf="Q",
    kern_version="I", prog_flags="I", prog_name=_NAME, prog_ifindex="I", expected_attach_type="I",
)  # fmt: skip
OBJ = Layout(_ATTR, "", pathname="Q", bpf_fd="I", file_flags="I")
TEST_RUN = Layout(
    _ATTR, "test",
    prog_fd="I", retval="I", data_size_in="I", data_size_out="I", data_in="Q", data_out="Q",
    repeat="I", duration="I", ctx_size_in="I", ctx_size_out="I", ctx_in="Q", ctx_out="Q",
    flags="I", cpu="I", batch_size="I",
)  # fmt: skip
GET_ID = Layout(_ATTR, "", start_id="I", next_id="I", open_flags="I")
INFO = Layout(_ATTR, "info", bpf_fd="I", info_len="I", info="Q")
RAW_TRACEPOINT = Layout(_ATTR, "raw_tracepoint", name="Q", prog_fd="I")
LINK_CREATE = Layout(_ATTR, "link_create", prog_fd="I", target_fd="I", attach_type="I", flags="I")
LINK_CREATE_TCX = Layout(
    _ATTR, "link_create", **{
        "prog_fd": "I", "target_ifindex": "I", "attach_type": "I", "flags": "I",
        "tcx.relative_fd": "I", "tcx.expected_revision": "Q",
    }
)  # fmt: skip
LINK_CREATE_NETFILTER = Layout(
    _ATTR, "link_create", **{
        "prog_fd": "I", "target_fd": "I", "attach_type": "I", "flags": "I",
        "netfilter.pf": "I", "netfilter.hooknum": "I", "netfilter.priority": "i",
        "netfilter.flags": "I",
    }
)  # fmt: skip
LINK_CREATE_PERF = Layout(
    _ATTR, "link_create", **{
        "prog_fd": "I", "target_fd": "I", "attach_type": "I", "flags": "I",
        "perf_event.bpf_cookie": "Q",
    }
)  # fmt: skip
PROG_QUERY = Layout(
    _ATTR, "query",
    target_fd="I", attach_type="I", query_flags="I", attach_flags="I", prog_ids="Q", prog_cnt="I",
    prog_attach_flags="Q", link_ids="Q", link_attach_flags="Q", revision="Q",
)  # fmt: skip
"""What stands behind ``prog_cnt`` older kernels do not know: they refuse it unless it is zero."""
LINK_UPDATE = Layout(_ATTR, "link_update", link_fd="I", new_prog_fd="I", flags="I", old_prog_fd="I")
LINK_DETACH = Layout(_ATTR, "link_detach", link_fd="I")
ENABLE_STATS = Layout(_ATTR, "enable_stats", type="I")

MAP_INFO = Layout(
    "struct bpf_map_info", "",
    type="I", id="I", key_size="I", value_size="I", max_entries="I", map_flags="I", name=_NAME,
    ifindex="I", btf_vmlinux_value_type_id="I", netns_dev="Q", netns_ino="Q", btf_id="I",
    btf_key_type_id="I", btf_value_type_id="I",
)  # fmt: skip
PROG_INFO = Layout(
    "struct bpf_prog_info", "",
    type="I", id="I", tag="8s", jited_prog_len="I", xlated_prog_len="I", jited_prog_insns="Q",
    xlated_prog_insns="Q", load_time="Q", created_by_uid="I", nr_map_ids="I", map_ids="Q",
    name=_NAME, ifindex="I", _gpl_compatible="I", netns_dev="Q", netns_ino="Q", nr_jited_ksyms="I",
    nr_jited_func_lens="I", jited_ksyms="Q", jited_func_lens="Q", btf_id="I",
    func_info_rec_size="I", func_info="Q", nr_func_info="I", nr_line_info="I", line_info="Q",
    jited_line_info="Q", nr_jited_line_info="I", line_info_rec_size="I",
    jited_line_info_rec_size="I", nr_prog_tags="I", prog_tags="Q", run_time_ns="Q", run_cnt="Q",
    recursion_misses="Q", verified_insns="I", attach_btf_obj_id="I", attach_btf_id="I",
)  # fmt: skip
"""Fields whose name begins with ``_`` are bit fields, which C cannot take the offset of."""
LINK_INFO = Layout(
    "struct bpf_link_info", "", type="I", id="I", prog_id="I", _pad="I", _union="48s"
)

PERF_EVENT_ATTR = Layout(
    "struct perf_event_attr", "",
    type="I", size="I", config="Q", sample_period="Q", sample_type="Q", read_format="Q",
    _flags="Q", wakeup_events="I", bp_type="I", config1="Q", config2="Q",
)  # fmt: skip
"""``config1`` is the kprobe's function or the uprobe's path, ``config2`` the offset in it."""
PERF_TYPE_HARDWARE, PERF_TYPE_SOFTWARE, PERF_TYPE_TRACEPOINT = 0, 1, 2
PERF_FLAG_FD_CLOEXEC = 1 << 3
PERF_ATTR_FREQ = 1 << 10
"""Bit of ``_flags``: ``sample_period`` is a frequency (``perf_event_attr.freq``)."""
PERF_EVENT_IOC_ENABLE = 0x2400
PERF_EVENT_IOC_SET_BPF = 0x40042408
PERF_EVENT_IOC_QUERY_BPF = 0xC008240A

SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_LOCK_FILTER, SO_ATTACH_BPF = 26, 27, 44, 50
SO_COOKIE, SO_NETNS_COOKIE = 57, 71
"""``<asm-generic/socket.h>``, which all architectures of the kernel matrix use."""
