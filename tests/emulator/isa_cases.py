"""Cases of the instruction set, by hand from RFC 9669: operands and what must come out.

Numbers are given without sign, as a register shows them. ``ALU``: operation -> rows of (dst, src,
64-bit result, 32-bit result); the 32-bit operation takes the low halves and zero-extends. ``JUMPS``:
condition -> rows of (dst, src, taken in 64 bits, taken in 32 bits).
"""

from __future__ import annotations

M64, M32 = 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF
"""All ones: -1."""
MIN64, MIN32 = 0x8000_0000_0000_0000, 0x8000_0000
MINUS_MIN32 = 0xFFFF_FFFF_8000_0000
"""The least 32-bit number, sign-extended."""
BIG = 0x1234_5678_9ABC_DEF0

# section 4.1: ADD to ARSH. The code, and the offset that makes DIV and MOD signed.
OPS = {
    "add": (0x00, 0), "sub": (0x10, 0), "mul": (0x20, 0), "div": (0x30, 0), "sdiv": (0x30, 1),
    "or": (0x40, 0), "and": (0x50, 0), "lsh": (0x60, 0), "rsh": (0x70, 0), "mod": (0x90, 0),
    "smod": (0x90, 1), "xor": (0xA0, 0), "mov": (0xB0, 0), "arsh": (0xC0, 0),
}  # fmt: skip

Row = tuple[int, int, int, int]
ALU: dict[str, tuple[Row, ...]] = {
    "add": (
        (1, 2, 3, 3),
        (M64, 1, 0, 0),
        (M32, 1, 0x1_0000_0000, 0),
        (BIG, BIG, 0x2468_ACF1_3579_BDE0, 0x3579_BDE0),
        (0x7FFF_FFFF_FFFF_FFFF, 1, MIN64, 0),
        (5, M64 - 6, M64 - 1, 0xFFFF_FFFE),
        (1, MINUS_MIN32, 0xFFFF_FFFF_8000_0001, 0x8000_0001),
    ),
    "sub": (
        (3, 2, 1, 1),
        (0, 1, M64, M32),
        (0x1_0000_0000, 1, M32, M32),
        (BIG, M64, 0x1234_5678_9ABC_DEF1, 0x9ABC_DEF1),
        (MIN64, 1, 0x7FFF_FFFF_FFFF_FFFF, M32),
    ),
    "mul": (
        (3, 7, 21, 21),
        (M64, M64, 1, 1),
        (0x1_0000_0001, 0x1_0000_0001, 0x2_0000_0001, 1),
        (MIN64, M64, MIN64, 0),
        (MIN32, M64, MINUS_MIN32, MIN32),
        (0xFFFF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFFE_0000_0001, 1),
        (BIG, 16, 0x2345_6789_ABCD_EF00, 0xABCD_EF00),
    ),
    # "If BPF program execution would result in division by zero, dst is set to zero"
    "div": (
        (21, 7, 3, 3),
        (20, 7, 2, 2),
        (M64, 2, 0x7FFF_FFFF_FFFF_FFFF, 0x7FFF_FFFF),
        (5, 0, 0, 0),
        (M64, M64, 1, 1),
        (0x1_0000_0005, 5, 0x3333_3334, 1),
        # the divisor's low half is zero: only the 32-bit operation divides by zero
        (0x6_0000_0004, 0x1_0000_0000, 6, 0),
        (10, M64, 0, 0),
        (MIN64, M64, 0, 0),
        (0x8000_0000, 0xFFFF_FFFF_FFFF_FFFD, 0, 0),
    ),
    # "dst is set to zero"; LLONG_MIN / -1 overflows to LLONG_MIN, INT_MIN / -1 to INT_MIN
    "sdiv": (
        (21, 7, 3, 3),
        (M64 - 20, 7, M64 - 2, 0xFFFF_FFFD),
        (M64 - 19, 7, M64 - 1, 0xFFFF_FFFE),
        (20, M64 - 6, M64 - 1, 0xFFFF_FFFE),
        (M64 - 19, M64 - 6, 2, 2),
        (M64 - 4, 0, 0, 0),
        (MIN64, M64, MIN64, 0),
        (MIN32, M64, MINUS_MIN32, MIN32),
        (MINUS_MIN32, M64, 0x8000_0000, MIN32),
        (MIN32, 2, 0x4000_0000, 0xC000_0000),
        (0xFFFF_FFFF, 2, 0x7FFF_FFFF, 0),
        (0x7_0000_0006, 0x1_0000_0000, 7, 0),
        (7, M64, M64 - 6, 0xFFFF_FFF9),
    ),
    # "If execution would result in modulo by zero, for ALU64 the value of the destination register
    # is unchanged whereas for ALU the upper 32 bits of the destination register are zeroed"
    "mod": (
        (20, 7, 6, 6),
        (BIG, 0, BIG, 0x9ABC_DEF0),
        (M64, 10, 5, 5),
        (0x1_0000_0005, 7, 2, 5),
        (0x6_0000_0004, 0x1_0000_0000, 4, 4),
        (10, M64, 10, 10),
        (MIN64, M64, MIN64, 0),
    ),
    "smod": (
        (20, 7, 6, 6),
        (M64 - 19, 7, M64 - 5, 0xFFFF_FFFA),
        (20, M64 - 6, 6, 6),
        (M64 - 19, M64 - 6, M64 - 5, 0xFFFF_FFFA),
        (MINUS_MIN32, 0, MINUS_MIN32, MIN32),
        (M64 - 4, 0, M64 - 4, 0xFFFF_FFFB),
        (MIN64, M64, 0, 0),
        (MIN32, M64, 0, 0),
        (MINUS_MIN32, M64, 0, 0),
        (0xFFFF_FFFF, 2, 1, M32),
        (13, M64, 0, 0),
        (13, M64 - 3, 1, 1),
    ),
    "or": (
        (0x0F0F, 0xF0F0, 0xFFFF, 0xFFFF),
        (0xF_0000_0000, 1, 0xF_0000_0001, 1),
        (1, M64 - 1, M64, M32),
        (0, MINUS_MIN32, MINUS_MIN32, MIN32),
    ),
    "and": (
        (0xFF00, 0x0FF0, 0x0F00, 0x0F00),
        (BIG, M64, BIG, 0x9ABC_DEF0),
        (M64, MINUS_MIN32, MINUS_MIN32, MIN32),
        (M64, 0, 0, 0),
    ),
    "xor": (
        (0xFF00, 0x0FF0, 0xF0F0, 0xF0F0),
        (BIG, BIG, 0, 0),
        (BIG, M64, 0xEDCB_A987_6543_210F, 0x6543_210F),
    ),
    "mov": (
        (5, 9, 9, 9),
        (5, M64, M64, M32),
        (M64, MINUS_MIN32, MINUS_MIN32, MIN32),
        (M64, BIG, BIG, 0x9ABC_DEF0),
    ),
    # shift amounts are masked: 6 bits for 64-bit operations, 5 for 32-bit ones
    "lsh": (
        (1, 4, 16, 16),
        (1, 31, MIN32, MIN32),
        (1, 32, 0x1_0000_0000, 1),
        (1, 33, 0x2_0000_0000, 2),
        (1, 63, MIN64, MIN32),
        (1, 64, 1, 1),
        (3, 65, 6, 6),
        (BIG, M64, 0, 0),
        (M64, M64, MIN64, MIN32),
        (BIG, 0, BIG, 0x9ABC_DEF0),
        (BIG, 8, 0x3456_789A_BCDE_F000, 0xBCDE_F000),
    ),
    "rsh": (
        (16, 4, 1, 1),
        (M64, 63, 1, 1),
        (M64, 32, M32, M32),
        (MIN64, 63, 1, 0),
        (BIG, 64, BIG, 0x9ABC_DEF0),
        (BIG, 36, 0x0123_4567, 0x09AB_CDEF),
        (BIG, M64, 0, 1),
    ),
    "arsh": (
        (16, 4, 1, 1),
        (M64 - 15, 4, M64, M32),
        (MIN64, 63, M64, 0),
        (MIN32, 31, 1, M32),
        (MINUS_MIN32, 31, M64, M32),
        (0x9ABC_DEF0, 4, 0x09AB_CDEF, 0xF9AB_CDEF),
        (MIN64, 64, MIN64, 0),
        (MINUS_MIN32, 36, 0xFFFF_FFFF_FFFF_FFFF, 0xF800_0000),
        (BIG, 0, BIG, 0x9ABC_DEF0),
    ),
}

# section 4.1: NEG, and MOVSX (the width is in the offset); (dst or src, 64-bit, 32-bit result)
NEGATED = (
    (0, 0, 0),
    (1, M64, M32),
    (M64, 1, 1),
    (MIN64, MIN64, 0),
    (MIN32, MINUS_MIN32, MIN32),
    (BIG, 0xEDCB_A987_6543_2110, 0x6543_2110),
)
EXTENDED = {
    8: (
        (0x7F, 0x7F, 0x7F),
        (0x80, M64 - 0x7F, 0xFFFF_FF80),
        (BIG, M64 - 0x0F, 0xFFFF_FFF0),
        (0xFFFF_FF01, 1, 1),
    ),
    16: (
        (0x7FFF, 0x7FFF, 0x7FFF),
        (0x8000, M64 - 0x7FFF, 0xFFFF_8000),
        (BIG, 0xFFFF_FFFF_FFFF_DEF0, 0xFFFF_DEF0),
        (0xFFFF_0001, 1, 1),
    ),
    32: (
        (0x7FFF_FFFF, 0x7FFF_FFFF, None),
        (MIN32, MINUS_MIN32, None),
        (BIG, 0xFFFF_FFFF_9ABC_DEF0, None),
        (0xF_0000_0001, 1, None),
    ),
}

# section 4.2: byte swaps; (opcode, width) -> (before, after); little-endian hosts
SWAPS = {
    (0xD4, 16): ((BIG, 0xDEF0), (M64, 0xFFFF)),
    (0xD4, 32): ((BIG, 0x9ABC_DEF0),),
    (0xD4, 64): ((BIG, BIG),),
    (0xDC, 16): ((BIG, 0xF0DE), (0x1_0000_0001, 0x0100)),
    (0xDC, 32): ((BIG, 0xF0DE_BC9A), (1, 0x0100_0000)),
    (0xDC, 64): ((BIG, 0xF0DE_BC9A_7856_3412),),
    (0xD7, 16): ((BIG, 0xF0DE),),
    (0xD7, 32): ((BIG, 0xF0DE_BC9A),),
    (0xD7, 64): ((BIG, 0xF0DE_BC9A_7856_3412),),
}

# section 4.3
CONDITIONS = {
    "jeq": 0x10, "jgt": 0x20, "jge": 0x30, "jset": 0x40, "jne": 0x50, "jsgt": 0x60, "jsge": 0x70,
    "jlt": 0xA0, "jle": 0xB0, "jslt": 0xC0, "jsle": 0xD0,
}  # fmt: skip
PAIRS = (
    (0, 0),
    (1, 2),
    (2, 1),
    (M64, 1),
    (1, M64),
    (M64, M64),
    (0x1_0000_0000, 0),
    (0x1_0000_0005, 5),
    (5, 0x1_0000_0005),
    (MIN32, 0x7FFF_FFFF),
    (MINUS_MIN32, 0x7FFF_FFFF),
    (0x0F0F, 0xF0F0),
)
"""(dst, src); the columns of ``JUMPS``."""
JUMPS = {
    #        64 bits         32 bits; 1: taken
    "jeq": ("100001000000", "100001111000"),
    "jne": ("011110111111", "011110000111"),
    "jgt": ("001100110110", "001100000110"),
    "jge": ("101101110110", "101101111110"),
    "jlt": ("010010001001", "010010000001"),
    "jle": ("110011001001", "110011111001"),
    "jsgt": ("001010110100", "001010000000"),
    "jsge": ("101011110100", "101011111000"),
    "jslt": ("010100001011", "010100000111"),
    "jsle": ("110101001011", "110101111111"),
    "jset": ("000111011000", "000111011000"),
}

# section 5.2: bytes 80 7f fe 81 02 03 04 85, by (opcode, offset)
LOADED = bytes.fromhex("807ffe8102030485")
LOADS = {
    ("b", 0x71, 0): 0x80,
    ("b", 0x71, 1): 0x7F,
    ("h", 0x69, 0): 0x7F80,
    ("h", 0x69, 2): 0x81FE,
    ("w", 0x61, 0): 0x81FE_7F80,
    ("dw", 0x79, 0): 0x8504_0302_81FE_7F80,
    ("sb", 0x91, 0): 0xFFFF_FFFF_FFFF_FF80,
    ("sb", 0x91, 1): 0x7F,
    ("sh", 0x89, 0): 0x7F80,
    ("sh", 0x89, 2): 0xFFFF_FFFF_FFFF_81FE,
    ("sw", 0x81, 0): 0xFFFF_FFFF_81FE_7F80,
    ("sw", 0x81, 4): 0xFFFF_FFFF_8504_0302,
}
# a store over eight bytes 0xAA: (opcode, value) -> the bytes after; ST with -2, STX with BIG
STORES = {
    (0x72, -2): "feaaaaaaaaaaaaaa",
    (0x6A, -2): "feffaaaaaaaaaaaa",
    (0x62, -2): "feffffffaaaaaaaa",
    (0x7A, -2): "feffffffffffffff",
    (0x7A, 0x7FFF_FFFF): "ffffff7f00000000",
    (0x73, BIG): "f0aaaaaaaaaaaaaa",
    (0x6B, BIG): "f0deaaaaaaaaaaaa",
    (0x63, BIG): "f0debc9aaaaaaaaa",
    (0x7B, BIG): "f0debc9a78563412",
}

# section 5.3: memory holds BIG. (imm) -> rows of (r0 before, src, then for 64 and for 32 bits:
# memory, src and r0 after)
ATOMICS: dict[str, tuple[int, int, int, tuple[int, int, int], tuple[int, int, int]]] = {
    "add": (0x00, 7, 0x20, (0x1234_5678_9ABC_DF10, 0x20, 7), (0x1234_5678_9ABC_DF10, 0x20, 7)),
    "add carries": (
        0x00, 7, 0x6543_2110,
        (0x1234_5679_0000_0000, 0x6543_2110, 7), (0x1234_5678_0000_0000, 0x6543_2110, 7),
    ),
    "or": (0x40, 7, 0xF, (0x1234_5678_9ABC_DEFF, 0xF, 7), (0x1234_5678_9ABC_DEFF, 0xF, 7)),
    "and": (0x50, 7, 0xFF, (0xF0, 0xFF, 7), (0x1234_5678_0000_00F0, 0xFF, 7)),
    "xor": (0xA0, 7, M64, (0xEDCB_A987_6543_210F, M64, 7), (0x1234_5678_6543_210F, M64, 7)),
    "fetch add": (
        0x01, 7, 0x20,
        (0x1234_5678_9ABC_DF10, BIG, 7), (0x1234_5678_9ABC_DF10, 0x9ABC_DEF0, 7),
    ),
    "fetch or": (
        0x41, 7, 0xF,
        (0x1234_5678_9ABC_DEFF, BIG, 7), (0x1234_5678_9ABC_DEFF, 0x9ABC_DEF0, 7),
    ),
    "fetch and": (0x51, 7, 0xFF, (0xF0, BIG, 7), (0x1234_5678_0000_00F0, 0x9ABC_DEF0, 7)),
    "fetch xor": (
        0xA1, 7, M64,
        (0xEDCB_A987_6543_210F, BIG, 7), (0x1234_5678_6543_210F, 0x9ABC_DEF0, 7),
    ),
    "xchg": (
        0xE1, 7, 0xF_1111_2222,
        (0xF_1111_2222, BIG, 7), (0x1234_5678_1111_2222, 0x9ABC_DEF0, 7),
    ),
    "cmpxchg, equal": (
        0xF1, BIG, 0x55, (0x55, 0x55, BIG), (0x1234_5678_0000_0055, 0x55, 0x9ABC_DEF0),
    ),
    "cmpxchg, the low half equal": (
        0xF1, 0x9ABC_DEF0, 0x55, (BIG, 0x55, BIG), (0x1234_5678_0000_0055, 0x55, 0x9ABC_DEF0),
    ),
    "cmpxchg, not equal": (0xF1, 1, 0x55, (BIG, 0x55, BIG), (BIG, 0x55, 0x9ABC_DEF0)),
    "cmpxchg, not equal, high half": (
        0xF1, 0xFFFF_FFFF_0000_0001, 0x55, (BIG, 0x55, BIG), (BIG, 0x55, 0x9ABC_DEF0),
    ),
}  # fmt: skip
