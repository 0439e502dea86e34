"""The same input and options give the same bytes: in any process, order, and with any hash seed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bpfchain.transform.errors import BpfchainError
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from support.mutate import CORPUS

ROOT = Path(__file__).parents[2]
OPTIONS: tuple[dict[str, Any], ...] = (
    {"strategy": "auto"},
    {"strategy": "inline"},
    {"strategy": "subprog"},
    {"redirect": "1", "saved": "0,1"},
    {"redirect": "0..1", "success": "any", "strategy": "subprog", "saved": "1"},
    {"pin": True, "saved": "1"},
    {"saved_code": "map", "redirect": "1", "allow": frozenset({"nested-runs"})},
    {"last": True, "saved": "0"},
    {"slots_map": "other_slots"},
)


def digests(reverse: bool) -> dict[str, str]:
    """What becomes of every object with every choice of options: a digest, or the error."""
    work = [
        (path, number)
        for path in sorted(CORPUS.glob("e[lb]/*.o"))
        for number in range(len(OPTIONS))
    ]
    found = {}
    for path, number in reversed(work) if reverse else work:
        request = Request(index=2, **OPTIONS[number])
        try:
            patched = transform_object(path.read_bytes(), request)
            told = repr((patched.entries, patched.maps, patched.needs, patched.redirects, patched.why,
                         patched.warnings, patched.before, patched.after))  # fmt: skip
            result = hashlib.sha256(patched.data + told.encode()).hexdigest()
        except BpfchainError as error:
            result = f"{error.kind}: {error.message} ({error.hint})"
        found[f"{path.parent.name}/{path.stem} {number}"] = result
    return found


def test_hash_seed_and_order_change_nothing() -> None:
    code = 'import json, sys; sys.path[:0] = {paths!r}; import importlib.util as u; s = u.spec_from_file_location("same", {file!r}); '
    code += "t = u.module_from_spec(s); s.loader.exec_module(t); "
    code += "print(json.dumps(t.digests({reverse})))"
    paths = [str(ROOT / folder) for folder in ("tests", "transform")]
    running = []
    for seed, reverse in (("0", False), ("1", True), ("4242", False)):
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", code.format(paths=paths, file=__file__, reverse=reverse)],
                env=os.environ | {"PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    outputs = [json.loads(process.communicate()[0]) for process in running]
    assert len(outputs[0]) >= 180 * len(OPTIONS)
    objects = [value for value in outputs[0].values() if " " not in value]
    assert len(objects) > len(outputs[0]) // 2, "most were refused: little was compared"
    for other in outputs[1:]:
        for key, value in outputs[0].items():
            assert other[key] == value, key


def test_the_options_make_a_difference() -> None:
    """Else the comparison above would compare nothing."""
    data = (CORPUS / "el" / "filter.o").read_bytes()
    made = set()
    for options in OPTIONS[1:]:
        made.add(transform_object(data, Request(index=2, **options)).data)
    assert len(made) == len(OPTIONS) - 1


def test_input_is_not_changed() -> None:
    data = (CORPUS / "el" / "filter.o").read_bytes()
    kept = bytes(bytearray(data))
    transform_object(data, Request(index=2))
    assert data == kept
