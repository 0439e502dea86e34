"""``chain.toml``: what it takes, what it refuses and where, and the requests that follow from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfchain.transform.chainfile import (
    ChainFile,
    ChainFileError,
    LinkEntry,
    plan,
    read_chain,
)
from bpfchain.transform.codes import CodeSet
from bpfchain.transform.errors import HostError
from bpfchain.transform.manifest import Share, SharedMap
from bpfchain.transform.policy import HOOKS, Hook, hook_named
from bpfchain.transform.request import Request
from support.manifest_strategies import code_sets

XDP = hook_named("xdp")

WHOLE = """
name = "edge"
hook = "xdp"
extensible = true
slots_map = "edge_slots"
saved_code = "slots"
pin = true

[[link]]
object = "filter.o"
program = "filter"
success = "PASS,TX"
redirect = ["REDIRECT"]
strategy = "inline"

[[link]]
object = "../metrics.o"
success = ["pass", 3]
redirect = "TX"

[[link]]
object = "/usr/lib/bpf/log.o"
hook = "xdp"
success = "any"

[share]
counters = ["2:stats", "0:counters"]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "chain.toml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str) -> ChainFileError:
    with pytest.raises(ChainFileError) as caught:
        read_chain(write(folder, text))
    assert caught.value.exit_code == 3
    return caught.value


def chain_of(*links: dict[str, Any], **keys: Any) -> ChainFile:
    return ChainFile.from_dict(
        {"name": "edge", "link": [{"object": "x.o", **link} for link in links], **keys}
    )


def test_a_whole_file(tmp_path: Path) -> None:
    both = (SharedMap(index=0, map="counters"), SharedMap(index=2, map="stats"))
    assert read_chain(write(tmp_path, WHOLE)) == ChainFile(
        name="edge",
        hook="xdp",
        extensible=True,
        slots_map="edge_slots",
        saved_code="slots",
        pin=True,
        links=(
            LinkEntry(
                object="filter.o",
                program="filter",
                success="PASS,TX",
                redirect="REDIRECT",
                strategy="inline",
            ),
            LinkEntry(object="../metrics.o", success="pass,3", redirect="TX"),
            LinkEntry(object="/usr/lib/bpf/log.o", hook="xdp", success="any"),
        ),
        share=(Share(map="counters", links=both),),
    )


def test_the_least_file(tmp_path: Path) -> None:
    found = read_chain(write(tmp_path, 'name = "edge"\n[[link]]\nobject = "a.o"\n'))
    assert found == ChainFile(
        name="edge",
        links=(LinkEntry(object="a.o"),),
        hook=None,
        extensible=False,
        slots_map="bpfchain_slots",
        saved_code="slots",
        pin=False,
        share=(),
    )


def test_the_plan_knows_what_no_link_knows_alone(tmp_path: Path) -> None:
    chain = read_chain(write(tmp_path, WHOLE))
    requests = plan(
        chain, [XDP] * 3, kernel="6.1", arch="arm64", allow=frozenset({"redirect-hazard"})
    )
    common: dict[str, Any] = {
        "hook": "xdp",
        "pin": True,
        "slots_map": "edge_slots",
        "kernel": "6.1",
        "arch": "arm64",
        "allow": frozenset({"redirect-hazard"}),
    }
    assert requests == (
        Request(index=0, program="filter", success="PASS,TX", redirect="REDIRECT",
                strategy="inline", **common),
        Request(index=1, success="PASS,TX", redirect="TX", saved="REDIRECT", **common),
        Request(index=2, success="any", saved="TX,REDIRECT", **common),
    )  # fmt: skip


def test_the_highest_link_is_the_last_unless_the_chain_is_extensible() -> None:
    assert [request.last for request in plan(chain_of({}, {}), [XDP] * 2)] == [False, True]
    found = plan(chain_of({}, {}, extensible=True), [XDP] * 2)
    assert [request.last for request in found] == [False, False]


def test_what_is_not_said_is_left_to_the_hook() -> None:
    (request,) = plan(chain_of({}), [XDP])
    assert request == Request(index=0, last=True)


def test_saved_codes_add_up_in_both_modes() -> None:
    for mode in ("slots", "map"):
        chain = chain_of(
            {"redirect": "TX"}, {"redirect": [4]}, {"redirect": "TX"}, {}, saved_code=mode
        )
        found = plan(chain, [XDP] * 4)
        assert [request.saved for request in found] == [None, "TX", "TX,REDIRECT", "TX,REDIRECT"]
        assert {request.saved_code for request in found} == {mode}


@given(st.data(), st.sampled_from(HOOKS))
def test_codes_of_a_request_mean_what_the_file_said(data: st.DataObject, hook: Hook) -> None:
    success = data.draw(code_sets(hook))
    stateful = st.sampled_from([code.value for code in hook.codes if code.value in hook.legal])
    redirect = CodeSet.of(*data.draw(st.lists(stateful, max_size=3)))
    chain = chain_of(
        {"success": success.describe({}), "redirect": [str(code) for code in redirect]}, {}
    )
    first, second = plan(chain, [hook] * 2)
    assert first.success is not None
    assert first.redirect is not None
    assert CodeSet.parse(first.success, hook.names, what="") == success
    assert CodeSet.parse(first.redirect, hook.names, what="") == redirect
    assert CodeSet.parse(second.saved or "", hook.names, what="") == redirect


def test_33_links_fit_and_no_more(tmp_path: Path) -> None:
    head, link = 'name = "edge"\n', '[[link]]\nobject = "a.o"\n'
    chain = read_chain(write(tmp_path, head + 33 * link))
    assert [request.index for request in plan(chain, [XDP] * 33)] == list(range(33))
    assert refusal(tmp_path, head + 34 * link).message == (
        f"{tmp_path}/chain.toml: in 'link': a chain has 1 to 33 links, not 34"
    )


HEAD = 'name = "edge"\n'
LINK = '[[link]]\nobject = "a.o"\n'


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (LINK, "in 'name': is missing", None),
        (HEAD, "in 'link': is missing", None),
        (HEAD + "link = []", "in 'link': a chain has 1 to 33 links, not 0", None),
        (HEAD + "[link]", "in 'link': expected a list, found a table", None),
        (HEAD + "[[link]]", "in 'link[0].object': is missing", None),
        (HEAD + "link = [1]", "in 'link[0]': expected a table, found an integer", None),
        (
            HEAD + LINK + "[[links]]\n",
            "in 'links': no such key",
            "did you mean link?",
        ),
        (
            HEAD + "zzz = 1\n" + LINK,
            "in 'zzz': no such key",
            "the keys here: extensible, hook, link, name, pin, saved_code, share, slots_map",
        ),
        (HEAD + LINK + LINK + 'sucess = "any"', "in 'link[1].sucess': no such key",
         "did you mean success?"),
        (HEAD + LINK + "index = 0", "in 'link[0].index': no such key",
         "the keys here: hook, object, program, redirect, strategy, success"),
        ('name = ""\n' + LINK, "in 'name': expected a name of 1 to 64 characters without '/', found ''",
         None),
        ("name = 1979-05-27\n" + LINK, "in 'name': expected text, found a date or time", None),
        (HEAD + 'hook = "xpd"\n' + LINK, "in 'hook': no hook named 'xpd'", "did you mean xdp?"),
        (HEAD + LINK + 'hook = "xpd"', "in 'link[0].hook': no hook named 'xpd'", "did you mean xdp?"),
        (HEAD + "extensible = 1\n" + LINK, "in 'extensible': expected true or false, found an integer",
         None),
        (HEAD + 'slots_map = "a-b"\n' + LINK, "in 'slots_map': expected a map name: 1 to 15 letters, "
         "digits or '_', found 'a-b'", None),
        (HEAD + 'saved_code = "maps"\n' + LINK, "in 'saved_code': 'maps' is not one of slots, map",
         "did you mean map?"),
        (HEAD + LINK + 'strategy = "subprogram"', "in 'link[0].strategy': 'subprogram' is not one of auto, "
         "inline, subprog", "did you mean subprog?"),
        (HEAD + LINK + "success = 2", "in 'link[0].success': expected text, found an integer", None),
        (HEAD + LINK + "success = [2.5]", "in 'link[0].success[0]': expected a code's name or an integer",
         None),
        (HEAD + LINK + "success = [true]", "in 'link[0].success[0]': expected a code's name or an integer",
         None),
        (HEAD + LINK + 'success = ["PASS", "not:0"]', "in 'link[0].success[1]': 'not:0' is not one code",
         'write success = "not:0" for a whole set'),
        (HEAD + LINK + 'redirect = ["TX,PASS"]', "in 'link[0].redirect[0]': 'TX,PASS' is not one code",
         'write redirect = "TX,PASS" for a whole set'),
        (HEAD + LINK + 'redirect = [" "]', "in 'link[0].redirect[0]': '' is not one code", None),
        (HEAD + LINK + "[share]\nc = 1", "in 'share.c': expected a list, found an integer", None),
        (HEAD + LINK + '[share]\nc = ["0"]', "in 'share.c[0]': expected INDEX:MAP, found '0'", None),
        (HEAD + LINK + '[share]\nc = ["0:a", "1:a"]', "in 'share.c[1]': there is no link 1: the last is 0",
         None),
        (HEAD + LINK + '[share]\nc = ["0:a"]', "in 'share.c': a map is shared by at least two links", None),
        (HEAD + LINK + '[share]\nc = ["0:a", "0:a"]', "in 'share.c[1]': 0:a is already in c", None),
        (HEAD + LINK + LINK + '[share]\nb = ["0:a", "1:a"]\nc = ["0:b", "1:a"]',
         "in 'share.c[1]': 1:a is already in b", None),
        (HEAD + LINK + LINK + '[share]\nc = ["0:bpfchain_slots", "1:a"]',
         "in 'share.c': bpfchain_slots is the chain's own map",
         "links of a chain share it anyway: leave it out"),
        (HEAD + 'name = "again"\n' + LINK, "is not TOML: Cannot overwrite a value (at line 2, column 15)", None),
        (HEAD + "link = " + "[" * 5000, "is not TOML: nested too deeply", None),
    ],
)  # fmt: skip
def test_an_error_says_where_in_the_file(
    tmp_path: Path, text: str, message: str, hint: str | None
) -> None:
    error = refusal(tmp_path, text)
    assert (error.message, error.hint) == (f"{tmp_path}/chain.toml: {message}", hint)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        read_chain(tmp_path / "none.toml")
    assert caught.value.message == (
        f"{tmp_path}/none.toml: cannot read the chain file: No such file or directory"
    )
    (tmp_path / "bytes.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(ChainFileError) as refused:
        read_chain(tmp_path / "bytes.toml")
    assert refused.value.message == f"{tmp_path}/bytes.toml: is not TOML: byte 8 is not UTF-8"
    (tmp_path / "large.toml").write_bytes(b"#" * (1 << 21))
    with pytest.raises(ChainFileError) as refused:
        read_chain(tmp_path / "large.toml")
    assert refused.value.message == f"{tmp_path}/large.toml: is larger than 1 MiB: not a chain file"


@pytest.mark.parametrize(
    ("link", "message", "hint"),
    [
        ({"success": "PAS"}, "in 'link[1].success': no code named 'PAS'", "did you mean PASS?"),
        ({"success": [9]}, "in 'link[1].success': 9 is no code of xdp",
         "its codes: ABORTED,DROP,PASS,TX,REDIRECT"),
        ({"redirect": "5..7"}, "in 'link[1].redirect': 5 is no code of xdp",
         "its codes: ABORTED,DROP,PASS,TX,REDIRECT"),
        ({"redirect": "any"},
         "in 'link[1].redirect': takes a finite list of codes, not any or a complement", None),
        ({"redirect": "not:DROP"},
         "in 'link[1].redirect': takes a finite list of codes, not any or a complement", None),
    ],
)  # fmt: skip
def test_codes_that_the_hook_does_not_have(
    link: dict[str, Any], message: str, hint: str | None
) -> None:
    with pytest.raises(ChainFileError) as caught:
        plan(chain_of({}, link), [XDP] * 2)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_code_without_a_state_cannot_be_saved_in_slots() -> None:
    tc = hook_named("tc")
    with pytest.raises(ChainFileError) as caught:
        plan(chain_of({"redirect": [9]}), [tc])
    assert caught.value.message == "in 'link[0]': tc: 9 cannot be a saved code in slots mode"
    (request,) = plan(chain_of({"redirect": [9]}, saved_code="map"), [tc])
    assert request.redirect == "9"


def test_the_links_have_one_hook() -> None:
    tcx = hook_named("tcx/ingress")
    with pytest.raises(ChainFileError) as caught:
        plan(chain_of({}, {}), [XDP, tcx])
    assert caught.value.message == "link 1 (x.o) is for hook tcx/ingress, link 0 (x.o) for xdp"
    assert caught.value.hint == "all links of a chain have one hook"
    with pytest.raises(ChainFileError) as caught:
        plan(chain_of({}, hook="xdp"), [tcx])
    assert caught.value.message == "link 0 (x.o) is for hook tcx/ingress, the chain for xdp"
    with pytest.raises(ValueError, match=r"^1 hooks for 2 links$"):
        plan(chain_of({}, {}), [XDP])
