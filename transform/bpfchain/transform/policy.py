"""The policy table: what each hook's programs are, what they return, and which codes go on by default.

One row a hook (a program type together with an attach type). Rows, and the state numbers inside a
row, are append-only: a state number is compiled into every patched object (DESIGN section 2).
Return ranges are those of the kernel's ``check_return_code`` (kernel/bpf/verifier.c); that a code
lets a packet on is read from the hook's own switch (``cls_bpf_exec_opcode`` in
net/sched/cls_bpf.c for clsact, ``tcx_action_code`` in include/net/tcx.h for tcx).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .codes import CodeSet
from .errors import OptionError, RefusedError, nearest

__all__ = ["HOOKS", "LINKS_MAX", "Code", "Hook", "hook_named", "hook_of_section"]

LINKS_MAX = 33
"""Links of one chain, indexes 0 to 32 (thesis, 3.1): the kernel follows 33 tail calls from the head."""


@dataclass(frozen=True, slots=True)
class Code:
    """A code that the hook gives a name or that a chain may save, with its state number."""

    name: str
    value: int
    state: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """One row of the table.

    ``sections`` are the ELF section names from which the hook is inferred, ``accepts`` those that
    ``--hook`` may also combine with it; a trailing ``*`` stands for anything. ``returns`` is the
    range to which the verifier bounds r0, ``legal`` what S and R may name. ``nests`` tells that a
    run may begin, or be preempted by another, while one is under way on the same CPU.
    """

    name: str
    prog_type: str
    prog_type_id: int
    attach_type: str | None
    attach_type_id: int
    context: str
    sections: tuple[str, ...]
    accepts: tuple[str, ...] = ()
    codes: tuple[Code, ...]
    aliases: tuple[tuple[str, int], ...] = ()
    prefixes: tuple[str, ...] = ()
    success: CodeSet
    legal: CodeSet = CodeSet.any()  # noqa: RUF009 - a frozen value
    returns: tuple[int, int] | None = None
    states: int = 8
    nests: bool = True
    redirecting: tuple[int, ...] = ()
    redirect_helpers: tuple[int, ...] = ()
    note: str | None = None

    @property
    def names(self) -> Mapping[str, int]:
        """Code names, the hook's own before aliases, and before both with the kernel's prefix."""
        plain = {code.name: code.value for code in self.codes} | dict(self.aliases)
        prefixed = {prefix + name: plain[name] for prefix in self.prefixes for name in plain}
        return plain | prefixed

    @property
    def slots(self) -> int:
        """Entries of the chain's PROG_ARRAY: a constant of the hook."""
        return self.states * LINKS_MAX

    def state_of(self, code: int | None) -> int:
        """The number of the state in which ``code`` is saved; None is "nothing saved", 0.

        Raises OptionError for a code that has no number.
        """
        if code is None:
            return 0
        for known in self.codes:
            if known.value == code and known.state is not None:
                return known.state
        numbered = ", ".join(known.name for known in self.codes if known.state is not None)
        raise OptionError(
            f"{self.name}: {code} cannot be a saved code in slots mode",
            f"it can be one of {numbered}",
        )

    def slot(self, state: int | None, index: int) -> int:
        """The PROG_ARRAY key of link ``index`` in the state where ``state`` is saved."""
        return self.state_of(state) * LINKS_MAX + index

    def name_of(self, code: int) -> str:
        """The code's name, or its number where it has none."""
        return next((known.name for known in self.codes if known.value == code), str(code))

    def matches(self, section: str) -> bool:
        """Whether the section name alone says that its programs are for this hook."""
        return _matches(self.sections, section)

    def fits(self, section: str) -> bool:
        """Whether ``--hook`` may name this hook for a program of that section."""
        return _owner(section) is self or _matches(self.accepts, section)


def _owner(section: str) -> Hook | None:
    """The hook that the section's name alone tells."""
    return next((hook for hook in HOOKS if hook.matches(section)), None)


def _matches(patterns: tuple[str, ...], section: str) -> bool:
    bare = section.removeprefix("?")  # libbpf: "do not load by default"
    return any(bare.startswith(p[:-1]) if p.endswith("*") else bare == p for p in patterns)


def _codes(*named: tuple[str, int], first_state: int = 1) -> tuple[Code, ...]:
    return tuple(Code(name, value, first_state + i) for i, (name, value) in enumerate(named))


_XDP_CODES = _codes(("ABORTED", 0), ("DROP", 1), ("PASS", 2), ("TX", 3), ("REDIRECT", 4))
_TC_ACTIONS = (
    ("UNSPEC", -1), ("OK", 0), ("RECLASSIFY", 1), ("SHOT", 2), ("PIPE", 3), ("STOLEN", 4),
    ("QUEUED", 5), ("REPEAT", 6), ("REDIRECT", 7), ("TRAP", 8),
)  # fmt: skip
_TCX_NAMES = {-1: "NEXT", 0: "PASS", 2: "DROP"}
_PACKET_REDIRECTS = (13, 23, 51, 152, 155)
"""bpf_clone_redirect, bpf_redirect, bpf_redirect_map, bpf_redirect_neigh, bpf_redirect_peer."""
_SOCKET_REDIRECTS = (52, 60, 71, 72)
"""bpf_sk_redirect_map, bpf_msg_redirect_map, bpf_msg_redirect_hash, bpf_sk_redirect_hash."""

_BIT = _codes(("0", 0), ("1", 1))
_TWO_BITS = _codes(("0", 0), ("1", 1), ("2", 2), ("3", 3))
_PASS_DROP = _codes(("DROP", 0), ("PASS", 1))


def _xdp(
    name: str, attach: str, attach_id: int, *sections: str, accepts: tuple[str, ...] = ()
) -> Hook:
    return Hook(
        name=name, prog_type="BPF_PROG_TYPE_XDP", prog_type_id=6,
        attach_type=attach, attach_type_id=attach_id, context="xdp_md",
        sections=sections, accepts=accepts, codes=_XDP_CODES, prefixes=("XDP_",),
        success=CodeSet.of(2), legal=CodeSet(((0, 4),)), nests=False,
        redirecting=(4,), redirect_helpers=_PACKET_REDIRECTS,
    )  # fmt: skip


def _tcx(name: str, attach: str, attach_id: int) -> Hook:
    return Hook(
        name=name, prog_type="BPF_PROG_TYPE_SCHED_CLS", prog_type_id=3,
        attach_type=attach, attach_type_id=attach_id, context="__sk_buff",
        sections=(name, name.replace("tcx", "tc")), accepts=("tc", "classifier", "classifier/*"),
        codes=_codes(*((_TCX_NAMES.get(value, word), value) for word, value in _TC_ACTIONS)),
        aliases=(("UNSPEC", -1), ("OK", 0), ("SHOT", 2)), prefixes=("TCX_", "TC_ACT_"), states=16,
        success=CodeSet.excluding(2, 7), redirecting=(7,), redirect_helpers=_PACKET_REDIRECTS,
    )  # fmt: skip


def _cgroup(
    name: str, kind: str, kind_id: int, attach: str, attach_id: int, context: str,
    *sections: str, wide: bool = False, always: bool = False, accepts: tuple[str, ...] = (),
) -> Hook:  # fmt: skip
    high = 3 if wide else 1
    return Hook(
        name=name, prog_type=kind, prog_type_id=kind_id, attach_type=attach,
        attach_type_id=attach_id, context=context, sections=(name, *sections), accepts=accepts,
        codes=_TWO_BITS if wide else _BIT,
        success=CodeSet.of(1, 3) if wide else CodeSet.of(1),
        legal=CodeSet(((1 if always else 0, high),)), returns=(1 if always else 0, high),
    )  # fmt: skip


def _skb(name: str, attach_id: int, *, egress: bool) -> Hook:
    return _cgroup(
        name, "BPF_PROG_TYPE_CGROUP_SKB", 8, f"BPF_CGROUP_INET_{'E' if egress else 'IN'}GRESS",
        attach_id, "__sk_buff", wide=egress, accepts=("cgroup/skb",),
    )  # fmt: skip


def _sock(name: str, attach: str, attach_id: int, *sections: str) -> Hook:
    return _cgroup(name, "BPF_PROG_TYPE_CGROUP_SOCK", 9, attach, attach_id, "bpf_sock", *sections)


def _addr(
    name: str, attach: str, attach_id: int, *, wide: bool = False, always: bool = False
) -> Hook:
    return _cgroup(
        name, "BPF_PROG_TYPE_CGROUP_SOCK_ADDR", 18, attach, attach_id, "bpf_sock_addr",
        wide=wide, always=always,
    )  # fmt: skip


def _sk(name: str, kind: str, kind_id: int, attach: str, attach_id: int, context: str,
        *sections: str, accepts: tuple[str, ...] = (), checked: bool = False) -> Hook:  # fmt: skip
    return Hook(
        name=name, prog_type=kind, prog_type_id=kind_id, attach_type=attach,
        attach_type_id=attach_id, context=context, sections=sections, accepts=accepts,
        codes=_PASS_DROP, prefixes=("SK_",), success=CodeSet.of(1), legal=CodeSet(((0, 1),)),
        returns=(0, 1) if checked else None,
        redirecting=() if checked else (1,), redirect_helpers=() if checked else _SOCKET_REDIRECTS,
    )  # fmt: skip


_LAST_DECIDES = (
    "every code goes on by default, so only the last link decides whether a 0 suppresses the sample"
)


def _trace(name: str, kind: str, kind_id: int, context: str, *sections: str,
           attach: str | None = None, attach_id: int = 0, note: str | None = None) -> Hook:  # fmt: skip
    return Hook(
        name=name, prog_type=kind, prog_type_id=kind_id, attach_type=attach,
        attach_type_id=attach_id, context=context, sections=sections, codes=_BIT,
        success=CodeSet.any(), note=note,
    )  # fmt: skip


def _lwt(name: str, kind_id: int) -> Hook:
    return Hook(
        name=name, prog_type=f"BPF_PROG_TYPE_{name.upper()}", prog_type_id=kind_id,
        attach_type=None, attach_type_id=0, context="__sk_buff", sections=(name, name + "/*"),
        codes=_codes(("OK", 0), ("DROP", 2), ("REDIRECT", 7), ("REROUTE", 128)),
        aliases=(("LWT_REROUTE", 128),), prefixes=("BPF_",),
        success=CodeSet.of(0), legal=CodeSet.of(0, 2, 7, 128),
        redirecting=(7,), redirect_helpers=_PACKET_REDIRECTS,
    )  # fmt: skip


_ADDR_KINDS = (
    ("bind4", "BPF_CGROUP_INET4_BIND", 8), ("bind6", "BPF_CGROUP_INET6_BIND", 9),
    ("connect4", "BPF_CGROUP_INET4_CONNECT", 10), ("connect6", "BPF_CGROUP_INET6_CONNECT", 11),
    ("sendmsg4", "BPF_CGROUP_UDP4_SENDMSG", 14), ("sendmsg6", "BPF_CGROUP_UDP6_SENDMSG", 15),
    ("recvmsg4", "BPF_CGROUP_UDP4_RECVMSG", 19), ("recvmsg6", "BPF_CGROUP_UDP6_RECVMSG", 20),
    ("getpeername4", "BPF_CGROUP_INET4_GETPEERNAME", 29),
    ("getpeername6", "BPF_CGROUP_INET6_GETPEERNAME", 30),
    ("getsockname4", "BPF_CGROUP_INET4_GETSOCKNAME", 31),
    ("getsockname6", "BPF_CGROUP_INET6_GETSOCKNAME", 32),
    ("connect_unix", "BPF_CGROUP_UNIX_CONNECT", 49),
    ("sendmsg_unix", "BPF_CGROUP_UNIX_SENDMSG", 50),
    ("recvmsg_unix", "BPF_CGROUP_UNIX_RECVMSG", 51),
    ("getpeername_unix", "BPF_CGROUP_UNIX_GETPEERNAME", 52),
    ("getsockname_unix", "BPF_CGROUP_UNIX_GETSOCKNAME", 53),
)  # fmt: skip

HOOKS: tuple[Hook, ...] = (
    _xdp("xdp/devmap", "BPF_XDP_DEVMAP", 33, "xdp/devmap", "xdp.frags/devmap"),
    _xdp("xdp/cpumap", "BPF_XDP_CPUMAP", 35, "xdp/cpumap", "xdp.frags/cpumap"),
    _xdp("xdp", "BPF_XDP", 37, "xdp", "xdp.frags", "xdp/*", "xdp.frags/*", "xdp_*"),
    Hook(
        name="tc", prog_type="BPF_PROG_TYPE_SCHED_CLS", prog_type_id=3, attach_type=None,
        attach_type_id=0, context="__sk_buff", sections=("tc", "classifier", "classifier/*"),
        accepts=("tc/ingress", "tc/egress"), codes=_codes(*_TC_ACTIONS), prefixes=("TC_ACT_",), states=16,
        success=CodeSet.excluding(2, 4, 7, 8), redirecting=(7,), redirect_helpers=_PACKET_REDIRECTS,
    ),
    _tcx("tcx/ingress", "BPF_TCX_INGRESS", 46),
    _tcx("tcx/egress", "BPF_TCX_EGRESS", 47),
    _skb("cgroup_skb/ingress", 0, egress=False),
    _skb("cgroup_skb/egress", 1, egress=True),
    _sock("cgroup/sock_create", "BPF_CGROUP_INET_SOCK_CREATE", 2, "cgroup/sock"),
    _sock("cgroup/sock_release", "BPF_CGROUP_INET_SOCK_RELEASE", 34),
    _sock("cgroup/post_bind4", "BPF_CGROUP_INET4_POST_BIND", 12),
    _sock("cgroup/post_bind6", "BPF_CGROUP_INET6_POST_BIND", 13),
    *(
        _addr(
            f"cgroup/{word}", attach, number, wide=word in ("bind4", "bind6"),
            always=word.startswith(("recvmsg", "getpeername", "getsockname")),
        )
        for word, attach, number in _ADDR_KINDS
    ),
    Hook(
        name="socket", prog_type="BPF_PROG_TYPE_SOCKET_FILTER", prog_type_id=1, attach_type=None,
        attach_type_id=0, context="__sk_buff", sections=("socket", "socket/*", "socket_filter"),
        codes=_codes(("0", 0), ("-1", -1)), success=CodeSet.excluding(0),
        note="a code is the length to keep; 0 drops",
    ),
    _sk("sk_skb/stream_verdict", "BPF_PROG_TYPE_SK_SKB", 14, "BPF_SK_SKB_STREAM_VERDICT", 5,
        "__sk_buff", "sk_skb/stream_verdict", "sk_skb/stream_verdict/*", accepts=("sk_skb",)),
    _sk("sk_skb/verdict", "BPF_PROG_TYPE_SK_SKB", 14, "BPF_SK_SKB_VERDICT", 38,
        "__sk_buff", "sk_skb/verdict", "sk_skb/verdict/*", accepts=("sk_skb",)),
    _sk("sk_msg", "BPF_PROG_TYPE_SK_MSG", 16, "BPF_SK_MSG_VERDICT", 7, "sk_msg_md", "sk_msg",
        "sk_msg/*"),
    _sk("sk_lookup", "BPF_PROG_TYPE_SK_LOOKUP", 30, "BPF_SK_LOOKUP", 36, "bpf_sk_lookup",
        "sk_lookup", "sk_lookup/*", checked=True),
    Hook(
        name="netfilter", prog_type="BPF_PROG_TYPE_NETFILTER", prog_type_id=32,
        attach_type="BPF_NETFILTER", attach_type_id=45, context="bpf_nf_ctx",
        sections=("netfilter",), codes=_codes(("DROP", 0), ("ACCEPT", 1)), prefixes=("NF_",), success=CodeSet.of(1),
        legal=CodeSet(((0, 1),)), returns=(0, 1),
    ),
    _trace("kprobe.multi", "BPF_PROG_TYPE_KPROBE", 2, "pt_regs", "kprobe.multi", "kprobe.multi/*",
           "kretprobe.multi", "kretprobe.multi/*", attach="BPF_TRACE_KPROBE_MULTI", attach_id=42,
           note=_LAST_DECIDES),
    _trace("uprobe.multi", "BPF_PROG_TYPE_KPROBE", 2, "pt_regs", "uprobe.multi", "uprobe.multi/*",
           "uretprobe.multi", "uretprobe.multi/*", attach="BPF_TRACE_UPROBE_MULTI", attach_id=48,
           note=_LAST_DECIDES),
    _trace("kprobe", "BPF_PROG_TYPE_KPROBE", 2, "pt_regs", "kprobe", "kprobe/*", "kretprobe",
           "kretprobe/*", "uprobe", "uprobe/*", "uretprobe", "uretprobe/*", "ksyscall/*",
           "kretsyscall/*", "usdt", "usdt/*", note=_LAST_DECIDES),
    _trace("tracepoint", "BPF_PROG_TYPE_TRACEPOINT", 5, "void", "tp", "tp/*", "tracepoint",
           "tracepoint/*"),
    _trace("raw_tp", "BPF_PROG_TYPE_RAW_TRACEPOINT", 17, "bpf_raw_tracepoint_args", "raw_tp",
           "raw_tp/*", "raw_tracepoint", "raw_tracepoint/*"),
    _trace("raw_tp.w", "BPF_PROG_TYPE_RAW_TRACEPOINT_WRITABLE", 24, "bpf_raw_tracepoint_args",
           "raw_tp.w", "raw_tp.w/*", "raw_tracepoint.w", "raw_tracepoint.w/*"),
    _trace("perf_event", "BPF_PROG_TYPE_PERF_EVENT", 7, "bpf_perf_event_data", "perf_event",
           "perf_event/*", note=_LAST_DECIDES),
    _lwt("lwt_in", 10),
    _lwt("lwt_out", 11),
    _lwt("lwt_xmit", 12),
    _lwt("lwt_seg6local", 19),
)  # fmt: skip

_ALONE = "attach it on its own"
_SLEEPABLE = "is sleepable: the kernel allows no tail call there"
_REFUSED_SECTIONS: tuple[tuple[str, str, str], ...] = (
    (
        "sk_skb/stream_parser",
        "returns a length, not a verdict: a chain cannot tell success from it",
        "chain the stream_verdict program, and attach the parser on its own",
    ),
    ("lsm.s", _SLEEPABLE, f"{_ALONE}; lsm hooks run several programs in the order of attaching"),
    ("fentry.s", _SLEEPABLE, _ALONE),
    ("fexit.s", _SLEEPABLE, _ALONE),
    ("fmod_ret.s", _SLEEPABLE, _ALONE),
    ("iter.s", _SLEEPABLE, _ALONE),
    ("usdt.s", _SLEEPABLE, _ALONE),
    ("uprobe.s", _SLEEPABLE, _ALONE),
    ("uretprobe.s", _SLEEPABLE, _ALONE),
    ("uprobe.multi.s", _SLEEPABLE, _ALONE),
    ("uretprobe.multi.s", _SLEEPABLE, _ALONE),
    ("syscall", "is a syscall program: the kernel allows no PROG_ARRAY there", "run it on its own"),
    *(
        (
            name,
            "is a struct_ops member: its callers expect its own return value",
            "register its struct_ops as it is",
        )
        for name in ("struct_ops", "struct_ops.s")
    ),
    (
        "freplace",
        "is an extension (EXT): the callers of what it replaces expect its own return value",
        _ALONE,
    ),
)
"""Sections (alone, or with ``/`` and more behind) that are refused, why, what to do instead."""


def hook_named(name: str) -> Hook:
    """The row of that name. Raises OptionError with the nearest name."""
    for hook in HOOKS:
        if hook.name == name:
            return hook
    names = [hook.name for hook in HOOKS]
    close = nearest(name, names)
    hint = f"did you mean {close}?" if close else f"the hooks: {', '.join(names)}"
    raise OptionError(f"no hook named {name!r}", hint)


def hook_of_section(section: str, named: str | None, *, what: str) -> Hook:
    """The hook of a program in ``section``, where ``named`` is what ``--hook`` says.

    ``what`` names the program in errors. Raises RefusedError where the type is not in the table,
    where nothing tells the hook, or where ``named`` contradicts the section; OptionError for a hook
    that does not exist.
    """
    bare = section.removeprefix("?")
    for prefix, reason, hint in _REFUSED_SECTIONS:
        if bare == prefix or bare.startswith(prefix + "/"):
            raise RefusedError(f"{what} {reason}", hint)
    found = _owner(section)
    if named is not None:
        chosen = hook_named(named)
        if chosen.fits(section):
            return chosen
        claimed = [hook.name for hook in HOOKS if hook.fits(section)]
        if claimed or _known_elsewhere(bare):
            raise RefusedError(
                f"{what}: hook {named} contradicts its section {section!r}",
                f"leave --hook out, or name {' or '.join(claimed)}" if claimed else None,
            )
        return chosen
    if found is not None:
        return found
    fitting = [hook.name for hook in HOOKS if hook.fits(section)]
    if fitting:
        raise RefusedError(
            f"{what}: section {section!r} fits several hooks",
            f"name one: --hook {'|'.join(fitting)}",
        )
    if _known_elsewhere(bare):
        raise RefusedError(
            f"{what}: programs of section {section!r} cannot be links: their type is not in the policy",
            f"{_ALONE}; `bpfchain-transform --help-hooks` lists the types that can be links",
        )
    raise RefusedError(
        f"{what}: section {section!r} does not tell the hook",
        "name it with --hook, for example --hook xdp",
    )


_OTHER_TYPES = (
    "action", "fentry", "fexit", "fmod_ret", "lsm", "iter", "tp_btf", "sockops", "sk_reuseport",
    "flow_dissector", "lirc_mode2", "cgroup/dev", "cgroup/sysctl", "cgroup/getsockopt",
    "cgroup/setsockopt", "netkit/", "lsm_cgroup", "kprobe.session", "uprobe.session",
)  # fmt: skip


def _known_elsewhere(section: str) -> bool:
    """Whether loaders know the section as a program type that is not in the table."""
    return section.startswith(_OTHER_TYPES)
