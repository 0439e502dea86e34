"""Hypothesis strategies for manifests: any that is valid."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from bpfchain.transform.codes import CODE_MAX, CODE_MIN, CodeSet
from bpfchain.transform.link import Link
from bpfchain.transform.manifest import LinkRecord, Manifest, Share, SharedMap
from bpfchain.transform.manifest_link import DEBUG_KINDS, STRATEGIES
from bpfchain.transform.manifest_proof import (
    RESULTS,
    Corpus,
    Coverage,
    DynamicProof,
    StaticProof,
    Tool,
    Verified,
)
from bpfchain.transform.policy import HOOKS, LINKS_MAX, Hook
from bpfchain.transform.request import ALLOWANCES, Cost, MapUse, Need

from .manifests import entries_of

LINES = st.text(
    st.characters(min_codepoint=0x20, exclude_characters="\x7f", exclude_categories=["Cs"]),
    max_size=12,
)
SOME_LINES = LINES.filter(bool)
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
U32 = st.integers(0, (1 << 32) - 1)
COUNTS = st.integers(0, (1 << 31) - 1)
CODES = st.integers(CODE_MIN, CODE_MAX) | st.integers(-3, 12)
TOOLS = st.builds(Tool, name=SOME_LINES, version=SOME_LINES)
MORE = st.dictionaries(
    SOME_LINES.map(lambda key: "x-" + key),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | LINES,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(LINES, inner, max_size=2),
        max_leaves=4,
    ),
    max_size=2,
)  # fmt: skip
MAP_USES = st.builds(MapUse, SOME_LINES, *[st.none() | U32] * 5)
NEEDS = st.builds(
    Need,
    SOME_LINES,
    LINES,
    st.dictionaries(SOME_LINES, st.none() | st.sampled_from(["5.10", "6.0"]), max_size=3).map(
        lambda kernels: tuple(sorted(kernels.items()))
    ),
)
COVERAGES = st.tuples(COUNTS, COUNTS).map(lambda two: Coverage(edges=min(two), of=max(two)))
PROOFS = st.builds(
    Verified,
    tool=TOOLS,
    static=st.builds(
        StaticProof,
        result=st.sampled_from(RESULTS),
        readers=st.lists(LINES, max_size=2).map(tuple),
        more=MORE,
    ),
    dynamic=st.builds(
        DynamicProof,
        result=st.sampled_from(RESULTS),
        engines=st.lists(LINES, max_size=2).map(tuple),
        corpora=st.lists(st.builds(Corpus, name=SOME_LINES, sha256=DIGESTS), max_size=2).map(tuple),
        packets=COUNTS,
        coverage=st.none() | COVERAGES,
        more=MORE,
    ),
    more=MORE,
)


def _tuples(items: st.SearchStrategy[Any], size: int = 3) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, max_size=size).map(tuple)


@st.composite
def code_sets(draw: st.DrawFn, hook: Hook) -> CodeSet:
    """A set that S of that hook may be."""
    kind = draw(st.sampled_from(["any", "not", "ranges", "default"]))
    if kind == "any":
        return CodeSet.any()
    if kind == "default":
        return hook.success
    if hook.legal != CodeSet.any():
        codes = CodeSet.of(*draw(st.lists(st.sampled_from(list(hook.legal)), max_size=4)))
    else:
        pairs = draw(st.lists(st.tuples(CODES, CODES), max_size=3))
        codes = CodeSet.from_ranges((min(pair), max(pair)) for pair in pairs)
    return codes.complement() if kind == "not" else codes


@st.composite
def links(draw: st.DrawFn, hook: Hook, index: int, mode: str, slots_map: str) -> Link:
    """Any link of such a chain."""
    known = st.sampled_from([code.value for code in hook.codes if code.value in hook.legal])
    finite = st.lists(known, max_size=3, unique=True)
    return Link(
        hook=hook,
        index=index,
        success=draw(code_sets(hook)),
        redirect=CodeSet.of(*draw(finite)),
        saved=tuple(draw(finite)) if index else (),
        mode=mode,
        last=draw(st.booleans()),
        slots_map=slots_map,
    )


@st.composite
def records(draw: st.DrawFn, link: Link) -> LinkRecord:
    """Any record of that link."""
    name = draw(SOME_LINES)
    parts = SOME_LINES.filter(lambda part: not part.startswith("/") and not part.endswith("/"))
    return LinkRecord(
        link=link,
        object=draw(parts),
        input_file=draw(st.none() | parts),
        input_sha256=draw(DIGESTS),
        output_sha256=draw(DIGESTS),
        program=name,
        section=draw(SOME_LINES),
        entries=entries_of(link, name),
        strategy=draw(st.sampled_from(STRATEGIES)),
        why=draw(LINES),
        keep=draw(st.none() | SOME_LINES),
        pinned=draw(st.booleans()),
        frags=draw(st.booleans()),
        before=Cost(draw(COUNTS), draw(st.none() | COUNTS)),
        after=Cost(draw(COUNTS), draw(st.none() | COUNTS)),
        debug=draw(st.sampled_from(DEBUG_KINDS)),
        license=draw(LINES),
        maps=draw(_tuples(MAP_USES)),
        needs=draw(_tuples(NEEDS, 2)),
        redirects=draw(_tuples(LINES)),
        tail_calls=draw(st.booleans()),
        allowed=draw(_tuples(st.sampled_from(ALLOWANCES))),
        warnings=draw(_tuples(LINES)),
        verified=draw(st.none() | PROOFS),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Any valid manifest, also with gaps between its indexes."""
    hook = draw(st.sampled_from(HOOKS))
    mode = draw(st.sampled_from(["slots", "map"]))
    slots_map = draw(st.sampled_from(["bpfchain_slots", "b"]))
    indexes = sorted(draw(st.sets(st.integers(0, LINKS_MAX - 1), max_size=3)))
    members = draw(
        st.sets(
            st.builds(SharedMap, index=st.integers(0, LINKS_MAX - 1), map=SOME_LINES),
            min_size=2,
            max_size=3,
        )
    )
    share = Share(map=draw(SOME_LINES), links=tuple(members)).ordered()
    return Manifest(
        chain=draw(SOME_LINES.filter(lambda name: "/" not in name)),
        hook=hook,
        saved_code=mode,
        slots_map=slots_map,
        extensible=draw(st.booleans()),
        links=tuple(draw(records(draw(links(hook, index, mode, slots_map)))) for index in indexes),
        share=(share,) if draw(st.booleans()) else (),
        tool=draw(TOOLS),
    )
