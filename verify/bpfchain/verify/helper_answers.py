"""Recorded answers of helpers: time, random numbers, who runs, where, what the routing table says."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bpfchain.transform.document import Form, Reader
from bpfchain.transform.errors import nearest
from bpfchain.verify.numbers import U64, hex_bytes, hex_text, number

__all__ = ["FIB_BYTES", "HELPERS", "Answers", "FibAnswer"]

FIB_BYTES = 64
"""Of ``struct bpf_fib_lookup``."""
_U32 = (1 << 32) - 1
_COMM = Form("a name of at most 15 bytes, printable ASCII", r"[\x20-\x7e]{0,15}")
_NUMBERS = {
    "time_base": U64, "time_step": U64, "seed": U64, "cpu": _U32, "pid": _U32, "tgid": _U32,
    "uid": _U32, "gid": _U32,
}  # fmt: skip

HELPERS = (
    "check_mtu", "current_task_under_cgroup", "get_attach_cookie", "get_cgroup_classid",
    "get_current_ancestor_cgroup_id", "get_current_cgroup_id", "get_current_comm",
    "get_current_pid_tgid", "get_current_task", "get_current_uid_gid", "get_func_arg_cnt",
    "get_func_ip", "get_hash_recalc", "get_netns_cookie", "get_ns_current_pid_tgid",
    "get_numa_node_id", "get_prandom_u32", "get_retval", "get_route_realm",
    "get_smp_processor_id", "get_socket_cookie", "get_socket_uid", "get_stackid", "jiffies64",
    "ktime_get_boot_ns", "ktime_get_coarse_ns", "ktime_get_ns", "ktime_get_tai_ns",
    "skb_ancestor_cgroup_id", "skb_cgroup_classid", "skb_cgroup_id", "skb_get_tunnel_key",
    "skb_get_tunnel_opt", "skb_under_cgroup",
)  # fmt: skip
"""Whose answers may be recorded under ``helpers``, without ``bpf_``: what the emulator asks for
(emulator/native/src/helpers/answers.rs)."""

Answer = int | bytes | tuple[bytes, ...]


class FibAnswer(NamedTuple):
    """What one bpf_fib_lookup gave: its result (BPF_FIB_LKUP_RET_*, or a negative errno), and what
    ``struct bpf_fib_lookup`` held afterwards (None: as before)."""

    result: int
    params: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Defaults are those of a run without a scenario. Times in ns."""

    time_base: int = 3_600_000_000_000
    """bpf_ktime_get_ns at the first packet (an hour after boot); a capture's own times count on."""
    time_step: int = 1000
    """How much later each further call within a run is."""
    seed: int = 0
    """Of bpf_get_prandom_u32."""
    cpu: int = 0
    pid: int = 4242
    """bpf_get_current_pid_tgid: the thread (low 32 bits) …"""
    tgid: int = 4242
    """… and the process."""
    uid: int = 0
    gid: int = 0
    comm: str = "bpfchain"
    fib_lookup: tuple[FibAnswer, ...] = ()
    """Used up one a call, and anew for each run of a capture."""
    helpers: Mapping[str, Answer] = field(default_factory=dict)
    """Other helpers, by name without ``bpf_``: a number, bytes, or bytes one a call. Of those that
    fill a structure the first 8 bytes are the result, the rest is what they write."""

    @classmethod
    def read(cls, r: Reader) -> Answers:
        """Read what ``to_dict`` wrote."""
        found: dict[str, Any] = {
            name: number(r, r.raw(name), name, most)
            for name, most in _NUMBERS.items()
            if r.has(name)
        }
        if r.has("comm"):
            found["comm"] = r.text("comm", _COMM)
        if r.has("fib_lookup"):
            found["fib_lookup"] = tuple(_read_fib(item) for item in r.objects("fib_lookup"))
        if r.has("helpers"):
            found["helpers"] = _read_helpers(r.nested("helpers"))
        r.finish()
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, without what is the default."""
        found: dict[str, Any] = {}
        for name in (*_NUMBERS, "comm"):
            if getattr(self, name) != getattr(_DEFAULTS, name):
                found[name] = getattr(self, name)
        if self.fib_lookup:
            found["fib_lookup"] = [
                {"result": answer.result}
                | ({} if answer.params is None else {"params": hex_text(answer.params)})
                for answer in self.fib_lookup
            ]
        if self.helpers:
            found["helpers"] = {name: _plain(answer) for name, answer in self.helpers.items()}
        return found

    def by_helper(self) -> dict[str, Answer]:
        """As the emulator takes them: name of the helper without ``bpf_`` -> answer.

        An answer of fib_lookup is its result (64 bits, little-endian) and the 64 bytes of its
        parameters, or nothing behind the result.
        """
        found: dict[str, Answer] = {
            "ktime_step_ns": self.time_step,
            "get_smp_processor_id": self.cpu,
            "get_current_pid_tgid": self.tgid << 32 | self.pid,
            "get_current_uid_gid": self.gid << 32 | self.uid,
            "get_current_comm": self.comm.encode().ljust(16, b"\0"),
        }
        if self.fib_lookup:
            found["fib_lookup"] = tuple(
                struct.pack("<q", answer.result) + (answer.params or b"")
                for answer in self.fib_lookup
            )
        return {**found, **self.helpers}


_DEFAULTS = Answers()


def _read_fib(r: Reader) -> FibAnswer:
    result = r.integer("result", -4095, 4095)
    params = hex_bytes(r, r.raw("params"), "params") if r.has("params") else None
    if params is not None and len(params) != FIB_BYTES:
        r.fail(f"has {len(params)} bytes, struct bpf_fib_lookup has {FIB_BYTES}", at="params")
    r.finish()
    return FibAnswer(result, params)


def _read_helpers(r: Reader) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    for name in r.names():
        if name not in HELPERS:
            close = nearest(name.removeprefix("bpf_"), HELPERS)
            hint = f"did you mean {close}?" if close else None
            r.fail("is no helper whose answers can be recorded here", hint, at=name)
        value = r.raw(name)
        if isinstance(value, list):
            if not value:
                r.fail("is empty", at=name)
            found[name] = tuple(
                hex_bytes(r, item, f"{name}[{n}]")
                if isinstance(item, str)
                else number(r, item, f"{name}[{n}]").to_bytes(8, "little")
                for n, item in enumerate(value)
            )
        elif isinstance(value, str):
            found[name] = hex_bytes(r, value, name)
        else:
            found[name] = number(r, value, name)
    return found


def _plain(answer: Answer) -> Any:
    if isinstance(answer, int):
        return answer
    return hex_text(answer) if isinstance(answer, bytes) else [hex_text(a) for a in answer]
