"""``chain.toml``, the file that people write: which programs make a chain, in which order.

A link's place in the list is its index. ``plan`` turns the file into one request a link, with what
no link knows alone: the codes that may be saved before it, and whether it is the last.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .codes import CodeSet
from .document import Reader
from .errors import HostError, RefusedError, UsageError
from .link import SLOTS_MAP, Link, saved_map_name
from .manifest import CHAIN_NAME, MAP_NAME, MODES, Share, SharedMap
from .manifest_codes import at_key
from .policy import LINKS_MAX, Hook, hook_named
from .request import Request

__all__ = ["ChainFile", "ChainFileError", "LinkEntry", "plan", "read_chain"]

REQUESTED = ("auto", "inline", "subprog")
_SIZE_MAX = 1 << 20
_MEMBER = re.compile(r"([0-9]{1,2}):([^\x00-\x1f\x7f]+)")


class ChainFileError(RefusedError):
    """A chain file says something that makes no sense (exit 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEntry:
    """One ``[[link]]``.

    ``object`` is a path, relative to the chain file's folder; code lists are text as on the command
    line, None the hook's default; ``hook`` is the link's own, else the chain's.
    """

    object: str
    program: str | None = None
    success: str | None = None
    redirect: str | None = None
    strategy: str = "auto"
    hook: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainFile:
    """A chain file as read. ``hook`` None: the links' sections tell it."""

    name: str
    links: tuple[LinkEntry, ...]
    hook: str | None = None
    extensible: bool = False
    slots_map: str = SLOTS_MAP
    saved_code: str = "slots"
    pin: bool = False
    share: tuple[Share, ...] = ()

    @classmethod
    def from_dict(cls, value: Any) -> ChainFile:
        """From what a TOML parser returns. Raises ChainFileError with the path inside the file."""
        r = Reader(value, ChainFileError, thing="a table")
        links = tuple(_read_link(item) for item in r.objects("link"))
        if not 1 <= len(links) <= LINKS_MAX:
            r.fail(f"a chain has 1 to {LINKS_MAX} links, not {len(links)}", at="link")
        chain = cls(
            name=r.text("name", CHAIN_NAME),
            links=links,
            hook=_hook_name(r),
            extensible=r.has("extensible") and r.flag("extensible"),
            slots_map=r.text("slots_map", MAP_NAME) if r.has("slots_map") else SLOTS_MAP,
            saved_code=r.choice("saved_code", MODES) if r.has("saved_code") else MODES[0],
            pin=r.has("pin") and r.flag("pin"),
            share=_read_share(r.nested("share"), len(links)) if r.has("share") else (),
        )
        r.finish()
        own = (chain.slots_map, saved_map_name(chain.slots_map))
        for share in chain.share:
            for member in share.links:
                if member.map in own:
                    r.fail(
                        f"{member.map} is the chain's own map",
                        "links of a chain share it anyway: leave it out",
                        at=f"share.{share.map}",
                    )
        return chain


def read_chain(path: Path) -> ChainFile:
    """Read a chain file. Raises ChainFileError with the file's name, HostError."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_SIZE_MAX + 1)
    except OSError as error:
        raise HostError(f"{path}: cannot read the chain file: {error.strerror}") from None
    if len(data) > _SIZE_MAX:
        raise ChainFileError(f"{path}: is larger than {_SIZE_MAX >> 20} MiB: not a chain file")
    try:
        return ChainFile.from_dict(tomllib.loads(data.decode()))
    except UnicodeDecodeError as problem:
        raise ChainFileError(f"{path}: is not TOML: byte {problem.start} is not UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as problem:
        what = "nested too deeply" if isinstance(problem, RecursionError) else problem
        raise ChainFileError(f"{path}: is not TOML: {what}") from None
    except ChainFileError as error:
        raise error.within(str(path)) from None


def plan(
    chain: ChainFile,
    hooks: Sequence[Hook],
    *,
    kernel: str | None = None,
    arch: str | None = None,
    allow: frozenset[str] = frozenset(),
) -> tuple[Request, ...]:
    """One request for each link, in their order.

    ``hooks`` are those of the links' programs (``policy.hook_of_section``), one for each. A link's
    ``saved`` is the union of R of the links before it; the highest is the last unless the chain is
    extensible. Raises ChainFileError where the links differ in hook or a code is none of the hook.
    """
    if len(hooks) != len(chain.links):
        raise ValueError(f"{len(hooks)} hooks for {len(chain.links)} links")
    requests = []
    saved = CodeSet()
    for index, (entry, hook) in enumerate(zip(chain.links, hooks, strict=True)):
        _one_hook(chain, index, hook, hooks[0])
        last = index == len(hooks) - 1 and not chain.extensible
        link = _intent(chain, index, hook, saved, last)
        requests.append(
            Request(
                index=index,
                program=entry.program,
                hook=entry.hook or chain.hook,
                success=None if entry.success is None else link.success.describe(hook.names),
                redirect=None if entry.redirect is None else link.redirect.describe(hook.names),
                saved=saved.describe(hook.names) if saved else None,
                strategy=entry.strategy,
                saved_code=chain.saved_code,
                last=last,
                pin=chain.pin,
                slots_map=chain.slots_map,
                kernel=kernel,
                arch=arch,
                allow=allow,
            )
        )
        saved = saved.union(link.redirect)
    return tuple(requests)


def _one_hook(chain: ChainFile, index: int, hook: Hook, first: Hook) -> None:
    wanted = chain.hook or first.name
    if hook.name != wanted:
        whose = "the chain" if chain.hook else f"link 0 ({chain.links[0].object})"
        raise ChainFileError(
            f"link {index} ({chain.links[index].object}) is for hook {hook.name}, "
            f"{whose} for {wanted}",
            "all links of a chain have one hook",
        )


def _intent(chain: ChainFile, index: int, hook: Hook, saved: CodeSet, last: bool) -> Link:
    entry = chain.links[index]
    codes = {"success": hook.success, "redirect": CodeSet()}
    try:
        for what, text in (("success", entry.success), ("redirect", entry.redirect)):
            if text is not None:
                codes[what] = CodeSet.parse(text, hook.names, what=what)
        if len(codes["redirect"]) > 64:  # before it is spelt out below
            raise UsageError("redirect takes a finite list of codes, not any or a complement")
        return Link(
            hook=hook,
            index=index,
            success=codes["success"],
            redirect=codes["redirect"],
            saved=tuple(saved),
            mode=chain.saved_code,
            last=last,
            slots_map=chain.slots_map,
        )
    except UsageError as error:
        key, message = at_key(error)
        where = f"link[{index}].{key}" if key else f"link[{index}]"
        raise ChainFileError(f"in '{where}': {message}", error.hint) from None


def _read_link(r: Reader) -> LinkEntry:
    entry = LinkEntry(
        object=r.text("object"),
        program=r.text("program") if r.has("program") else None,
        success=_codes_text(r, "success"),
        redirect=_codes_text(r, "redirect"),
        strategy=r.choice("strategy", REQUESTED) if r.has("strategy") else REQUESTED[0],
        hook=_hook_name(r),
    )
    r.finish()
    return entry


def _hook_name(r: Reader) -> str | None:
    if not r.has("hook"):
        return None
    try:
        return hook_named(r.text("hook")).name
    except UsageError as error:
        r.fail(error.message, error.hint, at="hook")


def _codes_text(r: Reader, key: str) -> str | None:
    """A code list: text as on the command line, or a list of names and integers."""
    if not r.has(key):
        return None
    if not isinstance(r.raw(key), list):
        return r.text(key)
    words = []
    for n, item in enumerate(r.items(key)):
        if isinstance(item, bool) or not isinstance(item, int | str):
            r.fail("expected a code's name or an integer", at=f"{key}[{n}]")
        word = str(item).strip()
        # what only a whole text may say; in a list it would mean something else, or nothing
        if not word or "," in word or ":" in word or word.lower() in ("any", "none"):
            r.fail(
                f"{word!r} is not one code",
                f'write {key} = "{word}" for a whole set' if word else None,
                at=f"{key}[{n}]",
            )
        words.append(word)
    return ",".join(words) or "none"


def _read_share(r: Reader, links: int) -> tuple[Share, ...]:
    shares = []
    seen: dict[SharedMap, str] = {}
    for name in r.names():
        members = []
        for n, text in enumerate(r.texts(name)):
            match = _MEMBER.fullmatch(text)
            if match is None:
                r.fail(f"expected INDEX:MAP, found {text[:80]!r}", at=f"{name}[{n}]")
            member = SharedMap(index=int(match[1]), map=match[2])
            if member.index >= links:
                r.fail(
                    f"there is no link {member.index}: the last is {links - 1}", at=f"{name}[{n}]"
                )
            if member in seen:
                r.fail(f"{text} is already in {seen[member]}", at=f"{name}[{n}]")
            seen[member] = name
            members.append(member)
        if len(members) < 2:
            r.fail("a map is shared by at least two links", at=name)
        shares.append(Share(map=name, links=tuple(members)).ordered())
    return tuple(shares)
