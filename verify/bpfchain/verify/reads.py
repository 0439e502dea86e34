"""What a program takes from outside, read off its instructions: helpers' answers, context fields."""

from __future__ import annotations

from bpfchain.transform.helpers import HELPERS

__all__ = ["answered_helpers", "context_bytes", "starts_timers"]

_CALL, _LDDW, _MOV64, _EXIT = 0x85, 0x18, 0xBF, 0x95
_LDX, _STX, _ST = 1, 3, 2
_SIZES = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}
_CONTEXT_MAX = 4096
_ANSWERED = frozenset(
    """
    ktime_get_ns ktime_get_boot_ns ktime_get_coarse_ns ktime_get_tai_ns jiffies64 get_prandom_u32
    get_smp_processor_id get_numa_node_id get_current_pid_tgid get_current_uid_gid
    get_current_comm get_current_task get_current_task_btf get_ns_current_pid_tgid
    get_current_cgroup_id get_current_ancestor_cgroup_id get_cgroup_classid skb_cgroup_classid
    skb_cgroup_id skb_ancestor_cgroup_id sk_cgroup_id sk_ancestor_cgroup_id get_route_realm
    get_hash_recalc get_socket_cookie get_socket_uid get_netns_cookie getsockopt fib_lookup
    skb_get_tunnel_key skb_get_tunnel_opt skb_get_xfrm_state sk_lookup_tcp sk_lookup_udp
    skc_lookup_tcp perf_event_read perf_event_read_value perf_prog_read_value get_stackid get_stack
    get_task_stack get_func_ip get_attach_cookie get_branch_snapshot read_branch_records
    probe_read probe_read_str probe_read_user probe_read_kernel probe_read_user_str
    probe_read_kernel_str check_mtu
    """.split()  # noqa: SIM905 - as in helpers.py
)
"""Without ``bpf_``: their answers come from the scenario, a seed, or a fixed value."""
_TIMER_START = HELPERS.index("timer_start") + 1
_NUMBERS = {number: name for number, name in enumerate(HELPERS, 1) if name in _ANSWERED}


def answered_helpers(code: bytes) -> tuple[str, ...]:
    """Helpers whose answers are no function of packet, context and maps: names with ``bpf_``, in
    the order of their numbers. ``code``: little-endian instructions."""
    found = _called(code)
    return tuple(f"bpf_{_NUMBERS[number]}" for number in sorted(found & _NUMBERS.keys()))


def starts_timers(code: bytes) -> bool:
    """Whether it calls bpf_timer_start: what the timer does comes later, and on any CPU."""
    return _TIMER_START in _called(code)


def _called(code: bytes) -> set[int]:
    found = set()
    at = 0
    while at + 8 <= len(code):
        if code[at] == _CALL and code[at + 1] >> 4 == 0:
            found.add(int.from_bytes(code[at + 4 : at + 8], "little"))
        at += 16 if code[at] == _LDDW else 8
    return found


def context_bytes(code: bytes) -> int:
    """The end of the last context field that the code seems to read, in bytes.

    An estimate that looks at the instructions in their order, for contexts of no known size: r1 and
    copies of it are the context until a call (r1 to r5), or something else, takes the register.
    """
    holds, end, at = {1}, 0, 0
    while at + 8 <= len(code):
        opcode, to, source = code[at], code[at + 1] & 15, code[at + 1] >> 4
        kind = opcode & 7
        if kind in (_LDX, _STX, _ST) and (source if kind == _LDX else to) in holds:
            offset = int.from_bytes(code[at + 2 : at + 4], "little", signed=True)
            if 0 <= offset < _CONTEXT_MAX:
                end = max(end, offset + _SIZES[opcode & 0x18])
        if opcode == _MOV64 and source in holds:
            holds.add(to)
        elif opcode == _CALL:
            holds -= {0, 1, 2, 3, 4, 5}
        elif opcode == _EXIT:
            pass
        elif kind in (_LDX, 0, 4, 7):  # LDX, LD and both ALU classes write a register
            holds.discard(to)
        at += 16 if opcode == _LDDW else 8
    return end
