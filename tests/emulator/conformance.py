"""Runs the published cases of the bpf_conformance project through this emulator.

By hand, from the root of the repository, with a checkout of that project somewhere:

    python tests/emulator/conformance.py PATH/tests [--jit] [--negative PATH/negative]

PATH is a folder of ``.data`` files, or one file. A case has sections: ``-- asm`` (or ``-- raw``, the
instructions as numbers), ``-- mem`` (bytes that the program gets in r1, their number in r2),
``-- result`` (r0 at the end) or ``-- error``. The cases are read where they lie; none is kept here.
Every case that does not pass is named with what happened; the exit code is 0 only if each of them is
in ``KNOWN``. The form of the files and of the assembler is told by the project's README and sources.
"""

from __future__ import annotations

import argparse
import re
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":  # by hand nothing has set the source roots
    ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(ROOT / room) for room in ("transform", "emulator", "loader", "verify")]

from bpfchain.emulator.interpreter import Machine, Packets
from bpfchain.emulator.jit import JitMachine
from bpfchain.emulator.link import Image, LinkedObject, MapSpec

KNOWN = {
    "callx": "a call of the address in a register: uBPF has no such instruction, and no compiler that "
             "the kernel is loaded from makes one (the kernel refuses it as well)",
}  # fmt: skip
"""Cases that do not pass, and why."""
KNOWN_NEGATIVE = {
    "error": "(r0 is read before it is written: the kernel's verifier sees that, an emulator does not)",
}  # fmt: skip
"""Cases that should be refused and are not, and why."""

_ALU = {
    "add": 0x00, "sub": 0x10, "mul": 0x20, "div": 0x30, "sdiv": 0x30, "or": 0x40, "and": 0x50,
    "lsh": 0x60, "rsh": 0x70, "neg": 0x80, "mod": 0x90, "smod": 0x90, "xor": 0xA0, "mov": 0xB0,
    "arsh": 0xC0,
}  # fmt: skip
_JUMPS = {
    "jeq": 0x10, "jgt": 0x20, "jge": 0x30, "jset": 0x40, "jne": 0x50, "jsgt": 0x60, "jsge": 0x70,
    "jlt": 0xA0, "jle": 0xB0, "jslt": 0xC0, "jsle": 0xD0,
}  # fmt: skip
_LOADS = {"ldxw": 0x61, "ldxh": 0x69, "ldxb": 0x71, "ldxdw": 0x79, "ldxsw": 0x81, "ldxsh": 0x89,
          "ldxsb": 0x91}  # fmt: skip
_STORES = {"stw": 0x62, "sth": 0x6A, "stb": 0x72, "stdw": 0x7A}
_STORES_OF_REGISTERS = {"stxw": 0x63, "stxh": 0x6B, "stxb": 0x73, "stxdw": 0x7B}
_ATOMICS = {"add": 0x00, "or": 0x40, "and": 0x50, "xor": 0xA0, "xchg": 0xE1, "cmpxchg": 0xF1}
_SWAPS = {"le": 0xD4, "be": 0xDC, "swap": 0xD7, "bswap": 0xD7}
_PLACE = re.compile(r"\[(%r\d+)([+-][0-9a-fx]+)?\]")
_X, _K32, _CLASS64 = 0x08, 0x04, 0x03


class AssemblyError(ValueError):
    """A line that is no instruction."""


def assemble(text: str) -> bytes:
    """The project's assembly as instructions. Raises AssemblyError.

    A label ends with a colon; the first ``exit`` has the label of its own name.
    """
    code: list[bytes] = []
    labels: dict[str, int] = {}
    aims: list[tuple[int, str]] = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if not words:
            continue
        name, operands = words[0], [word.rstrip(",") for word in words[1:]]
        if name.endswith(":"):
            labels[name[:-1]] = len(code)
            continue
        if name == "exit":
            labels.setdefault("exit", len(code))
        try:
            made, aim = _instruction(name, operands)
        except (IndexError, KeyError, ValueError, struct.error) as error:
            raise AssemblyError(f"{line.strip()!r}: {error}") from None
        if aim is not None:
            aims.append((len(code), aim))
        code += [made[at : at + 8] for at in range(0, len(made), 8)]
    for at, aim in aims:
        if aim not in labels:
            raise AssemblyError(f"no label {aim!r}")
        distance, old = labels[aim] - at - 1, code[at]
        if old[0] in (0x85, 0x06):
            code[at] = old[:4] + struct.pack("<i", distance)
        else:
            code[at] = old[:2] + struct.pack("<h", distance) + old[4:]
    return b"".join(code)


def _insn(op: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhI", op, dst | src << 4, off, imm & 0xFFFF_FFFF)


def _register(text: str) -> int:
    if not text.startswith("%r"):
        raise ValueError(f"{text!r} is no register")
    return int(text[2:])


def _number(text: str) -> int:
    return int(text, 16 if "0x" in text else 10)


def _imm(text: str) -> int:
    """32 bits: hexadecimal without a sign, or decimal with one."""
    value = _number(text)
    if not -(1 << 31) <= value < (1 << 32 if "0x" in text else 1 << 31):
        raise ValueError(f"{text} does not fit into 32 bits")
    return value


def _place(text: str) -> tuple[int, int]:
    found = _PLACE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no place in memory")
    return _register(found[1]), _number(found[2] or "+0")


def _aim(text: str) -> tuple[int, str | None]:
    return (_number(text), None) if text[0] in "+-" else (0, text)


def _instruction(name: str, operands: Sequence[str]) -> tuple[bytes, str | None]:
    """Its bytes, and the label that it leads to."""
    if name == "lock":
        return _atomic(operands), None
    if name == "lddw":
        value = _number(operands[1])
        low, high = value & 0xFFFF_FFFF, value >> 32 & 0xFFFF_FFFF
        return _insn(0x18, _register(operands[0]), imm=low) + _insn(0, imm=high), None
    if name in _LOADS:
        base, offset = _place(operands[1])
        return _insn(_LOADS[name], _register(operands[0]), base, offset), None
    if name in _STORES:
        base, offset = _place(operands[0])
        return _insn(_STORES[name], base, off=offset, imm=_imm(operands[1])), None
    if name in _STORES_OF_REGISTERS:
        base, offset = _place(operands[0])
        return _insn(_STORES_OF_REGISTERS[name], base, _register(operands[1]), offset), None
    if name == "exit":
        return _insn(0x95), None
    if name == "ja":
        offset, aim = _aim(operands[0])
        return _insn(0x05, off=offset), aim
    if name == "ja32":
        offset, aim = _aim(operands[0])
        return _insn(0x06, imm=offset), aim
    if name == "call":
        return _call(operands)
    return _arithmetic_or_jump(name, operands)


def _call(operands: Sequence[str]) -> tuple[bytes, str | None]:
    mode, target = ("helper", operands[0]) if len(operands) == 1 else operands
    if mode == "local":
        offset, aim = _aim(target)
        return _insn(0x85, src=1, imm=offset), aim
    if target.startswith("%"):
        return _insn(0x8D, _register(target)), None
    return _insn(0x85, src={"helper": 0, "runtime": 2}[mode], imm=_imm(target)), None


def _arithmetic_or_jump(name: str, operands: Sequence[str]) -> tuple[bytes, str | None]:
    swap = re.fullmatch(r"(le|be|swap|bswap)(16|32|64)", name)
    if swap:
        return _insn(_SWAPS[swap[1]], _register(operands[0]), imm=int(swap[2])), None
    extended = re.fullmatch(r"movsx(8|16|32)(32|64)", name)
    if extended:
        op = 0xB0 | _X | (0x07 if extended[2] == "64" else 0x04)
        to, source = map(_register, operands)
        return _insn(op, to, source, int(extended[1])), None
    plain = name.removesuffix("32").removesuffix("64")
    narrow = name.endswith("32")
    source, imm, register = 0, 0, 0
    if len(operands) > 1:
        if operands[1].startswith("%"):
            register, source = _X, _register(operands[1])
        else:
            imm = _imm(operands[1])
    dst = _register(operands[0])
    if plain in _JUMPS:
        offset, aim = _aim(operands[2])
        return _insn(
            _JUMPS[plain] | register | (0x06 if narrow else 0x05), dst, source, offset, imm
        ), aim
    signed = int(plain in ("sdiv", "smod"))
    return _insn(
        _ALU[plain] | register | (0x04 if narrow else 0x07), dst, source, signed, imm
    ), None


def _atomic(operands: Sequence[str]) -> bytes:
    fetch = operands[0] == "fetch"
    name, place, source = operands[1:] if fetch else operands
    base, offset = _place(place)
    narrow = name.endswith("32")
    kind = _ATOMICS[name.removesuffix("32").removesuffix("64")] | int(fetch)
    return _insn(0xC3 if narrow else 0xDB, base, _register(source), offset, kind)


@dataclass(frozen=True, slots=True)
class Case:
    """One file. ``error``: what the runtime should say instead of a result."""

    name: str
    code: bytes
    memory: bytes = b""
    result: int = 0
    error: str = ""


@dataclass(slots=True)
class Sections:
    """The lines of a file by section."""

    lines: dict[str, list[str]] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """A section's lines; empty where it is not there."""
        return "\n".join(self.lines.get(name, []))


def read_case(path: Path) -> Case:
    """Raises AssemblyError for what the project's own reader does not take either."""
    sections, current = Sections(), ""
    for whole in path.read_text().splitlines():
        line = whole.split("#")[0].rstrip("\r")
        if "--" in line:
            words = ("asm", "result", "mem", "raw", "no register offset", " c", "error")
            found = next((word for word in words if word in line), None)
            if found is None:
                raise AssemblyError(f"unknown directive {line!r}")
            current = found
        elif line.strip():
            sections.lines.setdefault(current, []).append(line)
    if not sections.text("result") and not sections.text("error"):
        raise AssemblyError("neither a result nor an error")
    raw = [int(word, 0) for word in sections.text("raw").split()]
    code = b"".join(struct.pack("<Q", word) for word in raw) or assemble(sections.text("asm"))
    if not code:
        raise AssemblyError("no instructions")
    memory = bytes(int(word, 16) for word in sections.text("mem").split())
    last = (sections.lines.get("result") or ["0"])[-1].strip()
    return Case(path.stem, code, memory, _number(last) & (1 << 64) - 1, sections.text("error"))


def functions_of(code: bytes) -> tuple[int, ...]:
    """Starts of the functions: 0 and what local calls lead to."""
    found, wide = {0}, False
    for pc in range(len(code) // 8):
        op, registers = code[8 * pc], code[8 * pc + 1]
        if op == 0x85 and registers >> 4 == 1 and not wide:
            found.add(pc + 1 + int.from_bytes(code[8 * pc + 4 : 8 * pc + 8], "little", signed=True))
        wide = op == 0x18 and not wide
    return tuple(sorted(found))


_FRONT = 3
"""Instructions that ``run`` puts in front."""


def run(code: bytes, memory: bytes = b"", machine: type[Machine] = Machine) -> int | str:
    """r0 at the end, or why there is none.

    The context is plain and empty. The memory is the value of an array map, because a plain context
    is not for writing; r1 and r2 get its address and length by a load in front of the code.
    """
    size = max(len(memory), 1)
    values = MapSpec(name="memory", type=2, key_size=4, value_size=size, max_entries=1,
                     contents=memory.ljust(size, b"\0"))  # fmt: skip
    front = _insn(0x18, 1, 2) + _insn(0) + _insn(0xB7, 2, imm=len(memory))
    functions = (0, *(start + _FRONT for start in functions_of(code)[1:]))
    image = Image("case", "case", front + code, (0,), functions, ("case",) * len(functions),
                  tuple((pc, "case", pc) for pc in functions))  # fmt: skip
    try:
        with machine([LinkedObject({"case": image}, (values,))], context="plain") as made:
            batch = made.run(made.program(0, "case"), Packets([b""]))
            if batch.faults:
                fault = batch.faults[0]
                return f"{fault.kind} at {fault.pc - _FRONT}: {fault.what or hex(fault.address)}"
            return int.from_bytes(batch.verdicts, "little")
    except ValueError as error:
        return f"not loaded: {error}"


def judge(case: Case, machine: type[Machine] = Machine) -> str | None:
    """What is wrong with the case's run; None where it passes."""
    got = run(case.code, case.memory, machine)
    if case.error:
        return None if isinstance(got, str) else f"gave {got:#x}, should be an error"
    if isinstance(got, str):
        return got
    return None if got == case.result else f"gave {got:#x}, should be {case.result:#x}"


def cases(path: Path) -> list[Path]:
    """The ``.data`` files there. Raises SystemExit where there is none."""
    found = sorted(path.glob("*.data")) if path.is_dir() else [path] if path.exists() else []
    if not found:
        sys.exit(f"conformance.py: {path} is no folder with .data files\n  fetch "
                 "github.com/Alan-Jowett/bpf_conformance and name its folder tests")  # fmt: skip
    return found


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Run; 0 where nothing but what is known does not pass."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path, help="the project's folder tests, or one case")
    parser.add_argument("--jit", action="store_true", help="run the JIT instead of the interpreter")
    parser.add_argument("--negative", type=Path, help="its folder negative: to be refused")
    given = parser.parse_args(arguments)
    machine = JitMachine if given.jit else Machine
    passed, failed, new = 0, 0, 0
    for path in cases(given.path):
        try:
            wrong = judge(read_case(path), machine)
        except AssemblyError as error:
            wrong = f"not read: {error}"
        if wrong is None:
            passed += 1
            if path.stem in KNOWN:
                new += 1
                say(f"{path.stem}: passes, take it out of KNOWN")
            continue
        failed += 1
        new += path.stem not in KNOWN
        say(f"{path.stem}: {wrong}" + (f" ({KNOWN[path.stem]})" if path.stem in KNOWN else ""))
    say(f"{passed} of {passed + failed} cases pass ({'JIT' if given.jit else 'interpreter'})")
    if given.negative is not None:
        new += _negative(cases(given.negative), machine, say)
    return 1 if new else 0


def _negative(paths: Sequence[Path], machine: type[Machine], say: Callable[[str], None]) -> int:
    """Cases that must not pass: for each that does, a line. How many of them are not known."""
    taken, new = 0, 0
    for path in paths:
        try:
            wrong = judge(read_case(path), machine)
        except AssemblyError:
            continue
        if wrong is None or path.stem in KNOWN_NEGATIVE:
            taken += 1
            new += path.stem not in KNOWN_NEGATIVE
            say(f"negative {path.stem}: taken {KNOWN_NEGATIVE.get(path.stem, '')}")
    say(f"{len(paths) - taken} of {len(paths)} negative cases do not pass, as they should")
    return new


if __name__ == "__main__":
    sys.exit(main())
