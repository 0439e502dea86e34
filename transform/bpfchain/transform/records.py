"""Wire layouts of ELF64 relocatable objects, each written down once for both byte orders.

Sources: the System V ABI (gabi), include/uapi/linux/elf.h; section types of LLVM from
llvm/BinaryFormat/ELF.h. BTF layouts are in ``btf_records``, instructions in ``isa``.
"""

from __future__ import annotations

from struct import Struct

__all__ = [
    "EHDR_SIZE", "EM_BPF", "ET_REL", "R_BPF_64_32", "R_BPF_64_64", "R_BPF_64_ABS32",
    "R_BPF_64_ABS64", "R_BPF_64_NODYLD32", "SHDR_SIZE", "SHF_ALLOC", "SHF_COMPRESSED", "SHF_EXECINSTR", "SHF_WRITE",
    "SHN_ABS", "SHN_COMMON", "SHN_LORESERVE", "SHN_UNDEF", "SHT_GROUP", "SHT_LLVM_ADDRSIG",
    "SHT_NOBITS", "SHT_NOTE", "SHT_NULL", "SHT_PROGBITS", "SHT_REL", "SHT_RELA", "SHT_STRTAB",
    "SHT_SYMTAB", "STB_GLOBAL", "STB_LOCAL", "STB_WEAK", "STT_FILE", "STT_FUNC", "STT_NOTYPE",
    "STT_OBJECT", "STT_SECTION", "STV_DEFAULT", "ElfRecords", "records_for",
]  # fmt: skip

EHDR_SIZE = 64
SHDR_SIZE = 64
SYM_SIZE = 24
REL_SIZE = 16

ET_REL = 1
EM_BPF = 247

SHT_NULL, SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA = 0, 1, 2, 3, 4
SHT_NOTE, SHT_NOBITS, SHT_REL, SHT_GROUP = 7, 8, 9, 17
SHT_LLVM_ADDRSIG = 0x6FFF4C03
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_COMPRESSED = 1, 2, 4, 0x800
SHN_UNDEF, SHN_LORESERVE, SHN_ABS, SHN_COMMON = 0, 0xFF00, 0xFFF1, 0xFFF2

STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE = 0, 1, 2, 3, 4
STV_DEFAULT = 0

# llvm/BinaryFormat/ELFRelocs/BPF.def; the loaders tell ldimm64 from call by the instruction
R_BPF_64_64, R_BPF_64_ABS64, R_BPF_64_ABS32, R_BPF_64_NODYLD32, R_BPF_64_32 = 1, 2, 3, 4, 10


class ElfRecords:
    """The packers of one byte order (``"<"`` or ``">"``)."""

    __slots__ = ("ehdr", "order", "rel", "rel_symbol", "shdr", "sym")

    def __init__(self, order: str) -> None:
        self.order = order
        # ident, type, machine, version, entry, phoff, shoff, flags, ehsize, phentsize, phnum,
        # shentsize, shnum, shstrndx
        self.ehdr = Struct(order + "16sHHIQQQIHHHHHH")
        # name, type, flags, addr, offset, size, link, info, addralign, entsize
        self.shdr = Struct(order + "IIQQQQIIQQ")
        # name, info, other, shndx, value, size
        self.sym = Struct(order + "IBBHQQ")
        # offset, info (symbol index in the high half, type in the low one)
        self.rel = Struct(order + "QQ")
        # of the same record only the symbol index
        self.rel_symbol = Struct(order + ("12xI" if order == "<" else "8xI4x"))


_LITTLE, _BIG = ElfRecords("<"), ElfRecords(">")


def records_for(order: str) -> ElfRecords:
    """The packers for byte order ``"<"`` or ``">"``."""
    return _LITTLE if order == "<" else _BIG
