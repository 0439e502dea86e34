"""The disassembler against llvm-objdump, an independent reader, and the helper names against the
kernel's header."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfchain.transform import isa
from bpfchain.transform.disasm import render
from bpfchain.transform.elf_read import read_object
from bpfchain.transform.helpers import HELPERS, helper_name
from bpfchain.transform.isa import Insn

CORPUS = Path(__file__).parents[2] / "corpus" / "programs"
HEADER = Path("/usr/include/linux/bpf.h")

V4 = [
    (Insn(0x91, 2, 1, -8), "r2 = *(s8 *)(r1 - 8)"),
    (Insn(0x89, 2, 1, 4), "r2 = *(s16 *)(r1 + 4)"),
    (Insn(0x81, 2, 1, 0), "r2 = *(s32 *)(r1 + 0)"),
    (Insn(0xBF, 2, 1, 8), "r2 = (s8)r1"),
    (Insn(0xBF, 2, 1, 32), "r2 = (s32)r1"),
    (Insn(0xBC, 2, 1, 16), "w2 = (s16)w1"),
    (Insn(0x3F, 2, 1, 1), "r2 s/= r1"),
    (Insn(0x94, 2, 0, 1, 7), "w2 s%= 7"),
    (Insn(0x97, 2, 0, 0, 7), "r2 %= 7"),
    (Insn(0x9C, 2, 3), "w2 %= w3"),
    (Insn(0x45, 2, 0, 1, -5), "if r2 & -5 goto +1"),
    (Insn(0x4E, 2, 3, -4), "if w2 & w3 goto -4"),
    (Insn(0xC3, 1, 2, 4, 0x51), "w2 = atomic_fetch_and((u32 *)(r1 + 4), w2)"),
    (Insn(0xC3, 1, 2, 4, 0xF1), "w0 = cmpxchg32_32(r1 + 4, w0, w2)"),
    (Insn(0xC3, 1, 2, 4, 0xE1), "w2 = xchg32_32(r1 + 4, w2)"),
    (Insn(0xD7, 2, 0, 0, 64), "r2 = bswap64 r2"),
    (Insn(0x06, 0, 0, 0, -70000), "gotol -70000"),
    (Insn(0xE5, 0, 0, 3), "may_goto +3"),
    (Insn(0x8D, 3), "callx r3"),
    (Insn(0x0D, 3), "gotox r3"),
    (Insn(0x62, 10, 0, -4, -1), "*(u32 *)(r10 - 4) = -1"),
    (Insn(0xD3, 1, 2, 0, 0x100), "w1 = load_acquire((u8 *)(r2 + 0))"),
    (Insn(0xDB, 1, 2, -8, 0x110), "store_release((u64 *)(r1 - 8), r2)"),
    (Insn(0xBF, 2, 1, 1, 1), "r2 = addr_space_cast(r1, 0, 1)"),
    (Insn(0xBF, 2, 1, -1), "r2 = &(void __percpu *)(r1)"),
]
"""Instructions newer than bookworm's LLVM, as LLVM 22 writes them (its test/MC/BPF) and, for the
last one, kernel/bpf/disasm.c."""


@pytest.mark.parametrize("number", range(len(V4)))
def test_instructions_of_v4(number: int) -> None:
    insn, expected = V4[number]
    assert render(insn) == expected


def test_names_take_the_place_of_numbers() -> None:
    assert render(Insn(isa.LDDW, 2, 1), Insn(0), symbol="map[counters]") == "r2 = map[counters] ll"
    assert render(Insn(isa.CALL, imm=12)) == "call bpf_tail_call#12"
    assert render(Insn(isa.CALL, imm=999)) == "call helper#999"
    assert render(Insn(isa.CALL, 0, 1, imm=-1), symbol="parse") == "call parse"
    assert render(Insn(isa.CALL, 0, 1, imm=2), address=10) == "call pc+2 -> 13"
    assert render(Insn(isa.JA, offset=3), address=42) == "goto +3 -> 46"
    assert render(Insn(0x56, 0, 0, 6, 2), address=46) == "if w0 != 2 goto +6 -> 53"
    assert render(Insn(isa.LDDW, 1, imm=-1), Insn(0, imm=-1)) == "r1 = -1 ll"


def test_no_instruction_is_too_strange_to_show() -> None:
    for opcode in range(256):
        for rest in ((0, 0, 0, 0), (15, 15, -1, -1), (11, 12, 0x7FFF, -(1 << 31))):
            assert render(Insn(opcode, *rest))


def test_helper_names_are_the_headers() -> None:
    names = re.findall(r"\bFN\(([a-z]\w+)\)", HEADER.read_text())
    names = names[names.index("unspec") + 1 :]
    assert len(names) >= 200, "the header's list was not found"
    assert list(HELPERS[: len(names)]) == names[: len(HELPERS)]
    assert helper_name(12) == "bpf_tail_call"
    assert helper_name(211) == "bpf_cgrp_storage_delete"
    assert helper_name(0) is None
    assert helper_name(212) is None


def test_corpus_as_llvm_objdump_shows_it() -> None:
    """Every instruction of every object, in both byte orders."""
    seen = 0
    for path in sorted(CORPUS.glob("e[lb]/*.o")):
        theirs = _objdump(path)
        obj = read_object(path.read_bytes())
        for section in obj.sections:
            if not section.executable or not section.data:
                continue
            insns = isa.decode(section.data, obj.order)
            begins = isa.starts(insns)
            for at, insn in enumerate(insns):
                if not begins[at]:
                    continue
                following = insns[at + 1] if insn.wide else None
                mine = _as_objdump(render(insn, following))
                assert mine == theirs[section.name, at], f"{path.name} {section.name} slot {at}"
                seen += 1
    assert seen > 100_000, "the corpus was not found"


def test_all_opcodes_as_llvm_objdump_shows_them(tmp_path: Path) -> None:
    """Opcodes that this machine's LLVM knows; what only newer ones know is in the table above."""
    wanted = list(_instructions())
    source = tmp_path / "all.s"
    rows = (",".join(map(str, isa.encode((insn,), "<"))) for insn in wanted)
    source.write_text(".text\n.globl f\nf:\n" + "".join(f".byte {row}\n" for row in rows))
    target = tmp_path / "all.o"
    subprocess.run(["clang", "-target", "bpfel", "-c", source, "-o", target], check=True)
    theirs = _objdump(target)
    unknown = []
    for at, insn in enumerate(wanted):
        expected = theirs[".text", at]
        if expected == "<unknown>":
            unknown.append(insn)
            continue
        assert _as_objdump(render(insn)) == expected, insn
    # LLVM 14 knows no modulo, no jump on bits, no stores of constants, few atomics on 32 bits
    expected_unknown = {0x94, 0x9C, 0x97, 0x9F, 0x45, 0x4D, 0x46, 0x4E, 0xC3}
    assert {i.opcode for i in unknown if i.klass != isa.ST} <= expected_unknown


def _instructions() -> Iterator[Insn]:
    """Well-formed encodings of every operation, with telling operands."""
    for klass in (isa.ALU32, isa.ALU64):
        for op in (*range(0, 0xD0, 0x10),):
            if op == 0x80:
                yield Insn(op | klass, 3)
                continue
            for imm in (0, 1, -7, (1 << 31) - 1):
                yield Insn(op | klass, 3, imm=imm)
            yield Insn(op | 8 | klass, 3, 9)
    for bits in (16, 32, 64):
        yield Insn(0xD4, 4, imm=bits)
        yield Insn(0xDC, 4, imm=bits)
    for klass in (isa.JMP, isa.JMP32):
        for op in (0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xA0, 0xB0, 0xC0, 0xD0):
            for offset in (0, 1, -2, 32767, -32768):
                yield Insn(op | klass, 3, offset=offset, imm=-5)
                yield Insn(op | 8 | klass, 3, 4, offset)
    for size in (0x00, 0x08, 0x10, 0x18):
        for offset in (0, 8, -8, -512):
            yield Insn(0x61 | size, 1, 10, offset)
            yield Insn(0x63 | size, 10, 1, offset)
            yield Insn(0x62 | size, 10, 0, offset, -3)
    for size in (0x00, 0x18):
        for op in (0x00, 0x40, 0x50, 0xA0, 0x01, 0x41, 0x51, 0xA1, 0xE1, 0xF1):
            for offset in (0, -8):
                yield Insn(0xC3 | size, 1, 2, offset, op)
    for opcode in (0x20, 0x28, 0x30):
        yield Insn(opcode, imm=14)
    for opcode in (0x40, 0x48, 0x50):
        yield Insn(opcode, 0, 7)
    yield Insn(isa.JA, offset=-3)
    yield Insn(isa.CALL, imm=1)
    yield Insn(isa.CALL, 0, 1, imm=5)
    yield Insn(isa.EXIT)


def _objdump(path: Path) -> dict[tuple[str, int], str]:
    """(section, slot) to text, with numbers in decimal and labels left out."""
    tool = shutil.which("llvm-objdump")
    assert tool, "llvm-objdump is not installed (Debian: llvm)"
    done = subprocess.run(
        [tool, "-d", "--no-show-raw-insn", "--mcpu=v3", "--mattr=+alu32", path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found, section = {}, ""
    for line in done.stdout.splitlines():
        if line.startswith("Disassembly of section "):
            section = line.removeprefix("Disassembly of section ").rstrip(":")
        elif match := re.match(r" *(\d+):\t(.*)$", line):
            text = re.sub(r" <[\w.$+]+>$", "", match[2].strip())
            text = re.sub(r"0x([0-9a-f]+)", lambda m: str(int(m[1], 16)), text)
            found[section, int(match[1])] = text
    return found


def _as_objdump(text: str) -> str:
    """Our text without what objdump does not say, and the halves of registers as it names them."""
    text = re.sub(r"^call bpf_\w+#", "call ", text)
    text = re.sub(r"^call (?:helper#|kfunc#|pc\+?)", "call ", text)
    text = re.sub(r"^r(\d+) = subprog\[\+?(-?\d+)\]", r"r\1 = \2", text)
    text = re.sub(r"^r(\d+) = (\*\(u(?:8|16|32) \*\)\(r)", r"w\1 = \2", text)
    return re.sub(r"^(\*\(u(?:8|16|32) \*\)\(.*\)) = r", r"\1 = w", text)
