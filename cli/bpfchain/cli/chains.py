"""What the commands about running chains share: which chain, which target, and what was done."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from bpfchain.transform.errors import BpfchainError, HostError, UsageError, nearest

from .command import Choice, option
from .output import Voice, print_result

if TYPE_CHECKING:
    from pathlib import Path

    from bpfchain.loader.generation import Source
    from bpfchain.loader.hooks import Target
    from bpfchain.loader.operations import Done
    from bpfchain.loader.places import ChainPlace
    from bpfchain.transform.manifest import Manifest
    from bpfchain.transform.policy import Hook

__all__ = [
    "chosen", "describe", "found_places", "read_chain", "report", "root_of", "state_options",
    "target_of", "target_options", "which_options",
]  # fmt: skip

F = TypeVar("F", bound=Callable[..., Any])


def _added(function: F, options: tuple[Callable[[F], F], ...]) -> F:
    for add in reversed(options):
        function = add(function)
    return function


def state_options(function: F) -> F:
    """Where the state is, and how the answer looks."""
    return _added(function, (
        option("--bpffs", metavar="DIR", default="/sys/fs/bpf", group="The host",
               help="The bpffs that keeps the chains' pins.  [default: /sys/fs/bpf]"),
        option("--json", "as_json", is_flag=True, group="Output",
               help="Print what was done on stdout, as JSON."),
    ))  # fmt: skip


def which_options(function: F) -> F:
    """Which chain, where several have the name."""
    group = "The chain"
    return _added(function, (
        option("--dev", metavar="IFACE", group=group,
               help="The one on this interface.  [default: the only one of the name]"),
        option("--direction", type=Choice("ingress", "egress"), metavar="WORD", group=group,
               help="The one in this direction: ingress or egress."),
        option("--cgroup", metavar="PATH", group=group, help="The one at this cgroup."),
        option("--socket", "socket_fd", type=int, metavar="FD", group=group,
               help="The open descriptor of the socket that the chain is on."),
    ))  # fmt: skip


def target_options(function: F) -> F:
    """Where a chain is to be attached."""
    group = "Where"
    return _added(function, (
        option("--dev", metavar="IFACE", group=group, help="The interface (XDP, tc)."),
        option("--mode", type=Choice("native", "generic"), metavar="WORD", group=group,
               help="XDP: native or generic.  [default: native where the driver has it]"),
        option("--direction", type=Choice("ingress", "egress"), metavar="WORD", group=group,
               help="tc: ingress or egress.  [default: as the chain's hook says]"),
        option("--via", "kind", type=Choice("tcx", "clsact", "kprobe", "uprobe"), metavar="WORD",
               group=group, help="tc: tcx or clsact; kprobe: kprobe or uprobe.  "
               "[default: as the chain's hook says; clsact where the kernel has no tcx]"),
        option("--priority", type=int, default=0, metavar="N", group=group,
               help="clsact, netfilter: the priority.  [default: chosen]"),
        option("--cgroup", metavar="PATH", group=group, help="The cgroup (version 2)."),
        option("--event", metavar="NAME", group=group,
               help="Tracepoint (sched/sched_switch), raw tracepoint, function, PATH:OFFSET, or "
               "TYPE:CONFIG:PERIOD of a perf event.  [default: as link 0's section says]"),
        option("--return", "at_return", is_flag=True, group=group,
               help="kprobe, uprobe: when the function returns."),
        option("--socket", "socket_fd", type=int, metavar="FD", group=group,
               help="The open descriptor of the socket, inherited from the caller."),
    ))  # fmt: skip


def root_of(bpffs: str) -> Path:
    """The folder of all chains. Raises HostError where there is no bpffs."""
    from pathlib import Path

    from bpfchain.loader.lock import check_bpffs
    from bpfchain.loader.places import state_root

    check_bpffs(Path(bpffs))
    return state_root(Path(bpffs).absolute())


def read_chain(name: str) -> Source:
    """A manifest file with its objects, their digests compared."""
    from pathlib import Path

    from bpfchain.loader.generation import read_source
    from bpfchain.transform.manifest_file import read_manifest

    from .files import STREAM

    if name == STREAM:
        raise UsageError("MANIFEST cannot be -: its objects are named relative to it")
    path = Path(name)
    if not path.is_file():
        close = nearest(path.name, [p.name for p in path.parent.glob("*.json")])
        raise UsageError(
            f"{name}: no such file", f"did you mean {path.with_name(close)}?" if close else None
        )
    with path.open("rb") as file:
        if file.read(4) == b"\x7fELF":
            raise UsageError(f"{name} is an object, not a manifest", "`bpfchain build` makes one")
    manifest = read_manifest(path)
    try:
        return read_source(manifest, path.resolve().parent)  # a link to it is no other place
    except BpfchainError as error:
        raise error.within(name) from None


def target_of(
    manifest: Manifest, *, dev: str | None, mode: str | None, direction: str | None,
    kind: str | None, priority: int, cgroup: str | None, event: str | None, at_return: bool,
    socket_fd: int | None,
) -> Target:  # fmt: skip
    """The target that the options name. Raises UsageError, HostError."""
    from bpfchain.loader.hooks import (
        cgroup_target,
        interface_target,
        kinds_of,
        named_target,
        socket_target,
    )

    hook = manifest.hook
    kinds = kinds_of(hook)
    given: dict[str, Any] = {
        "--dev": dev, "--cgroup": cgroup, "--event": event, "--socket": socket_fd
    }  # fmt: skip
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} name two targets")
    wanted = _wanted(kinds)
    if named and wanted and named[0] != wanted:
        raise UsageError(f"{named[0]} is not for a chain of hook {hook.name}", f"give {wanted}")
    if wanted == "--dev":
        if dev is None:
            raise UsageError(f"a chain of hook {hook.name} needs an interface", "--dev IFACE")
        return interface_target(
            hook, dev, direction=direction, mode=mode, priority=priority,  # type: ignore[arg-type]
            kind=kind or _tc_kind(hook, dev, direction),  # type: ignore[arg-type]
        )  # fmt: skip
    if wanted == "--cgroup":
        if cgroup is None:
            raise UsageError(f"a chain of hook {hook.name} needs a cgroup", "--cgroup PATH")
        return cgroup_target(hook, cgroup)
    if wanted == "--socket":
        if socket_fd is None:
            raise UsageError(
                f"a chain of hook {hook.name} needs a socket", "--socket FD, an open descriptor"
            )
        return socket_target(hook, socket_fd)
    name, returns = _event_of(manifest, event)
    return named_target(
        hook,
        name,
        kind=kind,  # type: ignore[arg-type]
        at_return=at_return or returns,
        priority=priority,
    )


def _tc_kind(hook: Hook, dev: str, direction: str | None) -> str | None:
    """Clsact for a tcx chain where the kernel has no tcx."""
    if not hook.name.startswith("tcx/"):
        return None
    import socket

    from bpfchain.loader.query import prog_query
    from bpfchain.loader.syscall import BpfError

    try:
        prog_query(socket.if_nametoindex(dev), hook.attach_type_id)
    except BpfError as error:
        return "clsact" if error.errno == 22 else None  # EINVAL
    except OSError:
        return None
    return None


def _wanted(kinds: tuple[str, ...]) -> str | None:
    """The option that names a target of the first of these kinds."""
    if not kinds:
        return None
    named = {"xdp": "--dev", "tcx": "--dev", "clsact": "--dev", "cgroup": "--cgroup",
             "socket": "--socket"}  # fmt: skip
    return named.get(kinds[0], "--event")


def _event_of(manifest: Manifest, event: str | None) -> tuple[str, bool]:
    """Where a tracing chain goes, and whether at the function's return: as ``--event`` or link 0's
    section says."""
    head = manifest.record(0)
    section = head.section.removeprefix("?") if head else ""
    word, _, rest = section.partition("/")
    returns = word in ("kretprobe", "uretprobe")
    if event is not None:
        return event, returns
    if manifest.hook.name in ("sk_lookup", "netfilter"):
        return "", False
    if not rest:
        raise UsageError(
            f"a chain of hook {manifest.hook.name} needs to know where (section {section})",
            "--event NAME, such as sched/sched_switch or do_exit",
        )
    return rest, returns


def found_places(root: Path, chain: str | None = None) -> list[ChainPlace]:
    """The chains that can be operated on from this network namespace, of one name or of all."""
    from bpfchain.loader import netns
    from bpfchain.loader.places import HOST, all_places

    here = (HOST, netns.key())
    try:
        return [
            place for place in all_places(root)
            if place.namespace in here and (chain is None or place.named(chain))
        ]  # fmt: skip
    except PermissionError as error:
        raise HostError(
            f"{error.filename}: not permitted", "run it as root, or as who owns it"
        ) from None


def chosen(
    root: Path, chain: str, *, dev: str | None, direction: str | None, cgroup: str | None,
    socket_fd: int | None = None,
) -> ChainPlace:  # fmt: skip
    """The one chain that is meant. UsageError where there is none, or more than one."""
    import os

    from bpfchain.loader.lock import sweep

    places = found_places(root, chain)
    if not places:
        sweep(root)
        raise _nothing(root, chain)
    fitting = [
        place for place in places
        if (dev is None or place.at(dev))
        and (direction is None or place.hook.endswith(direction))
        and (cgroup is None or place.at(os.path.realpath(cgroup)))
    ]  # fmt: skip
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        there = "; ".join(str(place) for place in places)
        raise UsageError(f"no such chain there; there is: {there}")
    there = " and ".join(str(place) for place in fitting)
    raise UsageError(
        f"{len(fitting)} chains have the name: {there}",
        "choose one with --dev, --direction or --cgroup",
    )


def _nothing(root: Path, chain: str) -> UsageError:
    from bpfchain.loader.places import all_places

    elsewhere = [place for place in all_places(root) if place.named(chain)]
    if elsewhere:
        return UsageError(
            f"no chain {chain} in this network namespace; it is in another one "
            f"(cookie {elsewhere[0].namespace})",
            "run the command there: ip netns exec NAME, or nsenter --net",
        )
    close = nearest(chain, [place.chain for place in all_places(root)])
    return UsageError(
        f"no chain {chain} is loaded",
        f"did you mean {close}?" if close else "`bpfchain status` shows what is",
    )


def describe(place: ChainPlace) -> str:
    """``edge on eth0 xdp``."""
    return f"{place.chain} on {place.where}"


def report(
    done: Done, voice: Voice, as_json: bool, said: str, *, also: dict[str, Any] | None = None
) -> None:
    """Say what was done: warnings, repairs, and the one line of success."""
    if as_json:
        print_result(
            json.dumps(done.to_dict() | (also or {}), indent=2, sort_keys=True, ensure_ascii=False)
        )
    for line in done.repaired:
        voice.say(f"repaired: {line}")
    for line in done.notes:
        voice.warn(line)
    voice.say(said)
    for line in done.kept:
        voice.explain(f"kept: {line}")
    voice.explain(f"pins: {done.place.folder}")


def code_of(hook: Hook, text: str | None) -> int | None:
    """``--entry CODE``: one code, by name or number."""
    from bpfchain.transform.codes import CodeSet

    if text is None:
        return None
    codes = list(CodeSet.parse(text, hook.names, what="--entry"))
    if len(codes) != 1:
        raise UsageError(f"--entry takes one code, not {text}")
    return codes[0]
