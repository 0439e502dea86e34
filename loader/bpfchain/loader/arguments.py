"""Raw tracepoints: which arguments a loaded program reads, and whether the tracepoint has them.

The kernel compares both only for the program that is attached, so a link behind the head could read
what is not there. Neither question runs a link.
"""

from __future__ import annotations

import errno

from bpfchain.loader.hooks.protocol import Target
from bpfchain.loader.insn import EXIT, LDX_DW, MOV_IMM, insn
from bpfchain.loader.links import raw_tracepoint_open
from bpfchain.loader.programs import Program, load_raw
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import BPF_F_TEST_RUN_ON_CPU, ProgType
from bpfchain.transform.errors import RefusedError
from bpfchain.transform.manifest_link import LinkRecord

_MOST = 12  # MAX_BPF_FUNC_ARGS
_NO_CPU = (1 << 31) - 1


def arguments_read(program: Program) -> int | None:
    """How many arguments a raw_tp program can read; None where the kernel does not tell.

    A test run with a context that is too short is EINVAL; then comes the CPU that it is to run on,
    which is none here: ENXIO, before anything runs (``bpf_prog_test_run_raw_tp``).
    """
    for count in range(_MOST + 1):
        try:
            program.test_run(ctx=bytes(8 * count), flags=BPF_F_TEST_RUN_ON_CPU, cpu=_NO_CPU)
        except BpfError as error:
            if error.errno == errno.ENXIO:
                return count
            if error.errno != errno.EINVAL:
                return None
    return None


def has_arguments(name: str, count: int) -> bool:
    """Whether the raw tracepoint has so many: a program that reads the last one is attached for a
    moment, and does nothing else."""
    reads = insn(LDX_DW, 2, 1, offset=8 * (count - 1))
    code = reads + insn(MOV_IMM) + insn(EXIT)
    with load_raw(ProgType.RAW_TRACEPOINT, code) as program:
        try:
            raw_tracepoint_open(program, name).close()
        except BpfError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
    return True


def check_arguments(target: Target, links: list[tuple[LinkRecord, Program]]) -> None:
    """Raise RefusedError for a link that reads an argument that the tracepoint does not have."""
    if target.kind != "raw_tp":
        return
    known: dict[int, bool] = {0: True}
    for record, program in links:
        count = arguments_read(program)
        if count is None:
            continue
        if count not in known:
            known[count] = has_arguments(target.name, count)
        if not known[count]:
            raise RefusedError(
                f"{record.label} reads argument {count - 1} of {target.name}, which has fewer",
                "the kernel would have found that out for link 0 only",
            )
