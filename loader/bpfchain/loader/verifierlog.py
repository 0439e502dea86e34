"""What of a verifier log or of libbpf's messages is worth saying in one line."""

from __future__ import annotations

import re

_BLOCK = re.compile(r"-- BEGIN PROG LOAD LOG --\n(.*?)-- END PROG LOAD LOG --", re.DOTALL)
_STATISTICS = re.compile(
    r"processed \d+ insns|verification time |stack depth |mark_precise|last_idx |regs=|"
    r"func#\d+ @|Live regs before insn|max_states_per_insn|\(truncated"
)
_INSTRUCTION = re.compile(r"(?:from \d+ to \d+.*?: )?(\d+): \(([0-9a-f]{2})\) ([^;]*)")
_REGISTERS = re.compile(r"(from \d+ to )?\d+: ?(\(|R\d|frame\d)|^\s*R\d+(_w)?=")


def programs_logs(messages: str) -> list[str]:
    """The verifier logs inside what libbpf said, in the order of the programs' loading."""
    return _BLOCK.findall(messages)


def condense(log: str) -> str:
    """The reason in a verifier log, with the instruction and source line that it is about.

    ``log`` is the kernel's text. The kernel writes the reason behind the last instruction that it
    looked at, and statistics behind the reason. Empty if the log holds nothing of the kind.
    """
    lines = [line.strip() for line in log.splitlines()]
    lines = [line for line in lines if line and not _STATISTICS.match(line)]
    reasons: list[str] = []
    while lines and not _REGISTERS.match(lines[-1]) and not lines[-1].startswith(";"):
        reasons.insert(0, lines.pop())
    # A reason of many lines is a dump; its first line names the fault.
    reason = reasons[0] if reasons else ""
    if not reason:
        return ""
    instruction = source = ""
    for line in reversed(lines):
        if not instruction and (found := _INSTRUCTION.match(line)):
            instruction = f"instruction {found[1]} ({found[3].strip()})"
        elif instruction and line.startswith(";"):
            source = line.removeprefix(";").split(" @ ")[-1].strip()
            break
    where = ", ".join(part for part in (instruction, source) if part)
    return f"{where}: {reason}" if where else reason


def first_complaint(messages: str) -> str:
    """The first line of libbpf's messages that is not part of a verifier log; empty if none."""
    for said in _BLOCK.sub("", messages).splitlines():
        line = said.removeprefix("libbpf: ").strip()
        # What is left of a line that announced a log ends in the colon behind the program's name.
        if line and not line.endswith(":"):
            return line
    return ""
