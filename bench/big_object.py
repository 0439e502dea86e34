"""Command: write a large BPF object (programs, data, DWARF) for the speed measurements.

    python bench/big_object.py OUT.o [--mb 4]

For 4 MB: 100 XDP programs of 1,000 instructions each, in sections of their own; the rest is BTF with
line info, DWARF and read-only data. Smaller sizes have all of it in proportion. Needs clang; the
same compiler gives the same bytes.

    python bench/big_object.py --time

prints for 1, 2 and 4 MB the CPU seconds of ``transform_object`` (median of 5).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS, INSTRUCTIONS = 100, 1000
"""Of the object of 4 MB."""

_HEAD = """\
#define SEC(name) __attribute__((section(name), used))
typedef unsigned int u32;
typedef unsigned long long u64;
struct xdp_md { u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex; };
struct { int (*type)[2]; u32 *key; u64 *value; int (*max_entries)[64]; } counts SEC(".maps");
static void *(*lookup)(void *map, const void *key) = (void *)1;
char LICENSE[] SEC("license") = "GPL";
"""
# one step is 10 instructions: two loads from the context, arithmetic, a store to the map's value
_STEP = "\tacc += ctx->data ^ {n}; acc *= {odd}; acc ^= acc >> {shift}; *value = acc + ctx->ingress_ifindex;\n"


def source(megabytes: float, data: int = 0) -> str:
    """C of an object of about that size; ``data`` bytes of read-only data."""
    count = max(round(PROGRAMS * megabytes / 4), 1)
    parts = [_HEAD]
    if data:
        parts.append(f"const volatile char filling[{data}] = {{1, 2, 3}};\n")
    for number in range(count):
        parts.append(
            f'SEC("xdp/p{number}") int program_{number}(struct xdp_md *ctx)\n{{\n\tu32 key = {number % 64};\n'
            "\tu64 acc = ctx->rx_queue_index;\n\tvolatile u64 *value = lookup(&counts, &key);\n"
            "\tif (!value)\n\t\treturn 1;\n"
        )
        for step in range(INSTRUCTIONS // 10):
            n = number * 1009 + step * 31 + 7
            parts.append(_STEP.format(n=n, odd=n * 2 + 1, shift=step % 31 + 1))
        parts.append("\treturn acc & 1 ? 2 : 1;\n}\n")
    return "".join(parts)


def big_object(megabytes: float) -> bytes:
    """The object. Raises subprocess.CalledProcessError where clang does not compile it."""
    wanted = int(megabytes * (1 << 20))
    made = _compile(source(megabytes))
    return _compile(source(megabytes, wanted - len(made))) if len(made) < wanted else made


def _compile(text: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "big.c").write_text(text)
        subprocess.run(
            ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-c", "big.c", "-o", "big.o"],
            cwd=folder, check=True,
        )  # fmt: skip
        return Path(folder, "big.o").read_bytes()


def measure(data: bytes, runs: int = 5, strategy: str = "auto") -> float:
    """Median CPU seconds of ``transform_object`` on one program of the object."""
    sys.path[:0] = [str(ROOT / "transform")]
    from bpfchain.transform.request import Request  # noqa: PLC0415 - after the path
    from bpfchain.transform.transform import transform_object  # noqa: PLC0415

    times = []
    for _ in range(runs):
        start = time.process_time()
        transform_object(data, Request(index=1, program="program_3", strategy=strategy))
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a large BPF object.")
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--mb", type=float, default=4)
    parser.add_argument(
        "--time", action="store_true", help="time the transformation of 1, 2 and 4 MB"
    )
    options = parser.parse_args()
    if options.out is not None:
        options.out.write_bytes(big_object(options.mb))
    if options.time:
        for megabytes in (1, 2, 4):
            data = big_object(megabytes)
            inline, subprog = (measure(data, strategy=s) for s in ("inline", "subprog"))
            print(f"{len(data) / (1 << 20):.2f} MB: inline {inline:.3f} s, subprog {subprog:.3f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
