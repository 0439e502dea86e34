"""Command: let atheris look for objects that end the transformer badly (coverage-guided).

    python tests/fuzz/atheris_transform.py CORPUS_DIR -max_total_time=120 -rss_limit_mb=512

``pip install atheris``. The first run fills an empty CORPUS_DIR with the small objects of
corpus/programs. The last byte of an input chooses the options. All arguments are libFuzzer's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "transform")]

with atheris.instrument_imports(include=["bpfchain"]):
    from bpfchain.transform.errors import BpfchainError
    from bpfchain.transform.request import Request
    from bpfchain.transform.transform import transform_object

LARGEST = 8192
_REQUESTS = (
    Request(index=1),
    Request(index=1, strategy="inline", hook="xdp", redirect="4", saved="4"),
    Request(index=1, strategy="subprog"),
    Request(index=0, pin=True),
    Request(index=2, saved_code="map", redirect="1", allow=frozenset({"nested-runs"})),
    Request(index=2, last=True),
)


def one(data: bytes) -> None:
    """One input; what escapes from here is a finding."""
    request = _REQUESTS[data[-1] % len(_REQUESTS)] if data else _REQUESTS[0]
    try:
        transform_object(data[:-1], request)
    except BpfchainError as error:
        if error.kind not in {"refused", "usage"}:
            raise
        if not error.message.isprintable() or len(error.message) > 300:
            raise ValueError(f"not one short line: {error.message!r}") from error


def main() -> None:
    folders = [Path(a) for a in sys.argv[1:] if not a.startswith("-")]
    if folders and folders[0].is_dir() and not any(folders[0].iterdir()):
        for path in sorted((ROOT / "corpus" / "programs").glob("e[lb]/*.o")):
            if path.stat().st_size < LARGEST:
                (folders[0] / f"{path.parent.name}-{path.stem}").write_bytes(
                    path.read_bytes() + b"\0"
                )
    atheris.Setup([sys.argv[0], f"-max_len={LARGEST}", *sys.argv[1:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
