"""Hazards of the patch, each as a test; most were found by attacks and once made wrong links.

The expected results follow from DESIGN section 2 and from what the original does in this kernel.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bpfchain.loader.libbpf import ObjectFile
from bpfchain.loader.uapi import ProgType
from bpfchain.transform.errors import RefusedError
from bpfchain.transform.flow import analyse
from bpfchain.transform.isa import EXIT, Insn
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from support.bpfcode import compile_bpf
from support.kernel import Chain

TC_SLOTS, XDP_SLOTS = 528, 264
PROGRAMS = Path(__file__).resolve().parents[2] / "corpus" / "programs" / "el"
TC_OK, TC_SHOT = 0, 2
XDP_PASS = 2
FRAME = bytes(12) + b"\x08\x00" + b"\x45" + bytes(49)

LD_ABS = """
unsigned long long load_byte(void *skb, unsigned long long off) asm("llvm.bpf.load.byte");
SEC("tc") int prog(struct __sk_buff *skb) { volatile int x = load_byte(skb, 80); return 2; }
"""
TAIL_CALL = """
int other(struct __sk_buff *);
struct {
    __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 1); __type(key, int);
    __array(values, int(void *));
} jt SEC(".maps") = { .values = { [0] = (void *)&other } };
SEC("tc") int other(struct __sk_buff *skb) { return 0; }
SEC("tc") int prog(struct __sk_buff *skb) { bpf_tail_call(skb, &jt, 0); return 2; }
"""
DROPPER = 'SEC("tc") int dropper(struct __sk_buff *skb) { return 2; }'


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("source", [LD_ABS, TAIL_CALL], ids=["ld_abs", "tail_call"])
def test_what_leaves_past_the_exits_goes_on_all_the_same(source: str, tmp_path: Path) -> None:
    """All exits of these programs are SHOT, and yet they end with OK, which is in S."""
    data = compile_bpf(tmp_path, source)
    with ObjectFile.open(data, "original") as original:
        original.load()
        program = original.programs["prog"].program()
        with program:
            assert program.test_run(FRAME).retval == TC_OK
    first = transform_object(data, Request(index=0, program="prog"))
    assert first.strategy == "subprog"
    last = transform_object(compile_bpf(tmp_path, DROPPER), Request(index=1, last=True))
    links = [(first.data, 0, {0: (0, "prog")}), (last.data, 1, {0: (1, "dropper")})]
    with Chain(links, max_entries=TC_SLOTS, prog_type=ProgType.SCHED_CLS) as chain:
        assert chain.run(FRAME).retval == TC_SHOT


@pytest.mark.parametrize("source", [LD_ABS, TAIL_CALL], ids=["ld_abs", "tail_call"])
def test_inline_refuses_them(source: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="past the epilogue"):
        transform_object(
            compile_bpf(tmp_path, source), Request(index=0, program="prog", strategy="inline")
        )


def test_a_load_acquire_loads() -> None:
    """``r2 = 2; r2 = load_acquire(r10 - 8); r0 = r2``: 2 is not what it returns."""
    insns = [
        Insn(0xB7, 2, imm=2), Insn(0xDB, 2, 10, -8, 0x100), Insn(0xBF, 0, 2), Insn(EXIT),
    ]  # fmt: skip
    found = analyse(insns, what="p", relocated={})
    assert found.exits[0].code is None
    assert found.lowest == -8
    context = [Insn(0xBF, 6, 1), Insn(0xDB, 6, 10, -8, 0x100), Insn(0xB7, 0, imm=1), Insn(EXIT)]
    assert 6 not in analyse(context, what="p", relocated={}).exits[0].context


def test_a_store_release_stores() -> None:
    insns = [Insn(0xDB, 10, 1, -16, 0x110), Insn(0xB7, 0, imm=2), Insn(EXIT)]
    found = analyse(insns, what="p", relocated={})
    assert (found.lowest, found.exits[0].code) == (-16, 2)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("strategy", ["inline", "subprog"])
def test_a_program_without_line_info_beside_one_that_has_it(strategy: str, tmp_path: Path) -> None:
    source = r"""
asm(".section xdp,\"ax\",@progbits\n.globl asmp\n.type asmp,@function\nasmp:\n"
    "r0 = *(u32 *)(r1 + 16)\nr0 &= 1\nr0 += 1\nexit\n.size asmp,.-asmp\n.text");
SEC("xdp") int other(struct xdp_md *c) { return c->rx_queue_index ? 1 : 2; }
"""
    data = compile_bpf(tmp_path, source)
    patched = transform_object(data, Request(index=0, program="asmp", strategy=strategy)).data
    for given in (data, patched):
        with ObjectFile.open(given, "object") as obj:
            obj.load()
            assert set(obj.programs) == {"asmp", "other"}


@pytest.mark.usefixtures("kernel")
def test_sixty_four_maps_leave_no_room(tmp_path: Path) -> None:
    definition = (
        "struct {{ __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, int); "
        '__type(value, int); }} m{0} SEC(".maps");\n'
    )
    use = "k = {0}; v = bpf_map_lookup_elem(&m{0}, &zero); if (v) k += *v;\n"

    def program(count: int) -> bytes:
        maps = "".join(definition.format(i) for i in range(count))
        uses = "".join(use.format(i) for i in range(count))
        body = (
            f'{maps}SEC("xdp") int p(struct xdp_md *c) {{ int zero = 0, k, *v; {uses} return k; }}'
        )
        return compile_bpf(tmp_path, body)

    full = program(64)
    with ObjectFile.open(full, "full") as obj:
        obj.load()
    with pytest.raises(RefusedError, match="uses 64 maps, and the chain adds 1"):
        transform_object(full, Request(index=0))
    with ObjectFile.open(transform_object(program(63), Request(index=0)).data, "fits") as obj:
        obj.load()


def test_many_functions_leave_no_room_for_a_wrapper(tmp_path: Path) -> None:
    functions = "".join(
        f'static __attribute__((noinline)) int f{i}(int x) {{ asm volatile(""); return x + {i}; }}\n'
        for i in range(255)
    )
    calls = " + ".join(f"f{i}(c->rx_queue_index)" for i in range(255))
    data = compile_bpf(
        tmp_path, f'{functions}SEC("xdp") int p(struct xdp_md *c) {{ return ({calls}) & 1; }}'
    )
    with pytest.raises(RefusedError, match=re.escape("(the verifier allows 256 in all)")):
        transform_object(data, Request(index=0, strategy="subprog"))
    assert transform_object(data, Request(index=0)).strategy == "inline"


def test_stores_to_the_context_grow(tmp_path: Path) -> None:
    """Behind an exit lie stores that the verifier makes longer: the jump would not fit."""
    source = r"""
asm(".section tc,\"ax\",@progbits\n.globl p\n.type p,@function\np:\n"
    "r2 = *(u64 *)(r1 + 152)\nif r2 != 0 goto 1f\nr0 = 0\nexit\n1:\n"
    ".rept 9000\n*(u64 *)(r1 + 152) = r2\n.endr\nr0 = 2\nexit\n.size p,.-p\n.text");
"""
    data = compile_bpf(tmp_path, source)
    with pytest.raises(RefusedError, match="further than a jump goes"):
        transform_object(data, Request(index=0, strategy="inline"))
    assert transform_object(data, Request(index=0)).strategy == "subprog"


def test_a_pointer_that_sinks_through_memory_is_given_up() -> None:
    """A spilled stack pointer, and a number that comes back smaller each time: the bound is lost,
    after a few passes and not after as many as the number has values."""
    insns = [
        Insn(0xBF, 2, 10), Insn(0x7B, 10, 2, -8), Insn(0x79, 3, 10, -8), Insn(0x07, 3, imm=-1),
        Insn(0x7B, 10, 3, -16), Insn(0xB7, 0, imm=2), Insn(EXIT),
    ]  # fmt: skip
    found = analyse(insns, what="p", relocated={})
    assert found.lowest is None
    assert found.exits[0].code == XDP_PASS


@pytest.mark.usefixtures("kernel")
def test_links_with_cgroup_storage_of_their_own_share_no_array() -> None:
    """Hazard 36: the kernel binds a PROG_ARRAY to the storage of its first program."""
    data = (PROGRAMS / "cgroup_storage.o").read_bytes()
    links = [
        (transform_object(data, Request(index=index)).data, index, {0: (index, "cgroup_storage")})
        for index in (0, 1)
    ]
    with (
        pytest.raises(OSError, match="load failed: Invalid argument"),
        Chain(links, max_entries=XDP_SLOTS),
    ):
        pass
    with Chain(links, max_entries=XDP_SLOTS, share=("per_cgroup",)) as chain:
        assert chain.slots.slot(1) is not None
