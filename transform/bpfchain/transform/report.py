"""What a transformation tells of an object besides its bytes: maps, licence, redirects."""

from __future__ import annotations

from .btf import Btf
from .btf_maps import find_map
from .elf import Object
from .policy import Hook
from .program import Reach
from .request import MapUse

__all__ = ["license_of", "maps_of", "redirects_of"]

_HELPER_NAMES = {
    13: "bpf_clone_redirect", 23: "bpf_redirect", 51: "bpf_redirect_map", 52: "bpf_sk_redirect_map",
    60: "bpf_msg_redirect_map", 71: "bpf_msg_redirect_hash", 72: "bpf_sk_redirect_hash",
    152: "bpf_redirect_neigh", 155: "bpf_redirect_peer",
}  # fmt: skip


def license_of(obj: Object) -> str:
    """The licence string, empty where the object has none."""
    section = obj.section("license")
    data = section.data if section is not None else b""
    return data.split(b"\0")[0].decode("utf-8", "replace")


def maps_of(obj: Object, btf: Btf | None) -> tuple[MapUse, ...]:
    """The maps that ``.maps`` defines, in the order of their offsets."""
    section = obj.section(".maps")
    if section is None or btf is None:
        return ()
    symbols = sorted(
        (s for s in obj.by_place.get(section.id, ()) if s.name and s.name != ".maps"),
        key=lambda symbol: symbol.value,
    )
    uses = []
    for symbol in symbols:
        found = find_map(obj, btf, symbol.name)
        numbers = found[1] if found is not None else {}
        uses.append(
            MapUse(
                symbol.name, numbers.get("type"), numbers.get("key_size"), numbers.get("value_size"),
                numbers.get("max_entries"), numbers.get("map_flags"),
            )
        )  # fmt: skip
    return tuple(uses)


def redirects_of(hook: Hook, reach: Reach) -> tuple[str, ...]:
    """Redirect helpers that a program can reach; tail calls count, their targets are not known."""
    found = [_HELPER_NAMES[number] for number in hook.redirect_helpers if number in reach.helpers]
    if hook.redirecting and (reach.own_tail_calls or reach.callee_tail_calls):
        found.append("whatever its own tail calls reach")
    return tuple(found)
