"""Objects damaged on purpose: number n always gives the same bytes and the same request.

A mutant starts from an object of the corpus. Some damage is blind (flips, cuts), most knows where
the fields of ELF, BTF, BTF.ext and code are and puts telling values there, so that it gets past the
first check. ``judge`` runs the transformer on one and says what is wrong with how it ended.
"""

from __future__ import annotations

import io
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from bpfchain.transform.check import check_object
from bpfchain.transform.elf_read import read_object
from bpfchain.transform.elf_write import write_object
from bpfchain.transform.errors import BpfchainError
from bpfchain.transform.request import Patched, Request
from bpfchain.transform.transform import transform_object

__all__ = ["CORPUS", "Mutant", "Verdict", "judge", "mutant", "read_with_pyelftools"]

CORPUS: Final = Path(__file__).parents[2] / "corpus" / "programs"
SECONDS: Final = 1.0
"""A transformation of a small object may take no longer (CPU time: the machine is shared)."""
MESSAGE: Final = 300
"""Characters of an error's line."""

_HUGE: Final = (0, 1, 2, 3, 7, 8, 24, 63, 64, 255, 0x7FFF, 0x8000, 0xFF00, 0xFFF1, 0xFFFF, 0x10000,
                0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF, 1 << 32, 1 << 40, (1 << 63) - 1,
                1 << 63, (1 << 64) - 1)  # fmt: skip
_EHDR: Final = (("type", 16, 2), ("machine", 18, 2), ("version", 20, 4), ("entry", 24, 8),
                ("phoff", 32, 8), ("shoff", 40, 8), ("flags", 48, 4), ("ehsize", 52, 2),
                ("phentsize", 54, 2), ("phnum", 56, 2), ("shentsize", 58, 2), ("shnum", 60, 2),
                ("shstrndx", 62, 2))  # fmt: skip
_SHDR: Final = (("name", 0, 4), ("type", 4, 4), ("flags", 8, 8), ("addr", 16, 8), ("offset", 24, 8),
                ("size", 32, 8), ("link", 40, 4), ("info", 44, 4), ("align", 48, 8),
                ("entsize", 56, 8))  # fmt: skip
_SYM: Final = (("name", 0, 4), ("info", 4, 1), ("other", 5, 1), ("shndx", 6, 2), ("value", 8, 8),
               ("size", 16, 8))  # fmt: skip
_OPCODES: Final = (0x05, 0x06, 0x07, 0x0D, 0x0F, 0x15, 0x18, 0x20, 0x40, 0x61, 0x63, 0x79, 0x7A, 0x7B,
                   0x85, 0x8D, 0x95, 0xB4, 0xB7, 0xBC, 0xBF, 0xC3, 0xDB, 0xE5, 0x00, 0xFF)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutant:
    """One damaged object, what is asked for, and what was done to it."""

    number: int
    base: str
    damage: tuple[str, ...]
    data: bytes
    request: Request


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one ended: ``outcome`` is object, refused or usage; ``wrong`` is empty where all is well."""

    outcome: str
    wrong: str
    seconds: float


@dataclass(slots=True)
class _Work:
    """An object under damage; the section table is read once, before anything is broken."""

    data: bytearray
    random: random.Random
    order: str = "<"
    shoff: int = 0
    rows: tuple[tuple[str, int, int, int], ...] = ()
    """Name, type, file offset and size of each section."""

    def __post_init__(self) -> None:
        elf = ELFFile(io.BytesIO(bytes(self.data)))
        self.order = "<" if elf.little_endian else ">"
        self.shoff = elf.header.e_shoff
        self.rows = tuple(
            (s.name, s.header.sh_type if isinstance(s.header.sh_type, int) else _TYPES.get(s.header.sh_type, 0),
             s.header.sh_offset, s.header.sh_size)
            for s in elf.iter_sections()
        )  # fmt: skip

    def number(self, width: int, old: int) -> int:
        """A telling value for a field of that many bytes."""
        pick = self.random.randrange(4)
        if pick == 0:
            value = old + self.random.choice((-64, -24, -16, -8, -4, -1, 1, 4, 8, 16, 24, 64))
        elif pick == 1:
            value = old ^ 1 << self.random.randrange(8 * width)
        elif pick == 2:
            value = self.random.choice(_HUGE)
        else:
            value = self.random.randrange(max(len(self.data), 2))
        return value & (1 << 8 * width) - 1

    def get(self, at: int, width: int) -> int:
        return int.from_bytes(self.data[at : at + width], "little" if self.order == "<" else "big")

    def put(self, at: int, width: int, value: int) -> None:
        raw = (value & (1 << 8 * width) - 1).to_bytes(
            width, "little" if self.order == "<" else "big"
        )
        if at + width <= len(self.data):
            self.data[at : at + width] = raw

    def change(self, what: str, at: int, width: int) -> str:
        value = self.number(width, self.get(at, width))
        self.put(at, width, value)
        return f"{what}={value:#x}"

    def place(self, *names: str, kind: int | None = None) -> tuple[str, int, int] | None:
        """Some section of these names (or that type) with bytes in it: name, offset, size."""
        found = [
            (name, offset, size) for name, t, offset, size in self.rows
            if size and t != 8 and (name in names or (kind is not None and t == kind))
        ]  # fmt: skip
        return self.random.choice(found) if found else None

    def code(self) -> tuple[str, int, int] | None:
        found = [
            (name, offset, size) for index, (name, t, offset, size) in enumerate(self.rows)
            if t == 1 and size and self.get(self.shoff + 64 * index + 8, 8) & 4
        ]  # fmt: skip
        return self.random.choice(found) if found else None


_TYPES: Final = {"SHT_NULL": 0, "SHT_PROGBITS": 1, "SHT_SYMTAB": 2, "SHT_STRTAB": 3, "SHT_REL": 9,
                 "SHT_NOBITS": 8}  # fmt: skip
_NOTHING: Final = "nothing"


def _flip(w: _Work) -> str:
    at = w.random.randrange(len(w.data))
    w.data[at] ^= 1 << w.random.randrange(8)
    return f"flip {at}"


def _cut(w: _Work) -> str:
    at = w.random.randrange(len(w.data))
    del w.data[at:]
    return f"cut at {at}"


def _cut_middle(w: _Work) -> str:
    at = w.random.randrange(64, max(len(w.data), 65))
    size = w.random.choice((1, 8, 16, 24, 64))
    del w.data[at : at + size]
    return f"cut {size} at {at}"


def _insert(w: _Work) -> str:
    at = w.random.randrange(len(w.data) + 1)
    size = w.random.choice((1, 8, 16, 24, 64, 4096))
    w.data[at:at] = bytes(w.random.randrange(256) for _ in range(size))
    return f"insert {size} at {at}"


def _ehdr(w: _Work) -> str:
    name, at, width = w.random.choice(_EHDR)
    return w.change(f"e_{name}", at, width)


def _ident(w: _Work) -> str:
    return w.change("e_ident", w.random.randrange(16), 1)


def _shdr(w: _Work) -> str:
    index = w.random.randrange(len(w.rows))
    name, at, width = w.random.choice(_SHDR)
    return w.change(f"{w.rows[index][0]} sh_{name}", w.shoff + 64 * index + at, width)


def _same_name(w: _Work) -> str:
    a, b = (w.random.randrange(len(w.rows)) for _ in range(2))
    w.put(w.shoff + 64 * a, 4, w.get(w.shoff + 64 * b, 4))
    return f"{w.rows[a][0]} named {w.rows[b][0]}"


def _overlap(w: _Work) -> str:
    a, b = (w.random.randrange(len(w.rows)) for _ in range(2))
    w.put(w.shoff + 64 * a + 24, 8, w.rows[b][2] + w.random.choice((0, 0, 8, -8)))
    return f"{w.rows[a][0]} over {w.rows[b][0]}"


def _swap_headers(w: _Work) -> str:
    a, b = (w.shoff + 64 * w.random.randrange(len(w.rows)) for _ in range(2))
    w.data[a : a + 64], w.data[b : b + 64] = w.data[b : b + 64], w.data[a : a + 64]
    return f"headers {a} and {b} swapped"


def _symbol(w: _Work) -> str:
    table = w.place(kind=2)
    if table is None:
        return _NOTHING
    index = w.random.randrange(table[2] // 24)
    name, at, width = w.random.choice(_SYM)
    return w.change(f"symbol {index} st_{name}", table[1] + 24 * index + at, width)


def _same_symbol(w: _Work) -> str:
    table = w.place(kind=2)
    if table is None:
        return _NOTHING
    a, b = (w.random.randrange(table[2] // 24) for _ in range(2))
    field, at, width = w.random.choice(_SYM)
    w.put(table[1] + 24 * a + at, width, w.get(table[1] + 24 * b + at, width))
    return f"symbol {a} st_{field} of {b}"


def _relocation(w: _Work) -> str:
    table = w.place(kind=9)
    if table is None or table[2] < 16:
        return _NOTHING
    index = w.random.randrange(table[2] // 16)
    half = (4, 0) if w.order == "<" else (0, 4)
    name, at, width = w.random.choice(
        (("offset", 0, 8), ("symbol", 8 + half[0], 4), ("type", 8 + half[1], 4))
    )
    return w.change(f"{table[0]} {index} {name}", table[1] + 16 * index + at, width)


def _words_of(*names: str) -> Callable[[_Work], str]:
    def damage(w: _Work) -> str:
        part = w.place(*names)
        if part is None or part[2] < 4:
            return _NOTHING
        # headers are short and decide most: every third time, one of their words
        count = 8 if w.random.randrange(3) == 0 else part[2] // 4
        word = w.random.randrange(max(min(count, part[2] // 4), 1))
        width = w.random.choice((1, 2, 4))
        return w.change(f"{part[0]} word {word}", part[1] + 4 * word, width)

    return damage


def _string(w: _Work) -> str:
    part = w.place(kind=3)
    if part is None:
        return _NOTHING
    at = part[1] + w.random.randrange(part[2])
    w.put(at, 1, w.random.choice((0, 0x2E, 0x61, 0x0A, 0xFF, 0xC3)))
    return f"{part[0]} byte {at - part[1]}"


def _instruction(w: _Work) -> str:
    part = w.code()
    if part is None or part[2] < 8:
        return _NOTHING
    slot = w.random.randrange(part[2] // 8)
    at = part[1] + 8 * slot
    what = w.random.randrange(4)
    if what == 0:
        w.data[at] = w.random.choice(_OPCODES)
    elif what == 1:
        w.data[at + 1] = w.random.randrange(256)
    elif what == 2:
        w.put(
            at + 2,
            2,
            w.random.choice((0, 1, 0x7FFF, 0x8000, 0xFFF8, 0xFFFF, w.random.randrange(64))),
        )
    else:
        w.put(
            at + 4, 4, w.random.choice((0, 1, 2, 12, 44, 51, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF))
        )
    return f"{part[0]} slot {slot} {('opcode', 'registers', 'offset', 'imm')[what]}"


def _move_instructions(w: _Work) -> str:
    part = w.code()
    if part is None or part[2] < 32:
        return _NOTHING
    a, b = (part[1] + 8 * w.random.randrange(part[2] // 8) for _ in range(2))
    w.data[a : a + 8] = w.data[b : b + 8]
    return f"{part[0]}: instruction {(b - part[1]) // 8} also at {(a - part[1]) // 8}"


_DAMAGE: Final[tuple[tuple[Callable[[_Work], str], int], ...]] = (
    (_flip, 2), (_cut, 1), (_cut_middle, 1), (_insert, 1), (_ehdr, 1), (_ident, 1), (_shdr, 4),
    (_same_name, 2), (_overlap, 1), (_swap_headers, 1), (_symbol, 4), (_same_symbol, 2),
    (_relocation, 4), (_words_of(".BTF"), 5), (_words_of(".BTF.ext"), 5),
    (_words_of(".maps", "maps", "license", ".rodata"), 1),
    (_words_of(".bpfchain", ".llvm_addrsig"), 1), (_string, 2), (_instruction, 6),
    (_move_instructions, 2),
)  # fmt: skip
_CODES: Final = ("PASS", "any", "none", "not:0", "0", "1", "2", "4", "1,3", "0..3", "7", "-1", "1..2", "x",
                 "not:", "..", "99999999999")  # fmt: skip


def _bases() -> tuple[tuple[str, bytes], ...]:
    return tuple(
        (f"{path.parent.name}/{path.stem}", path.read_bytes())
        for path in sorted(CORPUS.glob("e[lb]/*.o"))
    )


_base_cache: list[tuple[tuple[str, bytes], ...]] = []


def mutant(number: int) -> Mutant:
    """Mutant ``number``: the same on every machine that has the same corpus."""
    if not _base_cache:
        _base_cache.append(_bases())
    chosen = random.Random(number)
    small = [base for base in _base_cache[0] if len(base[1]) < 65536]
    # the few large objects (jumps of 32,000 instructions) cost as much as a hundred others
    name, data = chosen.choice(small if chosen.randrange(50) else _base_cache[0])
    # every tenth is an object that was patched before
    if chosen.randrange(10) == 0:
        patched = _patched(name, data)
        name, data = (f"{name}+patched", patched) if patched is not None else (name, data)
    work = _Work(bytearray(data), chosen)
    kinds, weights = zip(*_DAMAGE, strict=True)
    damage = []
    for _ in range(chosen.choice((1, 1, 1, 2, 3, 5))):
        if len(work.data) > 64:
            damage.append(chosen.choices(kinds, weights)[0](work))
    return Mutant(number, name, tuple(damage), bytes(work.data), _request(chosen))


def _patched(name: str, data: bytes) -> bytes | None:
    try:
        return transform_object(data, Request(index=1)).data
    except BpfchainError:
        return None


def _request(chosen: random.Random) -> Request:
    options: dict[str, Any] = {"index": chosen.choice((0, 1, 2, 2, 2, 32))}
    options["strategy"] = chosen.choice(("auto", "auto", "inline", "subprog"))
    if chosen.randrange(4) == 0:
        options["success"] = chosen.choice(_CODES)
    if chosen.randrange(3) == 0:
        options["redirect"] = chosen.choice(("4", "7", "1", "0", *_CODES))
    if chosen.randrange(4) == 0:
        options["saved"] = chosen.choice(("4", "1", "0", *_CODES))
    if chosen.randrange(6) == 0:
        options["saved_code"] = "map"
    options["last"] = chosen.randrange(8) == 0
    options["pin"] = chosen.randrange(6) == 0
    if chosen.randrange(6) == 0:
        options["hook"] = chosen.choice(("xdp", "tc", "cgroup_skb/egress", "kprobe", "xdpp"))
    if chosen.randrange(8) == 0:
        options["program"] = chosen.choice(("filter", "nope", "", "a\nb"))
    options["allow"] = frozenset(("nested-runs", "redirect-hazard"))
    return Request(**options)


def read_with_pyelftools(data: bytes) -> int:
    """Read all that pyelftools understands; how many symbols and relocations there were."""
    elf, seen = ELFFile(io.BytesIO(data)), 0
    for section in elf.iter_sections():
        if section["sh_type"] != "SHT_NOBITS":  # pyelftools makes that many zeros up
            section.data()
        if isinstance(section, SymbolTableSection):
            seen += sum(1 for _ in section.iter_symbols())
        elif isinstance(section, RelocationSection):
            symbols = elf.get_section(section["sh_link"])
            for item in section.iter_relocations():
                assert symbols is None or item["r_info_sym"] < symbols.num_symbols()
                seen += 1
    return seen


class TooSlowError(Exception):
    """Raised by the alarm where a transformation does not end."""


def _alarm(signum: int, frame: FrameType | None) -> None:
    raise TooSlowError


def judge(data: bytes, request: Request, *, alarm: int = 10) -> Verdict:
    """Transform; what may happen is a sound object or an error that a person can act on.

    Must run in a process's main thread: an alarm ends what hangs, after ``alarm`` seconds.
    """
    previous = signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(alarm)
    start = time.process_time()
    try:
        outcome, wrong = _run(data, request)
    except TooSlowError:
        outcome, wrong = "hang", f"did not end in {alarm} s"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    seconds = time.process_time() - start
    if not wrong and seconds > SECONDS:
        wrong = f"took {seconds:.2f} s"
    return Verdict(outcome, wrong, seconds)


def _run(data: bytes, request: Request) -> tuple[str, str]:
    try:
        patched = transform_object(data, request)
    except BpfchainError as error:
        return error.kind, _wrong_with(error)
    except TooSlowError:
        raise
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}{_where(error)}"
    return "object", _wrong_object(data, patched)


def _where(error: BaseException) -> str:
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return (
        f" ({Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno})" if at is not None else ""
    )


def _wrong_with(error: BpfchainError) -> str:
    if error.kind not in {"refused", "usage"}:
        return f"of kind {error.kind}"
    for text in (error.message, error.hint or ""):
        if any(not c.isprintable() for c in text):
            return f"a message that is not one printable line: {text!r}"
        if len(text) > MESSAGE:
            return f"a message of {len(text)} characters: {text[:60]!r}..."
    return "" if error.message else "an empty message"


def _wrong_object(data: bytes, patched: Patched) -> str:
    try:
        again = read_object(patched.data)
        if write_object(again) != patched.data:
            return "the result is not written back byte for byte"
        # what the patch did not touch is as sound as the damaged input was
        same = {(section.name, section.data) for section in read_object(data).sections}
        changed = frozenset(
            s.id for s in again.sections if s.executable and (s.name, s.data) not in same
        )
        check_object(again, changed)
    except BpfchainError as error:
        return f"the result is refused: {error.message}"
    except TooSlowError:
        raise
    except BaseException as error:
        return f"the result cannot be read: {type(error).__name__}: {error}{_where(error)}"
    try:
        read_with_pyelftools(patched.data)
    except TooSlowError:
        raise
    except BaseException as error:
        return f"pyelftools cannot read the result: {type(error).__name__}: {error}{_where(error)}"
    return ""
