"""What the kernel's helpers read and write through the pointers they are given.

From the ``bpf_func_proto`` tables (kernel/bpf/helpers.c, net/core/filter.c, kernel/trace/bpf_trace.c).
Only helpers that take memory are listed: everything else takes numbers, the context or kernel objects.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CALLBACKS", "HELPERS", "KNOWN_HELPERS", "TAIL_CALL", "Argument", "Callback", "Helper"]

KNOWN_HELPERS = 211
"""The last helper by number: the kernel adds functions of other kinds since (6.2)."""
TAIL_CALL = 12
MAP_LOOKUP = 1


class Argument(NamedTuple):
    """Memory behind the pointer in ``register``.

    ``size`` says how long it is: ``"key"`` and ``"value"`` of the map in ``map``'s register, a number
    of bytes, or (where ``length`` is set) what that register holds.
    """

    register: int
    reads: bool
    writes: bool
    size: int | str = 0
    length: int = 0
    map: int = 1


class Helper(NamedTuple):
    """A helper's name (without ``bpf_``) and its arguments that are memory."""

    name: str
    memory: tuple[Argument, ...]


class Callback(NamedTuple):
    """A helper that runs a function of the program: which registers hold the function and the
    pointer that is handed on, and in which of the function's registers that pointer arrives."""

    function: int
    context: int
    arrives: int


def _arguments(text: str) -> tuple[Argument, ...]:
    """``r3:4`` reads r3, r4 bytes long; ``w``: writes; ``u``: both; ``#8``: that many bytes;
    ``k``/``v``: a key or value of the map in r1 (``@2``: in r2)."""
    found = []
    for item in text.split():
        word, _, where = item.partition("@")
        held = int(where or 1)
        kind, register = word[0], int(word[1])
        rest = word[2:]
        if kind in "kv":
            found.append(
                Argument(register, True, False, "key" if kind == "k" else "value", map=held)
            )
        elif kind == "V":
            found.append(Argument(register, False, True, "value", map=held))
        elif rest.startswith("#"):
            found.append(Argument(register, kind in "ru", kind in "wu", int(rest[1:])))
        else:
            found.append(Argument(register, kind in "ru", kind in "wu", length=int(rest[1:])))
    return tuple(found)


_TABLE = """
1 map_lookup_elem k2 | 2 map_update_elem k2 v3 | 3 map_delete_elem k2 | 4 probe_read w1:2
6 trace_printk r1:2 | 9 skb_store_bytes r3:4 | 16 get_current_comm w1:2 | 20 skb_get_tunnel_key w2:3
21 skb_set_tunnel_key r2:3 | 25 perf_event_output r4:5 | 26 skb_load_bytes w3:4
28 csum_diff r1:2 r3:4 | 29 skb_get_tunnel_opt w2:3 | 30 skb_set_tunnel_opt r2:3
36 probe_write_user r2:3 | 45 probe_read_str w1:2 | 49 setsockopt r4:5 | 53 sock_map_update k3@2
55 perf_event_read_value w3:4 | 56 perf_prog_read_value w2:3 | 57 getsockopt w4:5 | 64 bind r2:3
66 skb_get_xfrm_state w3:4 | 67 get_stack w2:3 | 68 skb_load_bytes_relative w3:4
69 fib_lookup u2:3 | 70 sock_hash_update k3@2 | 71 msg_redirect_hash k3@2 | 72 sk_redirect_hash k3@2
73 lwt_push_encap r3:4 | 74 lwt_seg6_store_bytes r3:4 | 76 lwt_seg6_action r3:4
82 sk_select_reuseport k3@2 | 84 sk_lookup_tcp r2:3 | 85 sk_lookup_udp r2:3 | 87 map_push_elem v2
88 map_pop_elem V2 | 89 map_peek_elem V2 | 99 skc_lookup_tcp r2:3 | 100 tcp_check_syncookie r2:3 r4:5
101 sysctl_get_name w2:3 | 102 sysctl_get_current_value w2:3 | 103 sysctl_get_new_value w2:3
104 sysctl_set_new_value r2:3 | 105 strtol r1:2 w4#8 | 106 strtoul r1:2 w4#8 | 107 sk_storage_get v3
110 tcp_gen_syncookie r2:3 r4:5 | 111 skb_output r4:5 | 112 probe_read_user w1:2
113 probe_read_kernel w1:2 | 114 probe_read_user_str w1:2 | 115 probe_read_kernel_str w1:2
119 read_branch_records w2:3 | 120 get_ns_current_pid_tgid w3:4 | 121 xdp_output r4:5
126 seq_printf r2:3 r4:5 | 127 seq_write r2:3 | 130 ringbuf_output r2:3 | 141 get_task_stack w2:3
142 load_hdr_opt u2:3 | 143 store_hdr_opt r2:3 | 145 inode_storage_get v3 | 147 d_path w2:3
148 copy_from_user w1:2 | 149 snprintf_btf w1:2 r3:4 | 150 seq_printf_btf r2:3
152 redirect_neigh r2:3 | 156 task_storage_get v3 | 161 ima_inode_hash w2:3 | 163 check_mtu u3#4
165 snprintf w1:2 r4:5 | 176 get_branch_snapshot w1:2 | 177 trace_vprintk r1:2 r3:4
179 kallsyms_lookup_name r1:2 w4#8 | 182 strncmp r1:2 | 183 get_func_arg w3#8 | 184 get_func_ret w2#8
189 xdp_load_bytes w3:4 | 190 xdp_store_bytes r3:4 | 191 copy_from_user_task w1:2
193 ima_file_hash w2:3 | 195 map_lookup_percpu_elem k2 | 197 dynptr_from_mem u1:2 w4#16
198 ringbuf_reserve_dynptr w4#16 | 199 ringbuf_submit_dynptr r1#16 | 200 ringbuf_discard_dynptr r1#16
201 dynptr_read w1:2 r3#16 | 202 dynptr_write r1#16 r3:4 | 203 dynptr_data r1#16
204 tcp_raw_gen_syncookie_ipv4 r1#20 r2:3 | 205 tcp_raw_gen_syncookie_ipv6 r1#40 r2:3
206 tcp_raw_check_syncookie_ipv4 r1#20 r2#20 | 207 tcp_raw_check_syncookie_ipv6 r1#40 r2#20
210 cgrp_storage_get v3
"""

HELPERS: dict[int, Helper] = {}
for _line in _TABLE.replace("\n", "|").split("|"):
    if _line.strip():
        _number, _name, _rest = (_line.strip() + "  ").split(" ", 2)
        HELPERS[int(_number)] = Helper(_name, _arguments(_rest))

CALLBACKS = {
    164: Callback(2, 3, 4),  # for_each_map_elem(map, function, ctx, flags): (map, key, value, ctx)
    170: Callback(2, 0, 0),  # timer_set_callback(timer, function): runs later, without our stack
    180: Callback(3, 4, 3),  # find_vma(task, address, function, ctx, flags): (task, vma, ctx)
    181: Callback(2, 3, 2),  # loop(count, function, ctx, flags): (index, ctx)
    209: Callback(2, 3, 2),  # user_ringbuf_drain(map, function, ctx, flags): (dynptr, ctx)
}
