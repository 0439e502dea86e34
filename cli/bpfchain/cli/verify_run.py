"""What ``bpfchain verify`` runs: files read and matched, links proved in processes, one report."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpfchain.transform.errors import BpfchainError, RefusedError, UsageError
from bpfchain.transform.version import VERSION
from bpfchain.verify.prove import Options, Progress, Subject, intent_of, merged, prove_link
from bpfchain.verify.result import ChainResult, LinkResult, Outcome, Report

from .files import read_input
from .progress import progress_bar
from .verify_claims import check_claims

if TYPE_CHECKING:
    from bpfchain.transform.manifest import Manifest
    from bpfchain.transform.manifest_link import LinkRecord

__all__ = ["matched_subjects", "verify_manifest", "verify_pair"]


def verify_pair(
    source: str, target: str, program: str | None, options: Options, jobs: int, quiet: bool
) -> Report:
    """Prove OUT against IN. ``jobs`` is for recordings: one link has nothing else to share."""
    begun = time.monotonic()
    subject = Subject(
        original=read_input(source), patched=read_input(target),
        input_name=source, output_name=target, program=program,
    )  # fmt: skip
    with progress_bar(quiet=quiet) as progress:
        link = _proved(subject, options, progress)
    return _report(target, (link,), None, options, begun)


def verify_manifest(
    name: str, originals: Sequence[str], options: Options, jobs: int, quiet: bool
) -> Report:
    """Prove every link of the manifest, then the whole chain.

    Raises RefusedError where a file is not the one that the manifest names, or the chain is not
    whole; UsageError where an original cannot be found.
    """
    from bpfchain.transform.chain_check import validate_complete
    from bpfchain.transform.manifest_file import read_manifest

    begun = time.monotonic()
    if not Path(name).exists():
        read_input(name)  # says so, with the nearest name
    path = Path(name)
    manifest = read_manifest(path)
    try:
        warnings = validate_complete(manifest)
    except BpfchainError as error:
        raise error.within(name) from None
    subjects = matched_subjects(path, manifest, originals)
    check_claims(name, manifest, subjects)
    with progress_bar(quiet=quiet) as progress:
        links = _prove_all(subjects, options, jobs, progress)
        _agree(name, manifest, links)
        chain = None
        if all(link.static.outcome is not Outcome.NOT_EQUAL for link in links):
            chain = _whole(manifest, subjects, options, progress)
    report = _report(f"chain {manifest.chain}", links, chain, options, begun)
    return replace(report, not_checked=warnings)


def matched_subjects(
    path: Path, manifest: Manifest, originals: Sequence[str] = ()
) -> tuple[Subject, ...]:
    """Every link's two files, each with the sha256 that the manifest says."""
    given = {}
    for name in originals:
        data = read_input(name)
        given[sha256(data).hexdigest()] = (name, data)
    return tuple(_subject(path, record, given) for record in manifest.links)


def _subject(path: Path, record: LinkRecord, given: dict[str, tuple[str, bytes]]) -> Subject:
    object_name = str(path.parent / record.object)
    patched = read_input(object_name)
    found = sha256(patched).hexdigest()
    if found != record.output_sha256:
        raise RefusedError(
            f"{object_name}: has sha256 {found[:12]}…, {path} says {record.output_sha256[:12]}…",
            "it was changed or written again since: build the chain again",
        )
    if record.input_sha256 in given:
        input_name, original = given[record.input_sha256]
    elif record.input_file is None:
        raise UsageError(
            f"{path}: link {record.index} was made from stdin", "name its original with --original"
        )
    else:
        input_name = str(path.parent / record.input_file)
        try:
            original = read_input(input_name)
        except UsageError:
            raise UsageError(
                f"{input_name}: the original of link {record.index} is not there",
                "name it with --original",
            ) from None
        found = sha256(original).hexdigest()
        if found != record.input_sha256:
            raise RefusedError(
                f"{input_name}: has sha256 {found[:12]}…, and link {record.index} was made from "
                f"{record.input_sha256[:12]}…",
                "it was built again since: build the chain again, or name the one with --original",
            )
    return Subject(
        original=original, patched=patched, input_name=input_name, output_name=object_name,
        program=record.program,
    )  # fmt: skip


def _proved(subject: Subject, options: Options, progress: Progress | None = None) -> LinkResult:
    try:
        return prove_link(subject, options, progress)
    except BpfchainError as error:
        if subject.output_name in error.message or subject.input_name in error.message:
            raise
        raise error.within(subject.output_name) from None


def _prove_all(
    subjects: Sequence[Subject], options: Options, jobs: int, progress: Progress
) -> tuple[LinkResult, ...]:
    count = len(subjects)
    results = []
    each = [replace(options, save_to=_of_link(options, place)) for place in range(count)]
    with _mapped(jobs, count) as run:
        for done, link in enumerate(run(_proved, subjects, each), start=1):
            results.append(link)
            progress(done, count, "links")
    return tuple(results)


def _of_link(options: Options, place: int) -> Path | None:
    path = options.save_to
    return None if path is None else path.with_name(f"{path.stem}-link{place}{path.suffix}")


@contextmanager
def _mapped(jobs: int, count: int) -> Iterator[Callable[..., Iterator[LinkResult]]]:
    """``map``, in processes where more than one is asked for."""
    if min(jobs, count) < 2:
        yield map
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # spawned: a fork would inherit the engine's mappings and the progress bar's thread
    with ProcessPoolExecutor(min(jobs, count), mp_context=get_context("spawn")) as pool:

        def mapped(*work: Any) -> Iterator[LinkResult]:
            # Ctrl-C goes to every process of the terminal: ours alone is to say so
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                return pool.map(*work)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

        try:
            yield mapped
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.terminate()  # or they would first end what they are at
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _agree(name: str, manifest: Manifest, links: Sequence[LinkResult]) -> None:
    """What the objects say of themselves is what the manifest says of them."""
    for record, link in zip(manifest.links, links, strict=True):
        names = record.link.hook.names
        said = {
            "index": (link.index, record.index),
            "program": (link.program, record.program),
            "hook": (link.hook, record.link.hook.name),
            "S": (link.success, record.link.success.describe(names)),
            "R": (link.redirect, record.link.redirect.describe(names)),
            "strategy": (link.strategy, record.strategy),
        }
        for what, (object_says, manifest_says) in said.items():
            if object_says != manifest_says:
                raise RefusedError(
                    f"{link.output_name}: says {what} {object_says}, {name} says {manifest_says}",
                    "one of them is of another build: build the chain again",
                )


def _whole(
    manifest: Manifest, subjects: Sequence[Subject], options: Options, progress: Progress
) -> ChainResult:
    """The chain on every engine that was asked for; the worst of them."""
    from bpfchain.verify.whole import ChainLink, check_chain, share_of

    links = [
        ChainLink(
            original=subject.original,
            patched=subject.patched,
            intent=intent_of(subject),
            name=subject.output_name,
        )
        for subject in subjects
    ]
    results = [
        check_chain(
            links, options.recordings, name=manifest.chain, engine=engine, fills=options.fills,
            share=share_of(manifest.share), btf=options.btf, seed=options.seed, progress=progress,
        )
        for engine in options.engines
    ]  # fmt: skip
    first = max(results, key=lambda result: result.dynamic.outcome)
    return replace(first, dynamic=merged([result.dynamic for result in results]))


def _report(
    subject: str, links: tuple[LinkResult, ...], chain: ChainResult | None, options: Options,
    begun: float,
) -> Report:  # fmt: skip
    from bpfchain.verify.versions import versions

    return Report(
        subject=subject,
        links=links,
        chain=chain,
        waivers=tuple(_waivers(links, options)),
        versions={"bpfchain": VERSION, **versions(options.engines)},
        seed=options.seed,
        seconds=time.monotonic() - begun,
    )


def _waivers(links: tuple[LinkResult, ...], options: Options) -> Iterator[str]:
    """What passed because --allow said so."""
    if not options.allow_residue:
        return
    for link in links:
        for finding in link.dynamic.findings:
            if finding.rule == "residue":
                yield f"stack-residue, link {link.index}: {finding.message}"
