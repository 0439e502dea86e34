"""Whether the links of a manifest make a whole chain.

A record can be sound and the chain still wrong: a slot that is reachable and not filled ends the
chain silently, a link behind a redirecting one can send the packet elsewhere. These are the rules
of DESIGN section 2 over all links; ``build``, ``verify`` and the loader ask here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .codes import CodeSet
from .errors import RefusedError
from .link import saved_map_name
from .manifest import Manifest, Share
from .manifest_link import LinkRecord
from .policy import LINKS_MAX

__all__ = ["Problem", "check_chain", "reaching", "validate_complete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something about the chain that a person should know; ``fatal`` ones make it unusable.

    ``index`` is the link that must change, None where it is the chain.
    """

    message: str
    hint: str | None = None
    index: int | None = None
    fatal: bool = True


def reaching(manifest: Manifest, index: int) -> CodeSet:
    """The codes that can be saved when link ``index`` starts (besides none): those in R of a link
    before it."""
    codes = CodeSet()
    for record in manifest.links:
        if record.index < index:
            codes = codes.union(record.link.redirect)
    return codes


def check_chain(manifest: Manifest) -> tuple[Problem, ...]:
    """All that is wrong with the chain as a whole, fatal problems first, then in link order.

    Expects a manifest that ``validate`` accepts.
    """
    found = [
        *_places(manifest),
        *_frags(manifest),
        *_files(manifest),
        *_states(manifest),
        *_redirects(manifest),
        *_shares(manifest),
        *_tail_calls(manifest),
    ]
    return tuple(sorted(found, key=lambda problem: not problem.fatal))


def validate_complete(manifest: Manifest) -> tuple[str, ...]:
    """Raise ManifestError for a record that is not sound and RefusedError for the first fatal
    problem of the chain; the warnings otherwise."""
    manifest.validate()
    problems = check_chain(manifest)
    for problem in problems:
        if problem.fatal:
            raise RefusedError(problem.message, problem.hint)
    return tuple(problem.message for problem in problems)


def _places(manifest: Manifest) -> Iterator[Problem]:
    """Indexes 0, 1, 2 …, and nothing behind a link that was patched to be the last."""
    links = manifest.links
    if not links:
        yield Problem(message=f"chain {manifest.chain} has no links")
        return
    have = {record.index for record in links}
    missing = [index for index in range(links[-1].index) if index not in have]
    for index in missing:
        behind = next(record for record in links if record.index > index)
        yield Problem(
            message=f"link {index} is missing: the chain would end before {behind.label}",
            hint="patch it into this manifest, or number the links from 0 without gaps",
            index=index,
        )
    for record in links[:-1]:
        if record.link.last:
            yield Problem(
                message=f"{record.label} was patched with --last, "
                f"but {links[-1].label} comes after it",
                hint=f"patch link {record.index} again without --last",
                index=record.index,
            )
    if manifest.extensible and links[-1].link.last:
        yield Problem(
            message=f"{links[-1].label} was patched with --last, but the chain is extensible",
            hint=f"patch link {links[-1].index} again without --last",
            index=links[-1].index,
        )


def _frags(manifest: Manifest) -> Iterator[Problem]:
    """The kernel puts programs with and without frags into different chains."""
    for record in manifest.links[1:]:
        head = manifest.links[0]
        if record.frags != head.frags:
            yes, no = (record, head) if record.frags else (head, record)
            yield Problem(
                message=f"{yes.label} handles frags (section {yes.section}) and {no.label} "
                f"does not (section {no.section}): the kernel refuses such a chain",
                hint="give both the same kind of section",
                index=record.index,
            )


def _files(manifest: Manifest) -> Iterator[Problem]:
    """Two links in one object file were written together, or one record is out of date."""
    first: dict[str, LinkRecord] = {}
    for record in manifest.links:
        known = first.setdefault(record.object, record)
        if known.output_sha256 != record.output_sha256:
            yield Problem(
                message=f"links {known.index} and {record.index} are both {record.object}, "
                "with different sha256: one of them was overwritten",
                hint="write each link to a file of its own",
                index=record.index,
            )


def _states(manifest: Manifest) -> Iterator[Problem]:
    """Every state that can reach a link needs an entry there."""
    if manifest.saved_code != "slots":
        return  # one entry serves all states
    hook = manifest.hook
    for record in manifest.links:
        needed = reaching(manifest, record.index)
        absent = needed.difference(CodeSet.of(*record.link.saved))
        if absent:
            who = next(r for r in manifest.links if any(code in r.link.redirect for code in absent))
            names = absent.describe(hook.names)
            yield Problem(
                message=f"{record.label} has no entry for a saved {names}, "
                f"which {who.label} can save: the chain would end there silently",
                hint=f"patch link {record.index} again with --saved {needed.describe(hook.names)}",
                index=record.index,
            )


def _redirects(manifest: Manifest) -> Iterator[Problem]:
    """A saved redirect code returned after another redirect helper ran goes elsewhere."""
    hook = manifest.hook
    for record in manifest.links:
        before = [
            (earlier, code)
            for earlier in manifest.links
            for code in hook.redirecting
            if earlier.index < record.index and code in earlier.link.redirect
        ]
        if not before or not record.redirects:
            continue
        earlier, code = before[0]
        message = (
            f"{record.label} can call {', '.join(record.redirects)} after {earlier.label} saved "
            f"{hook.name_of(code)}: the packet can go elsewhere"
        )
        accepted = "redirect-hazard" in record.allowed
        yield Problem(
            message=message,
            hint=f"put it before link {earlier.index}, or patch it with --allow redirect-hazard",
            index=record.index,
            fatal=not accepted,
        )


def _shares(manifest: Manifest) -> Iterator[Problem]:
    """Maps that are to be one must exist and have one definition."""
    own = (manifest.slots_map, saved_map_name(manifest.slots_map))
    for share in manifest.share:
        yield from _share(manifest, share, own)


def _share(manifest: Manifest, share: Share, own: tuple[str, ...]) -> Iterator[Problem]:
    first = None
    for member in share.links:
        where = f"share {share.map}: link {member.index}"
        record = manifest.record(member.index)
        if record is None:
            yield Problem(message=f"{where} is not in the chain", index=member.index)
            continue
        use = next((use for use in record.maps if use.name == member.map), None)
        if use is None:
            names = ", ".join(use.name for use in record.maps if use.name not in own) or "none"
            yield Problem(
                message=f"{where} ({record.object}) has no map {member.map}",
                hint=f"its maps: {names}",
                index=member.index,
            )
            continue
        if member.map in own:
            yield Problem(
                message=f"{where} ({record.object}): {member.map} is the chain's own map",
                hint="links of a chain share it anyway: leave it out",
                index=member.index,
            )
            continue
        shape = (use.type, use.key_size, use.value_size, use.max_entries, use.flags)
        if first is None:
            first = member, shape
        elif shape != first[1]:
            yield Problem(
                message=f"{where} ({record.object}): map {member.map} is defined otherwise than "
                f"{first[0].map} of link {first[0].index}: {_differing(shape, first[1])}",
                index=member.index,
            )


_SHAPE = ("type", "key size", "value size", "max_entries", "flags")


def _differing(mine: tuple[int | None, ...], theirs: tuple[int | None, ...]) -> str:
    return ", ".join(
        f"{what} {a}, not {b}" for what, a, b in zip(_SHAPE, mine, theirs, strict=True) if a != b
    )


def _tail_calls(manifest: Manifest) -> Iterator[Problem]:
    """The kernel follows 33 tail calls; those of the bodies are counted by the verifier only."""
    attempts = sum(not record.link.ends for record in manifest.links)
    for record in manifest.links:
        if record.tail_calls:
            yield Problem(
                message=f"{record.label} makes tail calls of its own: that they and the chain's "
                f"{attempts} stay within the kernel's {LINKS_MAX} is not checked here",
                index=record.index,
                fatal=False,
            )
