"""What is taken from verifier logs and libbpf's messages (texts in their form)."""

from __future__ import annotations

import pytest

from bpfchain.loader.verifierlog import condense, first_complaint, programs_logs

# Written in the form of kernel 6.1 (OLD) and 6.18; test_objects.py has the real thing.
OLD = """\
0: R1=ctx(off=0,imm=0) R10=fp0
; return *v;
7: (71) r0 = *(u8 *)(r0 +0)
R0 invalid mem access 'map_value_or_null'
processed 8 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""
NEW = """\
func#0 @0
0: R1=ctx() R10=fp0
; return *v; @ bad.c:11
7: (71) r0 = *(u8 *)(r0 +0)
R0 invalid mem access 'map_value_or_null'
verification time 33 usec
stack depth 4
processed 8 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""
JUMPED = """\
3: (15) if r0 == 0x0 goto pc+1        ; R0_w=map_value(ks=4,vs=8)
from 3 to 5: R0=0 R10=fp0 fp-8=mmmm????
5: (95) exit
At program exit the register R0 has unknown scalar value should have been in [0, 1]
processed 6 insns (limit 1000000)
"""
DUMP = "0: (95) exit\nR0 !read_ok\nprocessed 1 insns (limit 1000000)\n"


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            OLD,
            "instruction 7 (r0 = *(u8 *)(r0 +0)), return *v;:"
            " R0 invalid mem access 'map_value_or_null'",
        ),
        (
            NEW,
            "instruction 7 (r0 = *(u8 *)(r0 +0)), bad.c:11:"
            " R0 invalid mem access 'map_value_or_null'",
        ),
        (
            JUMPED,
            "instruction 5 (exit): At program exit the register R0 has unknown scalar value"
            " should have been in [0, 1]",
        ),
        (DUMP, "instruction 0 (exit): R0 !read_ok"),
        ("", ""),
        ("processed 0 insns (limit 1000000)\n", ""),
        ("combined stack size of 2 calls is 544. Too large\n",
         "combined stack size of 2 calls is 544. Too large"),
    ],
)  # fmt: skip
def test_condense(log: str, said: str) -> None:
    assert condense(log) == said


def test_libbpf_messages() -> None:
    messages = (
        "libbpf: prog 'bad': BPF program load failed: Permission denied\n"
        f"libbpf: prog 'bad': -- BEGIN PROG LOAD LOG --\n{DUMP}-- END PROG LOAD LOG --\n"
        "libbpf: prog 'bad': failed to load: -13\n"
        "libbpf: failed to load object 'x'\n"
    )
    assert programs_logs(messages) == [DUMP]
    assert first_complaint(messages) == ("prog 'bad': BPF program load failed: Permission denied")
    assert first_complaint(messages.split("\n", 1)[1]) == "prog 'bad': failed to load: -13"
    assert first_complaint("") == ""
