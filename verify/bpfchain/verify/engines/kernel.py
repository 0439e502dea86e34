"""The kernel as an engine: objects loaded by libbpf, programs run by BPF_PROG_TEST_RUN (root).

Where this engine and uBPF differ, the kernel is right. It cannot decide what lies on the stack, and
it tells neither redirect targets nor printk nor perf records.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import ProgType
from bpfchain.transform.errors import HostError
from bpfchain.transform.policy import Hook

from .hooks import has_packets
from .kernel_session import KernelSession
from .protocol import Setup

__all__ = ["KernelEngine"]

_RUN = frozenset(
    {
        ProgType.SOCKET_FILTER, ProgType.SCHED_CLS, ProgType.SCHED_ACT, ProgType.XDP,
        ProgType.CGROUP_SKB, ProgType.LWT_IN, ProgType.LWT_OUT, ProgType.LWT_XMIT,
        ProgType.FLOW_DISSECTOR, ProgType.RAW_TRACEPOINT, ProgType.SK_LOOKUP, ProgType.NETFILTER,
    }
)  # fmt: skip
"""Types whose ``bpf_prog_ops`` have a test run that starts without a socket or a task of its own
(measured, design-trials 17; lwt_seg6local has one and wants a state that it does not set up)."""

_NOT_RUN = frozenset({"xdp/devmap", "xdp/cpumap"})
"""``bpf_prog_test_run_xdp`` refuses these attach types (EINVAL)."""


class KernelEngine:
    """This machine's kernel."""

    name = "kernel"
    fills = False
    deterministic = False

    def refuses(self, hook: Hook) -> str | None:
        """Why no program of that hook can be run; None where they can."""
        if hook.prog_type_id in _RUN and hook.name not in _NOT_RUN:
            return None
        return f"the kernel runs no {hook.name} programs on request"

    def blind(self, hook: Hook) -> Mapping[str, str]:
        """Dimensions that the test run does not tell."""
        blind = {"events": "the kernel's test run tells ring buffer records only: "
                           "no redirect targets, printk or perf records"}  # fmt: skip
        if not has_packets(hook):
            blind |= dict.fromkeys(("packet", "context"), "the kernel's test run gives none back")
        return blind

    def open(self, setup: Setup) -> KernelSession:
        """Load. Raises LoadError, CannotRunError, HostError (no right to load at all)."""
        if os.geteuid() != 0:
            raise HostError(
                "--engine kernel needs root: it loads the programs", "use --engine ubpf"
            )
        try:
            return KernelSession(setup)
        except BpfError as error:
            if error.errno in (errno.EPERM, errno.ENOSYS):
                raise HostError(f"--engine kernel: {error}", "use --engine ubpf") from None
            raise
