"""The numbers and layouts of ``bpfchain.loader.uapi`` against C: what a compiler says they are."""

from __future__ import annotations

import enum
import platform
import subprocess
from pathlib import Path

import pytest

from bpfchain.loader import caps, grace, links, netlink, perf, syscall, uapi
from bpfchain.loader.library import OpenOptions

VMLINUX_BTF = Path("/sys/kernel/btf/vmlinux")

# Not in Debian bookworm's <linux/bpf.h> (6.1); compared with the running kernel's types.
YOUNGER = {
    "BPF_MAP_TYPE_CGRP_STORAGE", "BPF_MAP_TYPE_ARENA", "BPF_PROG_TYPE_NETFILTER",
    "BPF_STRUCT_OPS", "BPF_NETFILTER", "BPF_TCX_INGRESS", "BPF_TCX_EGRESS",
    "BPF_LINK_TYPE_NETFILTER", "BPF_LINK_TYPE_TCX", "BPF_LINK_TYPE_UPROBE_MULTI",
    "BPF_LINK_TYPE_NETKIT", "BPF_LINK_TYPE_SOCKMAP",
}  # fmt: skip
YOUNGER_MEMBERS = ("tcx", "netfilter", "query.link_ids", "query.link_attach_flags",
                   "query.revision")  # fmt: skip

ENUMS: dict[str, type[enum.IntEnum]] = {
    "BPF_": uapi.Cmd,
    "BPF_MAP_TYPE_": uapi.MapType,
    "BPF_PROG_TYPE_": uapi.ProgType,
    " BPF_": uapi.AttachType,  # a space: the same prefix as the commands'
    "BPF_LINK_TYPE_": uapi.LinkType,
}
CONSTANTS = (
    "BPF_OBJ_NAME_LEN", "BPF_ANY", "BPF_NOEXIST", "BPF_EXIST", "BPF_F_REPLACE",
    "BPF_F_XDP_HAS_FRAGS", "BPF_F_TEST_RUN_ON_CPU", "BPF_F_RDONLY_PROG", "BPF_STATS_RUN_TIME",
    "XDP_FLAGS_SKB_MODE", "XDP_FLAGS_DRV_MODE", "BPF_F_ALLOW_OVERRIDE", "BPF_F_ALLOW_MULTI",
    "BPF_F_QUERY_EFFECTIVE",
    "PERF_TYPE_HARDWARE", "PERF_TYPE_SOFTWARE", "PERF_TYPE_TRACEPOINT",
    "PERF_FLAG_FD_CLOEXEC", "PERF_EVENT_IOC_ENABLE", "PERF_EVENT_IOC_SET_BPF",
    "PERF_EVENT_IOC_QUERY_BPF",
    "SO_ATTACH_FILTER", "SO_DETACH_FILTER", "SO_LOCK_FILTER", "SO_ATTACH_BPF", "SO_COOKIE",
    "SO_NETNS_COOKIE",
)  # fmt: skip
INCLUDES = "\n".join(
    f"#include <{name}>"
    for name in (
        "stdio.h", "linux/bpf.h", "linux/if_link.h", "linux/perf_event.h", "asm/socket.h",
        "linux/netlink.h", "linux/rtnetlink.h", "linux/pkt_cls.h", "linux/pkt_sched.h",
        "linux/if_ether.h", "linux/capability.h", "sys/syscall.h", "sys/socket.h",
        "linux/membarrier.h",
    )
)  # fmt: skip


def expressions() -> dict[str, int]:
    """C expression -> what this package takes it to be."""
    found: dict[str, int] = {}
    layouts = [value for value in vars(uapi).values() if isinstance(value, uapi.Layout)]
    assert len(layouts) >= 17, "the layouts are not found any more"
    for layout in layouts:
        for field, offset in layout.offsets.items():
            if not field.startswith("_"):
                path = f"{layout.member}.{field}" if layout.member else field
                found[f"__builtin_offsetof({layout.c_type}, {path})"] = offset
    union = uapi.LINK_INFO.offsets["_union"]
    for layout in links._TARGETS.values():
        for field, offset in layout.offsets.items():
            path = f"{layout.member}.{field}"
            found[f"__builtin_offsetof({layout.c_type}, {path})"] = union + offset
    for prefix, members in ENUMS.items():
        found |= {prefix.strip() + member.name: member.value for member in members}
    return found


def compiled(tmp_path: Path, includes: str, names: list[str]) -> dict[str, int]:
    """What a C compiler says that ``names`` are."""
    lines = "\n".join(f'  printf("%lld\\n", (long long)({name}));' for name in names)
    source, binary = tmp_path / "values.c", tmp_path / "values"
    source.write_text(f"{includes}\nint main(void) {{\n{lines}\n  return 0;\n}}\n")
    done = subprocess.run(
        ["cc", "-w", "-o", binary, source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    out = subprocess.run([binary], capture_output=True, text=True, check=True).stdout.split()
    return dict(zip(names, map(int, out), strict=True))


def test_the_header_agrees(tmp_path: Path) -> None:
    expected = {
        name: value
        for name, value in expressions().items()
        if name not in YOUNGER and not any(f", {m}" in name or f".{m}." in name
                                           for m in YOUNGER_MEMBERS)
    }  # fmt: skip
    expected |= {
        name: getattr(uapi, name.removeprefix("BPF_") if "OBJ_NAME" in name else name)
        for name in CONSTANTS
    }
    assert compiled(tmp_path, INCLUDES, list(expected)) == expected


def test_the_headers_of_netlink_agree(tmp_path: Path) -> None:
    """Every number that netlink.py has a name for, and the structures that it packs."""
    expected = {
        name: value
        for name, value in vars(netlink).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, int)
    }
    assert len(expected) == 40, "the numbers are not found any more"
    del expected["NLM_F_DUMP"]  # of two bits, one of which is NLM_F_EXCL's
    del expected["NLA_TYPE_MASK"]  # a negative int in C
    expected["(NLA_TYPE_MASK & 0xFFFF)"] = netlink.NLA_TYPE_MASK
    expected["(NLM_F_ROOT | NLM_F_MATCH)"] = netlink.NLM_F_DUMP
    for c_type, layout, fields in (
        ("struct nlmsghdr", netlink._HEADER,
         ("nlmsg_len", "nlmsg_type", "nlmsg_flags", "nlmsg_seq", "nlmsg_pid")),
        ("struct ifinfomsg", netlink._IFINFO,
         ("ifi_family", "ifi_type", "ifi_index", "ifi_flags", "ifi_change")),
        ("struct tcmsg", netlink._TCMSG,
         ("tcm_family", "tcm_ifindex", "tcm_handle", "tcm_parent", "tcm_info")),
        ("struct nlattr", netlink._ATTRIBUTE, ("nla_len", "nla_type")),
    ):  # fmt: skip
        expected[f"sizeof({c_type})"] = layout.size
        # a value whose bytes say where they are: field n must come out as the bytes at its offset
        told = layout.unpack(bytes(range(layout.size)))
        for field, value in zip(fields, told, strict=True):
            expected[f"__builtin_offsetof({c_type}, {field})"] = value & 0xFF
    assert compiled(tmp_path, INCLUDES, list(expected)) == expected


def test_the_numbers_of_system_calls_and_capabilities(tmp_path: Path) -> None:
    machine = platform.machine()
    expected = {
        "SYS_bpf": syscall._NUMBERS[machine],
        "SYS_perf_event_open": perf._NUMBERS[machine],
        "SYS_membarrier": grace._MEMBARRIER[machine],
        "MEMBARRIER_CMD_GLOBAL": grace._MEMBARRIER_CMD_GLOBAL,
        **caps.NUMBERS,
    }
    assert compiled(tmp_path, INCLUDES, list(expected)) == expected


def test_the_bit_that_makes_a_period_a_frequency(tmp_path: Path) -> None:
    """C cannot take the offset of a bit field: set it and look."""
    at = uapi.PERF_EVENT_ATTR.offsets["_flags"]
    expression = (
        "({ struct perf_event_attr a = {0}; a.freq = 1;"
        f" *(unsigned long long *)((char *)&a + {at}); }})"
    )
    expected = {expression: uapi.PERF_ATTR_FREQ}
    assert compiled(tmp_path, INCLUDES, list(expected)) == expected


def test_the_running_kernel_agrees(tmp_path: Path) -> None:
    if not VMLINUX_BTF.exists():
        pytest.skip(f"no {VMLINUX_BTF}: the kernel does not tell its types")
    with (tmp_path / "vmlinux.h").open("w") as header:
        command = ["bpftool", "btf", "dump", "file", str(VMLINUX_BTF), "format", "c"]
        subprocess.run(command, stdout=header, check=True)
    expected = expressions()
    text = (tmp_path / "vmlinux.h").read_text()
    if "BPF_TCX_INGRESS" not in text or "BPF_LINK_TYPE_SOCKMAP" not in text:
        pytest.skip("the running kernel is too old to know all of the numbers (6.18 does)")
    includes = '#include "vmlinux.h"\nint printf(const char *, ...);'
    assert compiled(tmp_path, includes, list(expected)) == expected


def test_the_options_of_libbpf(tmp_path: Path) -> None:
    expected = {
        f"__builtin_offsetof(struct bpf_object_open_opts, {name})": getattr(
            OpenOptions, name
        ).offset
        for name, _ in OpenOptions._fields_
        if not name.startswith("_")
    }
    includes = "#include <stdio.h>\n#include <bpf/libbpf.h>"
    assert compiled(tmp_path, includes, list(expected)) == expected


def test_a_layout_packs_where_it_says() -> None:
    layout = uapi.Layout("struct s", "", a="I", b="Q", c="5s", d="I", e="i")
    assert dict(layout.offsets) == {"a": 0, "b": 8, "c": 16, "d": 24, "e": 28}
    data = layout.pack(a=1, b=2, c=b"xy", e=-3)
    assert data == bytes.fromhex(
        "01000000 00000000 0200000000000000 7879000000 000000 00000000 fdffffff"
    )
    assert layout.unpack(data) == {"a": 1, "b": 2, "d": 0, "e": -3}
    assert layout.text(data, "c") == "xy"
    with pytest.raises(TypeError, match="no field z"):
        layout.pack(z=1)
