"""The shared library libbpf.so.1: its functions, and its messages turned into errors.

It is found by the dynamic linker (Debian's libbpf1) or by a path. Only functions
that libbpf 1.0 has are used. What libbpf prints is caught per call and per thread, and becomes the
message and the ``log`` of :class:`LibbpfError`.
"""

from __future__ import annotations

import ctypes
import errno as errno_codes
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from bpfchain.loader.verifierlog import condense, first_complaint, programs_logs

DEFAULT_LIBRARY = "libbpf.so.1"

_POINTER, _TEXT, _INT, _U32, _SIZE = (
    ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_size_t,
)  # fmt: skip

# name: (result, arguments); <bpf/libbpf.h>. Handles are addresses: None is NULL.
_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "libbpf_major_version": (_U32, ()),
    "libbpf_version_string": (_TEXT, ()),
    "libbpf_set_print": (_POINTER, (_POINTER,)),
    "libbpf_strerror": (_INT, (_INT, _POINTER, _SIZE)),
    "bpf_object__open_file": (_POINTER, (_TEXT, _POINTER)),
    "bpf_object__open_mem": (_POINTER, (_POINTER, _SIZE, _POINTER)),
    "bpf_object__load": (_INT, (_POINTER,)),
    "bpf_object__close": (None, (_POINTER,)),
    "bpf_object__name": (_TEXT, (_POINTER,)),
    "bpf_object__next_program": (_POINTER, (_POINTER, _POINTER)),
    "bpf_object__next_map": (_POINTER, (_POINTER, _POINTER)),
    "bpf_program__name": (_TEXT, (_POINTER,)),
    "bpf_program__section_name": (_TEXT, (_POINTER,)),
    "bpf_program__autoload": (ctypes.c_bool, (_POINTER,)),
    "bpf_program__set_autoload": (_INT, (_POINTER, ctypes.c_bool)),
    "bpf_program__type": (_INT, (_POINTER,)),
    "bpf_program__set_type": (_INT, (_POINTER, _INT)),
    "bpf_program__expected_attach_type": (_INT, (_POINTER,)),
    "bpf_program__set_expected_attach_type": (_INT, (_POINTER, _INT)),
    "bpf_program__flags": (_U32, (_POINTER,)),
    "bpf_program__set_flags": (_INT, (_POINTER, _U32)),
    "bpf_program__set_log_level": (_INT, (_POINTER, _U32)),
    "bpf_program__insns": (_POINTER, (_POINTER,)),
    "bpf_program__insn_cnt": (_SIZE, (_POINTER,)),
    "bpf_program__fd": (_INT, (_POINTER,)),
    "bpf_map__name": (_TEXT, (_POINTER,)),
    "bpf_map__type": (_INT, (_POINTER,)),
    "bpf_map__key_size": (_U32, (_POINTER,)),
    "bpf_map__value_size": (_U32, (_POINTER,)),
    "bpf_map__max_entries": (_U32, (_POINTER,)),
    "bpf_map__map_flags": (_U32, (_POINTER,)),
    "bpf_map__set_max_entries": (_INT, (_POINTER, _U32)),
    "bpf_map__reuse_fd": (_INT, (_POINTER, _INT)),
    "bpf_map__set_pin_path": (_INT, (_POINTER, _TEXT)),
    "bpf_map__pin_path": (_TEXT, (_POINTER,)),
    "bpf_map__autocreate": (ctypes.c_bool, (_POINTER,)),
    "bpf_map__set_autocreate": (_INT, (_POINTER, ctypes.c_bool)),
    "bpf_map__is_internal": (ctypes.c_bool, (_POINTER,)),
    "bpf_map__fd": (_INT, (_POINTER,)),
    "bpf_map__initial_value": (_POINTER, (_POINTER, _POINTER)),
    "bpf_map__set_initial_value": (_INT, (_POINTER, _POINTER, _SIZE)),
}


class OpenOptions(ctypes.Structure):
    """``struct bpf_object_open_opts`` as of libbpf 1.0; ``sz`` tells newer ones where it ends."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("object_name", ctypes.c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", ctypes.c_char_p),
        ("_removed", ctypes.c_uint32),
        ("kconfig", ctypes.c_char_p),
        ("btf_custom_path", ctypes.c_char_p),
        ("kernel_log_buf", ctypes.c_void_p),
        ("kernel_log_size", ctypes.c_size_t),
        ("kernel_log_level", ctypes.c_uint32),
    )


class LibbpfError(OSError):
    """libbpf or the kernel behind it said no.

    ``message`` is one line; ``log`` all that libbpf printed during the call; ``verifier_log`` the
    kernel's part of that, empty if it gave none (a map that the program does not fit, for one).
    """

    def __init__(self, message: str, errno: int, log: str = "") -> None:
        super().__init__(errno, message)
        self.message = message
        self.log = log

    @property
    def verifier_log(self) -> str:
        """The kernel's verifier log of the program that failed, the last one that libbpf tried."""
        return (programs_logs(self.log) or [""])[-1]

    def __str__(self) -> str:
        return self.message


_WARN, _INFO, _DEBUG = range(3)
_print_type = ctypes.CFUNCTYPE(_INT, _INT, _TEXT, _POINTER)
_c = ctypes.CDLL(None)
_c.vasprintf.argtypes = (_POINTER, _TEXT, _POINTER)
_c.free.argtypes = (_POINTER,)


class _Sink(threading.local):
    """Where the current thread wants libbpf's messages, with their levels; None: nowhere."""

    lines: list[tuple[int, str]] | None = None


_sink = _Sink()


def _print(level: int, template: bytes, arguments: int) -> int:
    lines = _sink.lines
    # Of the debug messages only the verifier's log of a successful load is of use here.
    if lines is None or (level >= _DEBUG and b"PROG LOAD LOG" not in template):
        return 0
    out = ctypes.c_void_p()
    # A va_list can be walked once only, so the C library must find the room itself. As an
    # argument it is one pointer on x86-64, arm64, riscv64, s390x and ppc64.
    size: int = _c.vasprintf(ctypes.byref(out), template, arguments)
    if size >= 0 and out.value:
        text = ctypes.string_at(out.value, size).decode("utf-8", "replace")
        lines.append((level, text))
        _c.free(out)
    return max(size, 0)


# One callback for all libraries, and never freed: two paths may lead to one file, whose copy in
# memory then is one too and keeps a single callback.
_callback = _print_type(_print)


class Library:
    """One loaded libbpf; see :func:`library`."""

    def __init__(self, path: str) -> None:
        try:
            self._dll = ctypes.CDLL(path, use_errno=True)
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(self._dll, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise LibbpfError(
                f"cannot use {path} as libbpf 1.x: {error}; install libbpf1", errno_codes.ELIBACC
            ) from error
        self.path = path
        self.version: str = self._dll.libbpf_version_string().decode()
        if self._dll.libbpf_major_version() != 1:
            raise LibbpfError(f"{path} is libbpf {self.version}, not 1.x", errno_codes.ELIBBAD)
        self._dll.libbpf_set_print(ctypes.cast(_callback, _POINTER))

    @contextmanager
    def captured(self) -> Iterator[list[tuple[int, str]]]:
        """Level and text of what libbpf prints in this thread meanwhile (calls do not nest)."""
        lines: list[tuple[int, str]] = []
        _sink.lines = lines
        try:
            yield lines
        finally:
            _sink.lines = None

    def call(self, name: str, *arguments: object) -> Any:
        """Call a function that does not report errors."""
        return getattr(self._dll, name)(*arguments)

    def text(self, name: str, handle: int) -> str:
        """Call a function that gives a string (empty for NULL)."""
        found: bytes | None = self.call(name, handle)
        return (found or b"").decode("utf-8", "replace")

    def check(self, subject: str, name: str, *arguments: object) -> tuple[Any, str]:
        """Call a function that may fail: its result and what libbpf printed, or LibbpfError.

        A negative number is an error (``-errno``), and so is NULL, with ``errno``.
        """
        with self.captured() as lines:
            ctypes.set_errno(0)
            result = self.call(name, *arguments)
            number = ctypes.get_errno()
        log = "".join(text for _, text in lines)
        if result is None or result < 0:
            number = number if result is None else -result
            warnings = "".join(text for level, text in lines if level == _WARN)
            raise LibbpfError(f"{subject}: {self._reason(warnings, number, name)}", number, log)
        return result, log

    def _reason(self, log: str, number: int, function: str) -> str:
        buffer = ctypes.create_string_buffer(128)
        self._dll.libbpf_strerror(number, buffer, len(buffer))
        text = buffer.value.decode("utf-8", "replace")
        verifier = condense((programs_logs(log) or [""])[-1])
        parts = [first_complaint(log) or f"{function} failed", verifier]
        said = ": ".join(part for part in parts if part)
        return said if text in said else f"{said} ({text})"


@functools.cache
def library(path: str = DEFAULT_LIBRARY) -> Library:
    """The libbpf at ``path`` (a file, or a name for the dynamic linker). Raises LibbpfError."""
    return Library(path)
