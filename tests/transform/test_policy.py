"""The policy table beside the kernel's own numbers, libbpf's section names and DESIGN section 2."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from bpfchain.loader.programs import load_raw
from bpfchain.loader.uapi import ProgType
from bpfchain.transform.codes import CodeSet
from bpfchain.transform.errors import BpfchainError, RefusedError, UsageError
from bpfchain.transform.policy import HOOKS, LINKS_MAX, Hook, hook_named, hook_of_section
from support.bpfcode import returns

VMLINUX = Path("/sys/kernel/btf/vmlinux")
STATES = Path(__file__).with_name("states.txt")
WHAT = "program p (S)"

_SLEEPS = "is sleepable: the kernel allows no tail call there"
_NOT_IN = "their type is not in the policy"
_SEVERAL = "fits several hooks"

# libbpf's list, Documentation/bpf/libbpf/program_types.rst, and what newer libbpf adds to it; a
# trailing + is written out as libbpf reads it: alone, and with something behind a slash
SECTIONS: dict[str, str] = {
    "socket": "socket",
    "kprobe": "kprobe", "kprobe/do_exit": "kprobe", "kprobe/do_exit+4": "kprobe",
    "kretprobe": "kprobe", "kretprobe/x": "kprobe",
    "uprobe": "kprobe", "uprobe//bin/sh:main": "kprobe",
    "uretprobe": "kprobe", "uretprobe/x": "kprobe",
    "ksyscall/open": "kprobe", "kretsyscall/open": "kprobe",
    "usdt": "kprobe", "usdt/libc:x:y": "kprobe",
    "kprobe.multi": "kprobe.multi", "kprobe.multi/tcp_*": "kprobe.multi",
    "kretprobe.multi/tcp_*": "kprobe.multi",
    "uprobe.multi": "uprobe.multi", "uprobe.multi//bin/sh:*": "uprobe.multi",
    "uretprobe.multi/x": "uprobe.multi",
    "tp": "tracepoint", "tp/sched/sched_switch": "tracepoint",
    "tracepoint": "tracepoint", "tracepoint/sched/sched_switch": "tracepoint",
    "raw_tp": "raw_tp", "raw_tp/sys_enter": "raw_tp",
    "raw_tracepoint": "raw_tp", "raw_tracepoint/sys_enter": "raw_tp",
    "raw_tp.w": "raw_tp.w", "raw_tp.w/nbd": "raw_tp.w", "raw_tracepoint.w/nbd": "raw_tp.w",
    "perf_event": "perf_event",
    "tc": "tc", "classifier": "tc",
    "tcx/ingress": "tcx/ingress", "tcx/egress": "tcx/egress",
    "tc/ingress": "tcx/ingress", "tc/egress": "tcx/egress",
    "xdp": "xdp", "xdp.frags": "xdp",
    "xdp/devmap": "xdp/devmap", "xdp.frags/devmap": "xdp/devmap",
    "xdp/cpumap": "xdp/cpumap", "xdp.frags/cpumap": "xdp/cpumap",
    "cgroup_skb/ingress": "cgroup_skb/ingress", "cgroup_skb/egress": "cgroup_skb/egress",
    "cgroup/sock_create": "cgroup/sock_create", "cgroup/sock": "cgroup/sock_create",
    "cgroup/sock_release": "cgroup/sock_release",
    "cgroup/post_bind4": "cgroup/post_bind4", "cgroup/post_bind6": "cgroup/post_bind6",
    **{f"cgroup/{word}": f"cgroup/{word}" for word in (
        "bind4", "bind6", "connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6",
        "getpeername4", "getpeername6", "getsockname4", "getsockname6", "connect_unix",
        "sendmsg_unix", "recvmsg_unix", "getpeername_unix", "getsockname_unix",
    )},
    "sk_skb/stream_verdict": "sk_skb/stream_verdict", "sk_skb/verdict": "sk_skb/verdict",
    "sk_msg": "sk_msg", "sk_lookup": "sk_lookup", "netfilter": "netfilter",
    "lwt_in": "lwt_in", "lwt_out": "lwt_out", "lwt_xmit": "lwt_xmit",
    "lwt_seg6local": "lwt_seg6local",
    # what libbpf before 1.0 took, and other loaders still do
    "xdp/drop": "xdp", "xdp_drop": "xdp", "classifier/x": "tc", "socket/x": "socket",
    "?xdp": "xdp", "?tc": "tc",
}  # fmt: skip
REFUSED: dict[str, str] = {
    "cgroup/skb": _SEVERAL, "sk_skb": _SEVERAL,
    "sk_skb/stream_parser": "returns a length, not a verdict",
    "uprobe.s/x": _SLEEPS, "uretprobe.s/x": _SLEEPS, "uprobe.multi.s/x": _SLEEPS,
    "uretprobe.multi.s/x": _SLEEPS, "usdt.s/x": _SLEEPS, "lsm.s/file_open": _SLEEPS,
    "fentry.s/x": _SLEEPS, "fexit.s/x": _SLEEPS, "fmod_ret.s/x": _SLEEPS, "iter.s/task": _SLEEPS,
    "syscall": "is a syscall program",
    "struct_ops": "is a struct_ops member", "struct_ops/x": "is a struct_ops member",
    "struct_ops.s/x": "is a struct_ops member",
    "freplace": "is an extension (EXT)", "freplace/x": "is an extension (EXT)",
    **dict.fromkeys(("action", "cgroup/dev", "cgroup/sysctl", "cgroup/getsockopt", "cgroup/setsockopt", "fentry/x", "fexit/x", "fmod_ret/x", "iter/task", "lsm/file_open", "lsm_cgroup/bind", "tp_btf/sched_switch", "sockops", "sk_reuseport", "sk_reuseport/migrate", "flow_dissector", "lirc_mode2", "netkit/primary", "netkit/peer", "kprobe.session/x", "uprobe.session/x"), _NOT_IN),
}  # fmt: skip
UNKNOWN = (
    "filter",
    "prog",
    "xdpfoo",
    "kprobex",
    "tcx",
    "cgroup/bind",
    "cgroup_skb/x",
    "XDP",
    "lwt",
    "",
)


@pytest.mark.parametrize(("section", "hook"), SECTIONS.items())
def test_section_names_the_hook(section: str, hook: str) -> None:
    assert hook_of_section(section, None, what=WHAT).name == hook
    assert hook_of_section(section, hook, what=WHAT).name == hook


@pytest.mark.parametrize(("section", "reason"), REFUSED.items())
def test_section_is_refused(section: str, reason: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(reason)):
        hook_of_section(section, None, what=WHAT)
    if reason is _SEVERAL:
        return
    for named in ("xdp", "kprobe", "tc"):
        with pytest.raises(RefusedError):
            hook_of_section(section, named, what=WHAT)


@pytest.mark.parametrize("section", UNKNOWN)
def test_unknown_section_needs_a_name(section: str) -> None:
    with pytest.raises(RefusedError) as caught:
        hook_of_section(section, None, what=WHAT)
    assert caught.value.message == f"{WHAT}: section {section!r} does not tell the hook"
    assert caught.value.hint == "name it with --hook, for example --hook xdp"
    assert hook_of_section(section, "tcx/egress", what=WHAT).name == "tcx/egress"


@pytest.mark.parametrize(
    ("section", "named", "result"),
    [
        ("cgroup/skb", "cgroup_skb/egress", "cgroup_skb/egress"),
        ("sk_skb", "sk_skb/verdict", "sk_skb/verdict"),
        ("sk_skb", "sk_skb/stream_verdict", "sk_skb/stream_verdict"),
        # one program, two hooks that read its code differently: the manifest says for which
        ("tc", "tcx/ingress", "tcx/ingress"),
        ("classifier", "tcx/egress", "tcx/egress"),
        ("tc/ingress", "tc", "tc"),
    ],
)
def test_hook_may_be_named(section: str, named: str, result: str) -> None:
    assert hook_of_section(section, named, what=WHAT).name == result


@pytest.mark.parametrize(
    ("section", "named", "message", "hint"),
    [
        ("xdp", "tc", f"{WHAT}: hook tc contradicts its section 'xdp'", "leave --hook out, or name xdp"),
        ("xdp/devmap", "xdp", f"{WHAT}: hook xdp contradicts its section 'xdp/devmap'", None),
        ("tc/ingress", "tcx/egress", f"{WHAT}: hook tcx/egress contradicts its section 'tc/ingress'", None),
        ("cgroup_skb/ingress", "cgroup_skb/egress",
         f"{WHAT}: hook cgroup_skb/egress contradicts its section 'cgroup_skb/ingress'", None),
        ("tp_btf/x", "raw_tp", f"{WHAT}: hook raw_tp contradicts its section 'tp_btf/x'", None),
    ],
)  # fmt: skip
def test_contradictions(section: str, named: str, message: str, hint: str | None) -> None:
    with pytest.raises(RefusedError) as caught:
        hook_of_section(section, named, what=WHAT)
    assert caught.value.message == message
    assert hint is None or caught.value.hint == hint


@pytest.mark.parametrize(
    ("section", "message", "hint"),
    [
        ("lsm.s/file_open", f"{WHAT} {_SLEEPS}",
         "attach it on its own; lsm hooks run several programs in the order of attaching"),
        ("sk_skb/stream_parser",
         f"{WHAT} returns a length, not a verdict: a chain cannot tell success from it", "chain the stream_verdict program, and attach the parser on its own"),
        ("cgroup/skb", f"{WHAT}: section 'cgroup/skb' fits several hooks",
         "name one: --hook cgroup_skb/ingress|cgroup_skb/egress"),
        ("sockops",
         f"{WHAT}: programs of section 'sockops' cannot be links: their type is not in the policy",
         "attach it on its own; `bpfchain-transform --help-hooks` lists the types that can be links"),
    ],
)  # fmt: skip
def test_whole_messages(section: str, message: str, hint: str) -> None:
    with pytest.raises(RefusedError) as caught:
        hook_of_section(section, None, what=WHAT)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_no_such_hook() -> None:
    with pytest.raises(UsageError) as caught:
        hook_named("tcx/ingres")
    assert (caught.value.message, caught.value.hint) == (
        "no hook named 'tcx/ingres'", "did you mean tcx/ingress?",
    )  # fmt: skip
    with pytest.raises(UsageError, match="no hook named 'qqqqqq'") as caught:
        hook_of_section("xdp", "qqqqqq", what=WHAT)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("the hooks: xdp/devmap, ")


def test_every_error_is_one_short_line() -> None:
    errors = []
    for section in (*SECTIONS, *REFUSED, *UNKNOWN):
        for named in (None, "xdp", "sk_msg", "nope"):
            try:
                hook_of_section(section, named, what=WHAT)
            except BpfchainError as error:
                errors.append(error)
    assert len(errors) > 200
    assert all(e.message.isprintable() and len(e.message) < 300 for e in errors)


# what goes on by default: DESIGN section 2
_ONE = CodeSet.of(1)
DEFAULTS: dict[str, CodeSet] = {
    "xdp": CodeSet.of(2), "xdp/devmap": CodeSet.of(2), "xdp/cpumap": CodeSet.of(2),
    "tc": CodeSet.excluding(2, 4, 7, 8),
    "tcx/ingress": CodeSet.excluding(2, 7), "tcx/egress": CodeSet.excluding(2, 7),
    "cgroup_skb/egress": CodeSet.of(1, 3), "cgroup/bind4": CodeSet.of(1, 3),
    "cgroup/bind6": CodeSet.of(1, 3),
    "cgroup_skb/ingress": _ONE, "sk_skb/stream_verdict": _ONE, "sk_skb/verdict": _ONE,
    "sk_msg": _ONE, "sk_lookup": _ONE, "netfilter": _ONE,
    "socket": CodeSet.excluding(0),
    **{name: CodeSet.any() for name in (
        "kprobe", "kprobe.multi", "uprobe.multi", "tracepoint", "raw_tp", "raw_tp.w", "perf_event",
    )},
    **{name: CodeSet.of(0) for name in ("lwt_in", "lwt_out", "lwt_xmit", "lwt_seg6local")},
}  # fmt: skip


def test_what_goes_on_by_default() -> None:
    for hook in HOOKS:
        expected = DEFAULTS.get(hook.name, _ONE if hook.name.startswith("cgroup/") else None)
        assert expected is not None, f"{hook.name}: no expected default is written down here"
        assert hook.success == expected, hook.name


def _golden() -> dict[str, tuple[int, dict[str, tuple[int, int]]]]:
    table = {}
    for line in STATES.read_text().splitlines():
        if line and not line.startswith("#"):
            name, states, *codes = line.split()
            known = {}
            for item in codes:
                word, _, numbers = item.rpartition("=")
                value, state = numbers.split(":")
                known[word] = (int(value), int(state))
            table[name] = (int(states), known)
    return table


def test_state_numbers_are_frozen() -> None:
    """A number that changes breaks every object that was patched before; new ones are added."""
    golden = _golden()
    for hook in HOOKS:
        assert hook.name in golden, f"{hook.name} is new: add it to {STATES.name}"
        states, codes = golden[hook.name]
        assert hook.states == states, hook.name
        have = {c.name: (c.value, c.state) for c in hook.codes if c.state is not None}
        assert have == codes, f"{hook.name}: numbers changed (add new ones to {STATES.name})"
    assert set(golden) == {hook.name for hook in HOOKS}, "a hook is gone from the table"


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_slots_do_not_collide(hook: Hook) -> None:
    numbers = [code.state for code in hook.codes if code.state is not None]
    assert len(set(numbers)) == len(numbers)
    assert all(0 < number < hook.states for number in numbers)
    values = [code.value for code in hook.codes if code.state is not None]
    assert len(set(values)) == len(values)
    slots = {hook.slot(state, index) for state in (None, *values) for index in range(LINKS_MAX)}
    assert len(slots) == (len(values) + 1) * LINKS_MAX
    assert slots <= set(range(hook.states * LINKS_MAX))
    assert [hook.slot(None, index) for index in (0, 1, 32)] == [0, 1, 32]
    if hook.returns is not None:
        assert hook.legal == CodeSet((hook.returns,)), "S and R may name what the verifier refuses"
    assert not hook.success.difference(CodeSet.any())
    with pytest.raises(UsageError, match="cannot be a saved code in slots mode"):
        hook.state_of(12345)


def test_names_and_rows_are_unique() -> None:
    names = [hook.name for hook in HOOKS]
    assert len(set(names)) == len(names)
    pairs = [(hook.prog_type, hook.attach_type) for hook in HOOKS if hook.attach_type]
    assert len(set(pairs)) == len(pairs)
    assert LINKS_MAX == 33


@cache
def _kernel_types() -> str:
    tool = shutil.which("bpftool") or "/usr/sbin/bpftool"
    done = subprocess.run(
        [tool, "btf", "dump", "file", VMLINUX, "format", "c"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def _kernel_enum(name: str) -> dict[str, int]:
    if not VMLINUX.exists():
        pytest.skip(f"this kernel has no {VMLINUX}")
    found = re.search(rf"^enum {name} {{\n(.*?)^}};", _kernel_types(), re.M | re.S)
    assert found, f"enum {name} is not in {VMLINUX}"
    return {m[1]: int(m[2]) for m in re.finditer(r"(\w+) = (-?\d+)", found[1])}


def test_types_are_the_kernels() -> None:
    programs, attaches = _kernel_enum("bpf_prog_type"), _kernel_enum("bpf_attach_type")
    assert len(programs) > 30
    assert len(attaches) > 50
    for hook in HOOKS:
        assert programs[hook.prog_type] == hook.prog_type_id, hook.name
        if hook.attach_type is None:
            assert hook.attach_type_id == 0, hook.name
        else:
            assert attaches[hook.attach_type] == hook.attach_type_id, hook.name


def _defines(header: str, prefix: str) -> dict[str, int]:
    text = Path("/usr/include", header).read_text()
    found = re.findall(rf"^#define\s+{prefix}(\w+)\s+\(?(-?\d+)\)?", text, re.M)
    return {name: int(value) for name, value in found}


def _own(hook: str) -> dict[str, int]:
    """The names that the row gives its codes, without aliases and prefixes."""
    return {code.name: code.value for code in hook_named(hook).codes}


def test_codes_are_the_kernels() -> None:
    """Of enums in the kernel's BTF and of the UAPI headers (linux-libc-dev)."""
    xdp = {k.removeprefix("XDP_"): v for k, v in _kernel_enum("xdp_action").items()}
    assert _own("xdp") == xdp
    actions = _defines("linux/pkt_cls.h", "TC_ACT_")
    clsact = _own("tc")
    assert clsact == {name: actions[name] for name in clsact}
    assert set(clsact) == {name for name, value in actions.items() if -1 <= value <= 8}
    tcx = {k.removeprefix("TCX_"): v for k, v in _kernel_enum("tcx_action_base").items()}
    for name in ("tcx/ingress", "tcx/egress"):
        names = _own(name) | dict(hook_named(name).aliases)
        assert {word: names[word] for word in tcx} == tcx
        assert all(actions[word] == value for word, value in names.items() if word not in tcx)
    lwt = _kernel_enum("bpf_ret_code")
    assert _own("lwt_xmit") == {
        "OK": lwt["BPF_OK"], "DROP": lwt["BPF_DROP"], "REDIRECT": lwt["BPF_REDIRECT"],
        "REROUTE": lwt["BPF_LWT_REROUTE"],
    }  # fmt: skip
    sockets = _kernel_enum("sk_action")
    assert _own("sk_msg") == {
        "DROP": sockets["SK_DROP"],
        "PASS": sockets["SK_PASS"],
    }
    verdicts = _defines("linux/netfilter.h", "NF_")
    assert _own("netfilter") == {word: verdicts[word] for word in ("DROP", "ACCEPT")}


def _struct_known(name: str) -> bool:
    return re.search(rf"^struct {name} {{", _kernel_types(), re.M) is not None


def test_contexts_are_structs_of_the_kernel() -> None:
    if not VMLINUX.exists():
        pytest.skip(f"this kernel has no {VMLINUX}")
    assert not _struct_known("no_such_struct")
    for hook in HOOKS:
        assert hook.context == "void" or _struct_known(hook.context), f"{hook.name}: {hook.context}"


def _loads(hook: Hook, code: int) -> bool:
    attach = hook.attach_type_id if hook.attach_type is not None else None
    try:
        load_raw(
            ProgType(hook.prog_type_id), returns(code), expected_attach_type=attach or 0
        ).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_return_ranges_are_the_kernels(hook: Hook, kernel: None) -> None:
    """``r0 = code; exit`` loads exactly where the table says the verifier takes the code."""
    if hook.returns is None:
        assert _loads(hook, 1), "this kernel does not load the simplest program of this type"
        assert _loads(hook, 77)
        assert _loads(hook, -5)
        return
    low, high = hook.returns
    assert _loads(hook, low)
    assert _loads(hook, high)
    assert not _loads(hook, low - 1)
    assert not _loads(hook, high + 1)


@pytest.mark.parametrize(
    ("hook", "text", "code"),
    [("xdp", "XDP_REDIRECT", 4), ("tc", "tc_act_redirect", 7), ("tcx/ingress", "TCX_NEXT", -1),
     ("tcx/egress", "TC_ACT_SHOT", 2), ("sk_msg", "SK_PASS", 1), ("netfilter", "NF_ACCEPT", 1),
     ("lwt_in", "BPF_LWT_REROUTE", 128)],
)  # fmt: skip
def test_codes_go_by_the_kernels_names_too(hook: str, text: str, code: int) -> None:
    assert CodeSet.parse(text, hook_named(hook).names, what="--success") == CodeSet.of(code)


@pytest.mark.parametrize(("hook", "text"), [("tc", "XDP_REDIRECT"), ("xdp", "TC_ACT_SHOT")])
def test_names_of_another_hook_are_refused(hook: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"no code named '{text}'"):
        CodeSet.parse(text, hook_named(hook).names, what="--success")
