"""Machines: objects in a world, maps shared and filled, and the JIT's child, which may die."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfchain.emulator.interpreter import native
from bpfchain.emulator.jit_process import ChildDiedError, JitProcess
from bpfchain.emulator.link import Image, LinkedObject, MapSpec, link_object
from bpfchain.emulator.machine import EmulatorMissingError, JitMachine, Machine, Packets
from bpfchain.transform.errors import InconclusiveError, RefusedError
from patched.objects import CORPUS
from support.objbuild import insn, lddw

ROOT = Path(__file__).resolve().parents[2]
EXIT = insn(0x95)
NULL_READ = insn(0xB7, 1) + insn(0x79, 0, 1) + EXIT
FOREVER = insn(0xB7, 0) + insn(0x07, 0, imm=1) + insn(0x05, off=-2) + EXIT
# reads through the packet's first 8 bytes as an address, where they are not 0
AT_WILL = (
    insn(0x61, 2, 1) + insn(0x79, 3, 2) + insn(0xB7, 0, imm=1) + insn(0x15, 3, off=1)
    + insn(0x79, 0, 3) + EXIT
)  # fmt: skip
ARRAY, PROG_ARRAY, HASH_OF_MAPS = 2, 3, 13


@pytest.fixture(autouse=True)
def built() -> None:
    """What is tested here needs the native part."""
    try:
        native()
    except EmulatorMissingError as error:
        pytest.skip(f"{error} (unset BPFCHAIN_NO_NATIVE, run tools/setup.sh test)")


def image(code: bytes, name: str = "prog", maps: tuple[int, ...] = ()) -> Image:
    return Image(name, "xdp", code, maps, (0,), (name,), ((0, "xdp", 0),))


def made(code: bytes, *specs: MapSpec, maps: tuple[int, ...] = ()) -> LinkedObject:
    return LinkedObject({"prog": image(code, maps=maps)}, specs, sections={"prog": "xdp"})


def corpus(name: str) -> LinkedObject:
    return link_object((CORPUS / "el" / f"{name}.o").read_bytes())


def verdicts(batch: Any) -> list[int]:
    return [value & 0xFFFF_FFFF for (value,) in struct.iter_unpack("<Q", batch.verdicts)]


def ended(batch: Any) -> list[int]:
    return [tag for (tag,) in struct.iter_unpack("<i", batch.ended)]


FRAMES = Packets([bytes([i]) * 64 for i in range(20)])
BOTH = pytest.mark.parametrize("kind", [Machine, JitMachine])


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    """Those put in are closed."""
    found: list[Machine] = []
    yield found
    for one in found:
        one.close()


@BOTH
def test_programs_see_their_maps(kind: type[Machine], machines: list[Machine]) -> None:
    """globals.c: initial contents of .data and .rodata are in place, and are written and kept."""
    obj = corpus("globals")
    machine = kind([obj], context="xdp")
    machines.append(machine)
    (program,) = obj.programs
    before = {spec.name: machine.map(0, spec.name).items() for spec in obj.maps}
    for spec in obj.maps:
        if spec.contents is not None and any(spec.contents):
            assert before[spec.name] == [(bytes(4), spec.contents)]
    handle = machine.save()
    batch = machine.run(machine.program(0, program), FRAMES)
    assert len(batch) == 20
    assert batch.faults == []
    after = {spec.name: machine.map(0, spec.name).items() for spec in obj.maps}
    assert after != before
    assert all(after[name] == before[name] for name in after if name.startswith(".rodata"))
    machine.restore(handle)
    assert {spec.name: machine.map(0, spec.name).items() for spec in obj.maps} == before


@BOTH
def test_initial_entries_of_prog_arrays(kind: type[Machine], machines: list[Machine]) -> None:
    obj = corpus("tailcall_values")
    machine = kind([obj], context="xdp")
    machines.append(machine)
    batch = machine.run(machine.program(0, "entry"), Packets([bytes(64), bytes(200)]))
    assert batch.faults == []
    assert struct.unpack("<2I", batch.tail_calls) == (0, 1)
    assert verdicts(batch) == [2, 1]  # XDP_PASS; target drops


@BOTH
def test_markers_and_programs_in_slots(kind: type[Machine], machines: list[Machine]) -> None:
    slots = MapSpec(name="slots", type=PROG_ARRAY, key_size=4, value_size=4, max_entries=4)
    call = lddw(2, 0, 1) + insn(0xB7, 3, imm=2) + insn(0x85, imm=12) + insn(0xB7, 0, imm=7) + EXIT
    caller = LinkedObject({"prog": image(call, maps=(0,))}, (slots,))
    target = LinkedObject({"prog": image(insn(0xB7, 0, imm=5) + EXIT)}, (slots,))
    share = {(0, "slots"): "chain", (1, "slots"): "chain"}
    machine = kind([caller, target], context="xdp", share=share)
    machines.append(machine)
    main, found = machine.program(0, "prog"), machine.map(0, "slots")
    assert verdicts(machine.run(main, FRAMES)) == [7] * 20
    found.set_marker(2, 42)
    assert ended(machine.run(main, FRAMES)) == [42] * 20
    machine.map(1, "slots").set_program(2, machine.program(1, "prog"))
    batch = machine.run(main, FRAMES)
    assert (verdicts(batch), ended(batch)) == ([5] * 20, [-1] * 20)
    found.delete((2).to_bytes(4, "little"))
    assert verdicts(machine.run(main, FRAMES)) == [7] * 20
    assert machine.program_name(main) == (0, "prog")


def test_shared_maps_must_be_of_one_shape() -> None:
    one = made(EXIT, MapSpec(name="m", type=ARRAY, key_size=4, value_size=8, max_entries=1))
    two = made(EXIT, MapSpec(name="m", type=ARRAY, key_size=4, value_size=4, max_entries=1))
    with pytest.raises(RefusedError, match="map m is to be one with others of the name x"):
        Machine([one, two], context="xdp", share={(0, "m"): "x", (1, "m"): "x"})
    Machine([one, two], context="xdp").close()


def test_maps_that_nobody_makes() -> None:
    refused = MapSpec(name="odd", type=ARRAY, key_size=8, value_size=8, max_entries=1)
    with pytest.raises(RefusedError, match="map odd: "):
        Machine([made(EXIT, refused)], context="xdp")
    large = MapSpec(name="huge", type=ARRAY, key_size=4, value_size=1 << 20, max_entries=1 << 12)
    with pytest.raises(InconclusiveError, match="map huge: 4096 entries of 1048576 bytes"):
        Machine([made(EXIT, large)], context="xdp")


def test_maps_of_maps(machines: list[Machine]) -> None:
    inner = MapSpec(name="outer.inner", type=ARRAY, key_size=4, value_size=4, max_entries=1)
    one = MapSpec(name="one", type=ARRAY, key_size=4, value_size=4, max_entries=1)
    outer = MapSpec(
        name="outer", type=HASH_OF_MAPS, key_size=4, value_size=4, max_entries=2, inner=inner,
        values=((1, "one"),),
    )  # fmt: skip
    machine = Machine([made(EXIT, one, outer)], context="xdp")
    machines.append(machine)
    ((key, value),) = machine.map(0, "outer").items()
    assert key == (1).to_bytes(4, "little")
    assert int.from_bytes(value, "little") == machine.map(0, "one").index


@BOTH
def test_maps_differ(kind: type[Machine], machines: list[Machine]) -> None:
    spec = MapSpec(name="m", type=ARRAY, key_size=4, value_size=8, max_entries=3)
    one, two = kind([made(EXIT, spec)], context="xdp"), kind([made(EXIT, spec)], context="xdp")
    machines += [one, two]
    assert not one.map(0, "m").differs(two.map(0, "m"))
    one.map(0, "m").update((2).to_bytes(4, "little"), bytes(7) + b"\1")
    assert one.map(0, "m").differs(two.map(0, "m"))
    assert one.map(0, "m").lookup((2).to_bytes(4, "little")) == bytes(7) + b"\1"
    with pytest.raises(OSError, match=r"."):
        one.map(0, "m").update((3).to_bytes(4, "little"), bytes(8))


def test_the_names_of_what_is_not_modelled(machines: list[Machine]) -> None:
    obj = corpus("ksyms_func")
    machine = Machine([obj], context="skb")
    machines.append(machine)
    batch = machine.run(machine.program(0, "ksyms_func"), Packets([bytes(64)]))
    (fault,) = batch.faults
    assert fault.kind == "unmodelled"
    assert machine.explain(fault) == "kernel function bpf_rcu_read_lock"


@BOTH
def test_selected_packets_keep_their_random_numbers(
    kind: type[Machine], machines: list[Machine]
) -> None:
    random = insn(0x85, imm=7) + EXIT
    machine = kind([made(random)], context="xdp", seed=3)
    machines.append(machine)
    ref = machine.program(0, "prog")
    whole = verdicts(machine.run(ref, FRAMES))
    assert len(set(whole)) > 10
    some = FRAMES.select([4, 17, 2])
    assert verdicts(machine.run(ref, some)) == [whole[4], whole[17], whole[2]]
    assert verdicts(machine.run(ref, some.select([1]))) == [whole[17]]


# the JIT's child


def at_will(*addresses: int) -> Packets:
    return Packets([address.to_bytes(8, "little") + bytes(56) for address in addresses])


def test_interpreter_and_jit_agree(machines: list[Machine]) -> None:
    for name in ("filter", "metrics", "static_subprog", "callback_loop"):
        obj = corpus(name)
        one, two = Machine([obj], context="xdp"), JitMachine([obj], context="xdp")
        machines += [one, two]
        (program,) = obj.programs
        a = one.run(one.program(0, program), FRAMES)
        b = two.run(two.program(0, program), FRAMES)
        assert verdicts(a) == verdicts(b)
        assert [a.packet(i) for i in range(20)] == [b.packet(i) for i in range(20)]
        for spec in obj.maps:
            assert one.map(0, spec.name).items() == two.map(0, spec.name).items()


def test_a_crash_is_a_fault_with_its_packet(machines: list[Machine]) -> None:
    spec = MapSpec(name="m", type=ARRAY, key_size=4, value_size=8, max_entries=1)
    machine = JitMachine([made(AT_WILL, spec)], context="xdp")
    machines.append(machine)
    ref = machine.program(0, "prog")
    machine.map(0, "m").update(bytes(4), b"initial!")
    machine.save()
    batch = machine.run(ref, at_will(0, 0, 8, 0))
    assert ended(batch) == [-2] * 4
    assert [fault.packet for fault in batch.faults] == [0, 1, 2, 3]
    assert {fault.kind for fault in batch.faults} == {"crash"}
    assert batch.faults[2].what == "the JIT's process died of SIGSEGV"
    assert batch.faults[0].what.endswith("died of SIGSEGV at packet 2")
    assert (batch.packet(0), batch.events(2)) == (b"", [])
    # and the parent goes on, with the maps as they were
    assert machine.map(0, "m").lookup(bytes(4)) == b"initial!"
    again = machine.run(ref, at_will(0, 0, 0))
    assert (verdicts(again), again.faults) == ([1, 1, 1], [])


def test_a_program_without_end_is_killed(machines: list[Machine]) -> None:
    machine = JitMachine([made(FOREVER)], context="xdp", time_limit=0.5)
    machines.append(machine)
    batch = machine.run(machine.program(0, "prog"), at_will(0, 0))
    assert {fault.kind for fault in batch.faults} == {"limit"}
    assert batch.faults[0].what == "no end within 0.5 s"


def test_other_machines_survive_a_crash(machines: list[Machine]) -> None:
    """Machines share the child: what one makes crash is made anew for the others."""
    spec = MapSpec(name="m", type=ARRAY, key_size=4, value_size=8, max_entries=1)
    good, bad = (
        JitMachine([made(EXIT, spec)], context="xdp"),
        JitMachine([made(NULL_READ)], context="xdp"),
    )
    machines += [good, bad]
    good.map(0, "m").update(bytes(4), b"contents")
    handle = good.save()
    good.map(0, "m").update(bytes(4), b"changed.")
    kept = good.run(good.program(0, "prog"), FRAMES)
    bad.run(bad.program(0, "prog"), FRAMES)
    assert kept.packet(3) == bytes([3]) * 64
    assert good.map(0, "m").lookup(bytes(4)) == b"changed."
    good.restore(handle)
    assert good.map(0, "m").lookup(bytes(4)) == b"contents"
    after = good.run(good.program(0, "prog"), FRAMES)
    assert [where for where, _ in kept.differences(after)] == []


def test_differences_of_batches_are_found(machines: list[Machine]) -> None:
    machine = JitMachine([made(AT_WILL)], context="xdp")
    other = JitMachine([made(insn(0xB7, 0, imm=1) + EXIT)], context="xdp")
    machines += [machine, other]
    packets = at_will(0, 0)
    a = machine.run(machine.program(0, "prog"), packets)
    b = other.run(other.program(0, "prog"), packets)
    assert a.differences(b) == []
    c = other.run(other.program(0, "prog"), at_will(0, 5))
    assert a.differences(c) == [(1, "packet")]
    dead = machine.run(machine.program(0, "prog"), at_will(0, 8))
    assert [what for _, what in dead.differences(b)] == ["ended", "ended"]


def test_a_child_outside_a_batch_that_dies() -> None:
    with JitProcess() as process:
        process.request("new", 1, {"seed": 0})
        assert process._process is not None
        process._process.kill()
        with pytest.raises(ChildDiedError, match="died of SIGKILL"):
            process.request("call", 1, "map_items", (0,))
        assert process.generation == 1
        process.request("new", 1, {"seed": 0})
        with pytest.raises(IndexError):
            process.request("call", 1, "map_items", (0,))


def test_the_last_machine_ends_the_child() -> None:
    machine = JitMachine([made(EXIT)], context="xdp")
    machine.program(0, "prog")
    process = JitProcess._shared
    assert process is not None
    child = process._process
    assert child is not None
    assert child.poll() is None
    machine.close()
    machine.close()
    assert child.poll() == 0
    assert JitProcess._shared is None


def test_without_the_native_part_there_is_one_clear_line() -> None:
    program = (
        "import sys; sys.modules['bpfchain.emulator._ubpf'] = None\n"
        "from bpfchain.emulator.machine import Machine, JitMachine\n"
        "from bpfchain.transform.errors import BpfchainError\n"
        "for kind in Machine, JitMachine:\n"
        "    try: kind([], context='xdp').program(0, 'x')\n"
        "    except BpfchainError as error: print(error.exit_code, error.message); print(error.hint)\n"
        "    except IndexError: print('made')\n"
    )
    path = [str(ROOT / name) for name in ("transform", "emulator")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path}\n{program}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0].startswith("4 the emulator's native part cannot be loaded")
    assert "pip install ." in lines[1]
