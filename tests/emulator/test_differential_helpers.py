"""Random sequences of helper calls with random arguments, in the kernel and in the emulator.

One program a hook does what a map tells it (``helper_ops``). After each call the result and the
context's fields are noted in a ring buffer record; packet, metadata and context are compared too.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping

import pytest

from bpfchain.transform.policy import hook_named
from bpfchain.verify.engines.protocol import Inputs
from bpfchain.verify.inputs import inputs_of
from bpfchain.verify.packet_rules import XDP_LINEAR_MAX
from emulator.differential import Pair, expect, listed, setup_of
from emulator.helper_ops import source
from support.proofs import builtin, compiled

pytestmark = pytest.mark.usefixtures("kernel")

OPS = 10
ROUNDS, LONG_ROUNDS, PACKETS = 100, 1500, 12
HOOKS: Mapping[str, tuple[int, ...]] = {
    "xdp": (0, 1, 2, 3, 4, 5, 6, 60, 61),
    "tc": (*range(28), 60, 61),
    "cgroup_skb/ingress": (0, 1, 19, 25, 28, 60),
    "cgroup_skb/egress": (0, 1, 19, 25, 28, 60),
    "socket": (0, 1, 19, 25, 28),
    "lwt_in": (0, 2, 19, 25, 28, 60, 61),
    "lwt_out": (0, 2, 19, 25, 28, 60, 61),
    "lwt_xmit": (0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 19, 60, 61),
}
"""Hook -> the kinds of calls that its program has."""
_OFFSETS = (0, 1, 12, 14, 16, 18, 20, 24, 34, 40, 54, 60, 64, 100, 1500, 0xFFFF, 0x10000, 1 << 31)
_MOVES = (
    -1,
    -2,
    -4,
    -8,
    -14,
    -20,
    -40,
    -64,
    -200,
    1,
    2,
    4,
    8,
    14,
    20,
    36,
    40,
    200,
    300,
    1000,
    3000,
)
_PROTOCOLS = (0x0008, 0xDD86, 0x0081, 0xA888, 0x0608)
_ROOM_FLAGS = (0, 0, 0, 1, 2, 4, 2 | 8, 2 | 16, 4 | 16, 32, 2 | 64 | 14 << 56, 128, 256, 512, 6)


def operation(rng: random.Random, kinds: tuple[int, ...], hook: str) -> bytes:
    """One call: the kind and its arguments, mostly near what is sensible."""
    kind = rng.choice(kinds)
    a = rng.choice(
        (rng.choice(_OFFSETS), rng.choice(_MOVES), rng.randrange(128), rng.getrandbits(32))
    )
    b = rng.choice((rng.randrange(64), rng.getrandbits(16), rng.getrandbits(32)))
    c = rng.choice((0, 0, 0, 1, 2, rng.randrange(32), rng.getrandbits(32)))
    d = rng.choice((0, 1, rng.getrandbits(16), rng.getrandbits(64)))
    if hook in ("tc", "lwt_xmit"):
        if kind in (6, 7):  # offset and width of a checksum's replacement
            a = rng.choice((16, 24, 36, 38, 40, 50, 60, rng.getrandbits(8)))
            c = rng.choice((0, 2, 4, 2 | 16, 4 | 16, 2 | 32, 4 | 64, 16, 0x10 | 0x40, 8))
        if kind == 4:
            a = rng.choice((14, 20, 33, 34, 54, 60, 100, 1000, 4000, 17000))
        if kind == 5:
            a = rng.choice((0, 1, 4, 14, 40, 100, 300))
        if kind == 12:
            a = rng.choice(_PROTOCOLS)
        if kind == 13:
            a, c, d = rng.choice(_MOVES), rng.choice((0, 1, 1, 2)), rng.choice(_ROOM_FLAGS)
        if kind == 14:
            a = rng.choice((0, *_PROTOCOLS))
    return struct.pack("<4IQ", kind, a & 0xFFFF_FFFF, b, c, d)


def context(rng: random.Random, packet: bytes) -> bytes:
    """A ``struct __sk_buff`` as a test run takes it, each field set or not."""
    made = bytearray(192)
    fields = (
        (8, "<I", rng.getrandbits(32)),  # mark
        (32, "<I", rng.getrandbits(32)),  # priority
        (48, "<Q", rng.getrandbits(64)),  # cb
        (64, "<I", rng.getrandbits(32)),
        (152, "<Q", rng.getrandbits(63)),  # tstamp
        (160, "<I", rng.randint(len(packet), 60_000)),  # wire_len
        (164, "<I", rng.getrandbits(16)),  # gso_segs
        (176, "<I", rng.choice((0, 500, 1460))),  # gso_size
    )
    for at, layout, value in fields:
        if rng.random() < 0.4:
            struct.pack_into(layout, made, at, value)
    return bytes(made)


def run(hook_name: str, rounds: int, seed: int) -> None:
    hook = hook_named(hook_name)
    setup = setup_of(compiled(source(hook_name), ("-mcpu=v3",)), hook, "prog")
    whole = inputs_of(builtin(), hook)[0]
    # helpers on fragments of long XDP frames are not modelled (a fault says so)
    linear = [n for n, packet in enumerate(whole.packets) if len(packet) <= XDP_LINEAR_MAX]
    rng = random.Random(f"{hook_name} {seed}")
    with Pair(setup) as pair:
        assert not pair.compared.found, pair.compared.found
        for number in range(rounds):
            codes = [operation(rng, HOOKS[hook_name], hook_name) for _ in range(OPS)]
            for at, code in enumerate(codes):
                pair.update("ops", struct.pack("<I", at), code)
            chosen = rng.sample(linear, PACKETS)
            packets = [whole.packets[n] for n in chosen]
            contexts = [whole.contexts[n] for n in chosen]
            if hook_name != "xdp":
                contexts = [context(rng, packet) for packet in packets]
            found = pair.run(Inputs(packets, contexts))
            if found.found.keys() - listed().get(f"helpers/{hook_name}", {}).keys():
                shown = [struct.unpack("<4IQ", code) for code in codes]
                print(f"round {number}, packets {chosen}: {shown}")
                break
        print(f"{hook_name}: {pair.compared.runs} runs of {OPS} calls")
        expect(f"helpers/{hook_name}", pair.compared)


@pytest.mark.parametrize("hook", HOOKS)
def test_helpers(hook: str) -> None:
    run(hook, ROUNDS, 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("hook", HOOKS)
def test_helpers_at_length(hook: str) -> None:
    run(hook, LONG_ROUNDS, 2)
