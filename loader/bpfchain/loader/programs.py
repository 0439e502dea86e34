"""BPF programs by file descriptor: load raw instructions, run on a packet, ask about, pin."""

from __future__ import annotations

import ctypes
import errno
import threading
from dataclasses import dataclass
from typing import Self

from bpfchain.loader.syscall import (
    BpfError,
    Fd,
    bpf,
    copy_in,
    duplicate,
    fd_by_id,
    object_info,
    object_name,
)
from bpfchain.loader.uapi import (
    BPF_STATS_RUN_TIME,
    ENABLE_STATS,
    PROG_INFO,
    PROG_LOAD,
    TEST_RUN,
    Cmd,
    ProgType,
)
from bpfchain.loader.verifierlog import condense

DATA_OUT_BYTES = 256 * 1024
"""Room for a packet after a test run, which stays below 128 KiB in all types."""
CTX_OUT_BYTES = 4096

# The kernel takes buffers up to UINT_MAX >> 8 bytes and says ENOSPC for a log that is longer.
_LOG_SIZES = (1 << 16, 1 << 20, (1 << 24) - 1)
_PROG_LOAD_TRIES = 5


class VerifierError(BpfError):
    """The kernel refused a program. ``log``: all that its verifier said, which may be nothing."""

    def __init__(self, number: int, what: str, log: str) -> None:
        super().__init__(number, "BPF_PROG_LOAD", what)
        self.log = log

    def __str__(self) -> str:
        reason = condense(self.log) or "the kernel gave no reason"
        return f"{super().__str__()}: {reason}"


@dataclass(frozen=True, slots=True)
class TestRun:
    """The result of a test run (BPF_PROG_TEST_RUN)."""

    # pytest takes every class named Test… that a test module imports for a test.
    __test__ = False

    retval: int
    """What the program returned, its low 32 bits without sign."""
    data_out: bytes
    """The packet afterwards; for XDP it begins at data_meta, so metadata is in front of it."""
    ctx_out: bytes
    """The context afterwards, if one was given, in the kernel's size of it."""
    duration_ns: int
    """Mean time of one of the ``repeat`` runs, as the kernel measured it."""

    @property
    def signed(self) -> int:
        """``retval`` as a signed 32-bit number (tc's UNSPEC is -1)."""
        return self.retval - (1 << 32) if self.retval >> 31 else self.retval


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says of a program (``struct bpf_prog_info``).

    The kernel counts runs only while statistics are enabled, and only for the program that a hook
    calls, not for those reached by tail calls. Without CAP_PERFMON it gives lengths as 0.
    """

    id: int
    type: int
    tag: str
    """16 hexadecimal digits: the kernel's hash of the instructions."""
    name: str
    """At most 15 characters of the program's name."""
    map_ids: tuple[int, ...]
    run_count: int
    run_time_ns: int
    loaded_ns: int
    """When it was loaded, in ns since boot."""
    created_by_uid: int
    translated_bytes: int
    jited_bytes: int
    """0: not compiled, or not told."""
    btf_id: int


class Program(Fd):
    """A loaded program. From :func:`load_raw`, an object file, a pin, an id or a descriptor."""

    kind = "bpf-prog"

    @classmethod
    def from_id(cls, number: int) -> Self:
        """The program with this id (needs CAP_SYS_ADMIN)."""
        return cls(fd_by_id(Cmd.PROG_GET_FD_BY_ID, number))

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """A program of its own for a descriptor that someone else keeps (it is duplicated)."""
        return cls(duplicate(fd))

    def info(self) -> ProgramInfo:
        """Asks the kernel anew."""
        data = bytearray(PROG_INFO.size)
        object_info(self.fileno(), data, "of a program")
        count = PROG_INFO.unpack(data)["nr_map_ids"]
        ids = (ctypes.c_uint32 * count)()
        if count:
            data = PROG_INFO.pack(nr_map_ids=count, map_ids=ctypes.addressof(ids))
            object_info(self.fileno(), data, "of a program")
        v = PROG_INFO.unpack(data)
        return ProgramInfo(
            id=v["id"],
            type=ProgType(v["type"]) if v["type"] in ProgType._value2member_map_ else v["type"],
            tag=PROG_INFO.raw(data, "tag").hex(),
            name=PROG_INFO.text(data, "name"),
            map_ids=tuple(ids),
            run_count=v["run_cnt"],
            run_time_ns=v["run_time_ns"],
            loaded_ns=v["load_time"],
            created_by_uid=v["created_by_uid"],
            translated_bytes=v["xlated_prog_len"],
            jited_bytes=v["jited_prog_len"],
            btf_id=v["btf_id"],
        )

    def test_run(
        self,
        data: bytes = b"",
        ctx: bytes | None = None,
        *,
        repeat: int = 1,
        flags: int = 0,
        cpu: int = 0,
        ctx_out: bool | None = None,
    ) -> TestRun:
        """Run once (or ``repeat`` times) on the packet ``data`` with the context ``ctx``.

        Empty ``data`` means none: for raw_tp and sk_lookup, which want a context alone. The
        context comes back if one was given beside a packet; ``ctx_out`` says otherwise. ``cpu``
        counts with BPF_F_TEST_RUN_ON_CPU in ``flags`` (raw_tp). Each of the runs gets the packet
        as the one before left it. Raises BpfError: EINVAL for a packet or context that the kernel
        does not take (XDP and tc below 14 bytes), 524 for a type that has no test run.
        """
        if ctx_out is None:
            ctx_out = bool(data) and ctx is not None
        data_address, keep_data = copy_in(data)
        ctx_address, keep_ctx = copy_in(ctx or b"")
        attr = TEST_RUN.pack(
            prog_fd=self.fileno(),
            data_size_in=len(data),
            data_in=data_address,
            data_size_out=DATA_OUT_BYTES if data else 0,
            data_out=ctypes.addressof(_buffers.data) if data else 0,
            ctx_size_in=len(ctx or b""),
            ctx_in=ctx_address,
            ctx_size_out=CTX_OUT_BYTES if ctx_out else 0,
            ctx_out=ctypes.addressof(_buffers.ctx) if ctx_out else 0,
            # 0 and 1 are the same, but types that cannot repeat refuse every other than 0.
            repeat=0 if repeat == 1 else repeat,
            flags=flags,
            cpu=cpu,
        )
        bpf(Cmd.PROG_TEST_RUN, attr, f"with {len(data)} bytes")
        del keep_data, keep_ctx
        v = TEST_RUN.unpack(attr)
        return TestRun(
            retval=v["retval"],
            data_out=ctypes.string_at(_buffers.data, v["data_size_out"]) if data else b"",
            ctx_out=ctypes.string_at(_buffers.ctx, v["ctx_size_out"]) if ctx_out else b"",
            duration_ns=v["duration"],
        )


class _Buffers(threading.local):
    """One pair of output buffers per thread: clearing 256 KiB costs more than most runs."""

    def __init__(self) -> None:
        self.data = ctypes.create_string_buffer(DATA_OUT_BYTES)
        self.ctx = ctypes.create_string_buffer(CTX_OUT_BYTES)


_buffers = _Buffers()


def load_raw(
    prog_type: ProgType,
    insns: bytes,
    license: str = "GPL",
    expected_attach_type: int = 0,
    *,
    name: str = "",
    flags: int = 0,
    log: bool = True,
) -> Program:
    """Load instructions as they stand (8 bytes each, maps as file descriptors, no BTF).

    Raises VerifierError. With ``log`` a refused program is given to the kernel once more, to
    learn its reasons; without, the error has none.
    """
    if len(insns) % 8 or not insns:
        raise ValueError(f"{len(insns)} bytes are no BPF instructions of 8 bytes each")
    insns_address, keep_insns = copy_in(insns)
    license_address, keep_license = copy_in(license.encode() + b"\0")
    what = f"of program {name}" if name else f"of a program of {len(insns) // 8} instructions"

    def load(log_buffer: ctypes.Array[ctypes.c_char] | None) -> Program:
        attr = PROG_LOAD.pack(
            prog_type=prog_type,
            insn_cnt=len(insns) // 8,
            insns=insns_address,
            license=license_address,
            log_level=1 if log_buffer else 0,
            log_size=len(log_buffer) if log_buffer else 0,
            log_buf=ctypes.addressof(log_buffer) if log_buffer else 0,
            prog_flags=flags,
            prog_name=object_name(name),
            expected_attach_type=expected_attach_type,
        )
        for _ in range(_PROG_LOAD_TRIES - 1):
            try:
                return Program(bpf(Cmd.PROG_LOAD, attr, what))
            except BpfError as error:
                # A signal during verification: libbpf tries as often.
                if error.errno != errno.EAGAIN:
                    raise
        return Program(bpf(Cmd.PROG_LOAD, attr, what))

    try:
        return load(None)
    except BpfError as error:
        number, text = error.errno or 0, ""
    for size in _LOG_SIZES if log else ():
        buffer = ctypes.create_string_buffer(size)
        try:
            return load(buffer)
        except BpfError as error:
            text = buffer.value.decode("utf-8", "replace")
            if error.errno != errno.ENOSPC:
                number = error.errno or 0
                break
    del keep_insns, keep_license
    raise VerifierError(number, what, text)


def enable_run_statistics() -> Fd:
    """Let the kernel count runs and time of programs while the answer is open (needs 5.8, root)."""
    return Fd(bpf(Cmd.ENABLE_STATS, ENABLE_STATS.pack(type=BPF_STATS_RUN_TIME), "run time"))
