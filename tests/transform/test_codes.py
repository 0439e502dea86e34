"""Sets of codes: the algebra against Python's own sets, and every notation read back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfchain.transform.codes import CODE_MAX, CODE_MIN, CodeSet, signed32
from bpfchain.transform.errors import UsageError

_EDGES = (CODE_MIN, CODE_MIN + 1, CODE_MIN + 2, -2, -1, 0, 1, 2, 3, CODE_MAX - 1, CODE_MAX)
_NAMES = {"UNSPEC": -1, "OK": 0, "SHOT": 2, "PIPE": 3, "LONGEST_NAME": 4, "REDIRECT": 7}

codes = st.one_of(st.sampled_from(_EDGES), st.integers(-20, 20), st.integers(CODE_MIN, CODE_MAX))
intervals = st.tuples(codes, codes).map(lambda pair: (min(pair), max(pair)))
ranges = st.lists(intervals, max_size=6)
sets = ranges.map(CodeSet.from_ranges)


def _probes(*lists: list[tuple[int, int]] | tuple[tuple[int, int], ...]) -> set[int]:
    """Every edge of the intervals, and what lies beside it."""
    near = {edge + d for items in lists for pair in items for edge in pair for d in (-1, 0, 1)}
    return {code for code in near | set(_EDGES) if CODE_MIN <= code <= CODE_MAX}


def _in(items: list[tuple[int, int]], code: int) -> bool:
    return any(low <= code <= high for low, high in items)


@given(ranges)
def test_from_ranges_is_the_union_in_its_shortest_form(given_ranges: list[tuple[int, int]]) -> None:
    made = CodeSet.from_ranges(given_ranges)
    for code in _probes(given_ranges):
        assert (code in made) == _in(given_ranges, code)
    for (_, before), (after, _) in zip(made.ranges, made.ranges[1:], strict=False):
        assert before + 1 < after, "two intervals that touch are one"


@given(ranges, ranges)
def test_algebra(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    left, right = CodeSet.from_ranges(a), CodeSet.from_ranges(b)
    for code in _probes(a, b):
        in_a, in_b = _in(a, code), _in(b, code)
        assert (code in left.complement()) == (not in_a)
        assert (code in left.union(right)) == (in_a or in_b)
        assert (code in left.difference(right)) == (in_a and not in_b)
    assert left.complement().complement() == left
    assert len(left) + len(left.complement()) == 1 << 32
    assert left.union(right) == right.union(left)
    assert left.difference(right).union(right) == left.union(right)
    assert left.union(left.complement()) == CodeSet.any()
    assert not left.difference(left)


@given(st.lists(st.integers(-50, 50), max_size=12))
def test_small_sets_are_sets(values: list[int]) -> None:
    made = CodeSet.of(*values)
    assert list(made) == sorted(set(values))
    assert len(made) == len(set(values))
    assert bool(made) == bool(values)
    assert CodeSet.excluding(*values) == made.complement()


@given(sets)
def test_described_and_parsed_back(made: CodeSet) -> None:
    for names in ({}, _NAMES):
        assert CodeSet.parse(made.describe(names), names, what="--success") == made


@given(sets)
def test_json_and_back(made: CodeSet) -> None:
    assert CodeSet.from_json(json.loads(json.dumps(made.to_json()))) == made


@given(st.integers(-(1 << 70), 1 << 70))
def test_signed32_is_the_low_half(value: int) -> None:
    low = signed32(value)
    assert CODE_MIN <= low <= CODE_MAX
    assert (low - value) % (1 << 32) == 0


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("PIPE", ((3, 3),)),
        ("pipe, 5..7", ((3, 3), (5, 7))),
        ("shot,Redirect", ((2, 2), (7, 7))),
        ("-1", ((-1, -1),)),
        ("-3..-1", ((-3, -1),)),
        ("UNSPEC..PIPE", ((-1, 3),)),
        ("0xffffffff", ((-1, -1),)),
        ("4294967295", ((-1, -1),)),
        ("0x80000000", ((CODE_MIN, CODE_MIN),)),
        ("any", ((CODE_MIN, CODE_MAX),)),
        (" ANY ", ((CODE_MIN, CODE_MAX),)),
        ("none", ()),
        ("", ()),
        ("not:OK", ((CODE_MIN, -1), (1, CODE_MAX))),
        ("not:SHOT,7", ((CODE_MIN, 1), (3, 6), (8, CODE_MAX))),
        ("3,4,5", ((3, 5),)),
    ],
)
def test_notation(text: str, ranges: tuple[tuple[int, int], ...]) -> None:
    assert CodeSet.parse(text, _NAMES, what="--success").ranges == ranges


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (CodeSet(), "none"),
        (CodeSet.any(), "any"),
        (CodeSet.of(2), "SHOT"),
        (CodeSet.of(2, 3), "SHOT,PIPE"),
        (CodeSet.of(-1, 0, 100), "UNSPEC,OK,100"),
        (CodeSet.excluding(0), "not:OK"),
        (CodeSet.excluding(2, 7), "not:SHOT,REDIRECT"),
        (CodeSet(((10, 1000),)), "10..1000"),
    ],
)
def test_described(made: CodeSet, text: str) -> None:
    assert made.describe(_NAMES) == text


@pytest.mark.parametrize(
    ("made", "value"),
    [
        (CodeSet(), []),
        (CodeSet.any(), {"any": True}),
        (CodeSet.excluding(0), {"not": [0]}),
        (CodeSet.of(-1, 3), [-1, 3]),
        (CodeSet(((5, 9),)), [[5, 9]]),
    ],
)
def test_json_form(made: CodeSet, value: object) -> None:
    assert made.to_json() == value


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("PIPPE", "--success: no code named 'PIPPE'", "did you mean PIPE?"),
        (
            "qqqq", "--success: no code named 'qqqq'",
            "the hook's codes: UNSPEC, OK, SHOT, PIPE, LONGEST_NAME, REDIRECT",
        ),
        ("5..3", "--success: the range '5..3' ends before it starts", None),
        ("4294967296", "--success: 4294967296 does not fit in 32 bits", None),
        ("-2147483649", "--success: -2147483649 does not fit in 32 bits", None),
    ],
)  # fmt: skip
def test_errors(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        CodeSet.parse(text, _NAMES, what="--success")
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize(
    "text", ["1,", ",", "not:", "1..", "..", "1...2", "not:any", "1;2", "0x", "1.5"]
)
def test_malformed_lists_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        CodeSet.parse(text, _NAMES, what="--success")


@pytest.mark.parametrize(
    "value",
    [None, 3, "any", {"any": False}, {"any": 1, "not": []}, {"not": 3}, {}, [True], ["2"], [1.0],
     [[1, 2, 3]], [[2, 1]], [1 << 31], [-(1 << 31) - 1], [None], [[1, "2"]], [[]]],
)  # fmt: skip
def test_what_is_no_set_in_json(value: object) -> None:
    with pytest.raises(ValueError, match=r"code|range"):
        CodeSet.from_json(value)


@pytest.mark.parametrize(
    "ranges",
    [((2, 1),), ((1, 2), (3, 4)), ((5, 6), (1, 2)), ((0, 1 << 31),), ((-(1 << 31) - 1, 0),)],
)
def test_intervals_that_are_not_in_form(ranges: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="intervals"):
        CodeSet(ranges)
