"""Reports made by hand: what a proof of each kind of end would tell, for the tests of reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bpfchain.verify.result import (
    ChainResult,
    CorpusUse,
    Counterexample,
    DynamicResult,
    Finding,
    LinkResult,
    Outcome,
    Place,
    ProgramCoverage,
    Report,
    Residue,
    StaticResult,
)

HOSTILE = (
    "</script><img src=x onerror=\"fetch('http://example.invalid/')\">\x1b[31m&\u202e\n]]>'\ud800"
)
"""A name that would break out of HTML, XML, JSON, a terminal's line and its reading direction."""

PACKET = bytes.fromhex(
    "02000000000202000000000108004500002c000100004006f9700a0000010a000002"
    "303900500000000100000000600220007e0f0000020405b4"
)
"""Ethernet, IPv4 10.0.0.1 -> 10.0.0.2, TCP 12345 -> 80 SYN with an MSS option."""

_VERSIONS = {"bpfchain": "0.1.0", "pyelftools": "0.31", "ubpf": "1.0.693", "z3": "4.13.0"}


def coverage(program: str = "filter", section: str = "xdp") -> ProgramCoverage:
    """Twelve instructions, three conditional jumps: line 24 never executed, one jump never taken."""
    lines = [20, 20, 21, 21, 22, 22, 23, 23, 24, 24, 25, 26]
    executed = [True] * 8 + [False] * 2 + [True] * 2
    return ProgramCoverage(
        program=program,
        section=section,
        instructions={(section, at): seen for at, seen in enumerate(executed)},
        edges={
            (section, 3, False): True, (section, 3, True): True,
            (section, 5, False): True, (section, 5, True): True,
            (section, 7, False): False, (section, 7, True): True,
        },
        sources={(section, at): (f"src/{program}.c", line) for at, line in enumerate(lines)},
        functions={(section, at): program for at in range(len(lines))},
        texts={
            (f"src/{program}.c", 20): f"int {program}(struct xdp_md *ctx)",
            (f"src/{program}.c", 21): "if (data + sizeof(struct ethhdr) > data_end)",
            (f"src/{program}.c", 22): "if (eth->h_proto != bpf_htons(ETH_P_IP))",
            (f"src/{program}.c", 23): "if (!rule)",
            (f"src/{program}.c", 24): "return XDP_ABORTED;",
            (f"src/{program}.c", 25): "return *rule ? XDP_PASS : XDP_DROP;",
        },
        listing={(section, at): text for at, text in enumerate(_LISTING)},
    )  # fmt: skip


_LISTING = (
    "r2 = *(u32 *)(r1 + 4)", "r1 = *(u32 *)(r1 + 0)", "r3 = r1", "if r3 > r2 goto +7 -> 11",
    "r3 = *(u16 *)(r1 + 12)", "if r3 != 8 goto +5 -> 11", "call bpf_map_lookup_elem",
    "if r0 == 0 goto +2 -> 10", "w0 = 0", "exit", "w0 = 2", "exit",
)  # fmt: skip


def static(outcome: Outcome = Outcome.EQUAL, *findings: Finding) -> StaticResult:
    """A static result that accounted for everything, or found these."""
    counted = {"instructions": 48, "relocations": 3, "records": 21, "sections": 17}
    return StaticResult(
        outcome=outcome, findings=findings, readers=("pyelftools", "lief"), counted=counted
    )


def dynamic(outcome: Outcome = Outcome.EQUAL, *findings: Finding, **more: object) -> DynamicResult:
    """A result of runs on 6 811 of the 6 823 packets of two recordings."""
    result = DynamicResult(
        outcome=outcome,
        engines=("ubpf", "kernel"),
        corpora=(
            CorpusUse(name="builtin", sha256="ab" * 32, packets=411),
            CorpusUse(name="small.pcap", sha256="cd" * 32, packets=6400,
                      skipped=(("over 3 520 bytes", 12),)),
        ),
        packets=6811,
        fills=(0x00, 0xA5),
        findings=findings,
        codes={"DROP": 1709, "PASS": 5102},
        coverage=coverage(),
        dimensions={"verdict": "equal", "packet": "equal", "context": "equal", "map": "equal",
                    "events": "equal"},
        protocols={"arp": 20, "ipv6/udp": 791, "ipv4/tcp": 6000},
        executed=(212_000, 255_300),
    )  # fmt: skip
    return replace(result, **more)  # type: ignore[arg-type]


def link(index: int, program: str, **more: object) -> LinkResult:
    """A link that is proved and equal, but for what is given."""
    result = LinkResult(
        index=index,
        program=program,
        hook="xdp",
        input_name=f"{program}.o",
        output_name=f"link{index}.o",
        input_sha256=f"{index + 1:02x}" * 32,
        output_sha256=f"{index + 101:02x}" * 32,
        success="PASS",
        redirect="",
        strategy="inline",
        instructions=(41, 48),
        static=static(),
        dynamic=dynamic(),
        maps=("counters", "rules"),
        helpers=("bpf_map_lookup_elem",),
    )
    return replace(result, **more)  # type: ignore[arg-type]


def chain(outcome: Outcome = Outcome.EQUAL, **more: object) -> ChainResult:
    """A chain of three that packets ran through."""
    result = ChainResult(
        name="edge",
        dynamic=dynamic(outcome, coverage=None),
        verdicts={("PASS", "PASS"): 5102, ("DROP", "DROP"): 1709},
        reached={0: 6811, 1: 5900, 2: 5102},
        tail_calls=2,
    )
    return replace(result, **more)  # type: ignore[arg-type]


def equal() -> Report:
    """A chain of three links, all equal; packets left out, answers from the recording."""
    fib = dynamic(nondeterministic=("bpf_fib_lookup",), codes={"PASS": 5102}, codes_unseen=("TX",),
                  coverage=coverage("route"))  # fmt: skip
    return Report(
        subject="chain edge",
        links=(
            link(0, "filter"),
            link(1, "metrics", dynamic=dynamic(coverage=coverage("metrics"))),
            link(2, "route", dynamic=fib, strategy="subprog", instructions=(112, 130)),
        ),
        chain=chain(),
        versions=_VERSIONS,
        seed=7,
        seconds=1.94,
        rerun="bpfchain verify chain.json --seed 7",
    )


def not_equal() -> Report:
    """One link whose runs found a packet that another verdict was given, and bytes that differ."""
    place = Place("in", "xdp", 42, "filter", "src/filter.c:88")
    example = Counterexample(
        packet=17,
        corpus="small.pcap",
        data=PACKET,
        context=bytes(24),
        before=(PACKET[:40], PACKET),
        dimension="verdict",
        expected="DROP",
        got="PASS",
        first_difference=place,
        saved_as="counterexample.pcapng",
        after=(PACKET, PACKET[:22] + b"\x3f" + PACKET[23:24] + b"\xfa\x70" + PACKET[26:]),
        maps=(("rules", b"\x50\x00", b"\x01\x00\x00\x00"),),
    )
    finding = Finding(
        rule="verdict",
        outcome=Outcome.NOT_EQUAL,
        message="packet 17 of small.pcap, after 2 others: verdict PASS, was DROP",
        hint="saved as counterexample.pcapng",
    )
    wrong = Finding(
        rule="exit-unpatched",
        outcome=Outcome.NOT_EQUAL,
        message="an exit of the body is left as it was",
        place=place,
    )
    dimensions = {"verdict": "not equal", "packet": "not equal", "map": "equal",
                  "redirect": "the kernel does not tell redirect targets"}  # fmt: skip
    result = dynamic(Outcome.NOT_EQUAL, finding, counterexample=example, dimensions=dimensions,
                     packets=18)  # fmt: skip
    return Report(
        subject="link1.o",
        links=(link(1, "filter", static=static(Outcome.NOT_EQUAL, wrong), dynamic=result),),
        versions=_VERSIONS,
        seconds=0.31,
        rerun="bpfchain verify filter.o link1.o --corpus counterexample.pcapng -v",
    )


def chain_not_equal() -> Report:
    """Links that are each equal, and a chain that is not: the matrix is off its diagonal."""
    example = Counterexample(
        packet=3, corpus="builtin", data=PACKET, context=b"", dimension="verdict",
        expected="DROP", got="PASS",
    )  # fmt: skip
    finding = Finding(
        rule="verdict", outcome=Outcome.NOT_EQUAL,
        message="packet 3 of builtin: verdict PASS, was DROP",
        hint="link 2 is in the slot of link 1: build the chain again",
    )  # fmt: skip
    runs = replace(chain().dynamic, outcome=Outcome.NOT_EQUAL, findings=(finding,),
                   counterexample=example)  # fmt: skip
    broken = chain(dynamic=runs, verdicts={("PASS", "PASS"): 5102, ("DROP", "DROP"): 1700,
                                           ("DROP", "PASS"): 9}, reached={0: 6811, 1: 0, 2: 5111})  # fmt: skip
    return replace(equal(), chain=broken)


def inconclusive() -> Report:
    """A body that hands stack bytes to a helper that it never wrote, and a verdict that shows it."""
    place = Place("in", "xdp", 19, "count", "src/count.c:31")
    residue = Residue(place=place, offset=-12, size=4, how="bpf_map_lookup_elem")
    finding = Finding(
        rule="residue",
        outcome=Outcome.INCONCLUSIVE,
        message="4 bytes of stack at r10-12 are read before they are written: "
        "the verdict depends on what ran before",
        place=place,
        hint="clear the key with memset, or take the risk with --allow stack-residue",
    )
    checked = replace(static(Outcome.INCONCLUSIVE, finding), residue=(residue,))
    return Report(
        subject="link0.o",
        links=(link(0, "count", static=checked, dynamic=dynamic(coverage=coverage("count"))),),
        versions=_VERSIONS,
        seconds=0.052,
        rerun="bpfchain verify count.o link0.o",
    )


def waived() -> Report:
    """The same, let pass on demand."""
    report = inconclusive()
    (one,) = report.links
    passed = replace(one.static, outcome=Outcome.EQUAL, findings=())
    return replace(
        report,
        links=(replace(one, static=passed),),
        waivers=("stack-residue of link 0: 4 bytes at r10-12 (--allow stack-residue)",),
    )


def unmodelled() -> Report:
    """Proved by the static checker; the runs met a helper that no engine here models."""
    finding = Finding(
        rule="unmodelled", outcome=Outcome.UNMODELLED,
        message="bpf_timer_init is not modelled: 6 000 of 6 811 packets could not be compared",
        hint="run with --engine kernel, as root",
    )  # fmt: skip
    result = dynamic(Outcome.UNMODELLED, finding, unmodelled=("bpf_timer_init",), packets=811,
                     engines=("ubpf",), coverage=coverage("timed"))  # fmt: skip
    return Report(
        subject="link0.o", links=(link(0, "timed", dynamic=result),), versions=_VERSIONS,
        seconds=72.4, rerun="bpfchain verify timed.o link0.o",
    )  # fmt: skip


def static_refused() -> Report:
    """The static checker found a fault, so nothing was run."""
    wrong = Finding(
        rule="slot", outcome=Outcome.NOT_EQUAL,
        message="code PASS goes to slot 68, must be 67",
        place=Place("out", "xdp", 51, "filter"),
    )  # fmt: skip
    skipped = Finding(rule="not-run", outcome=Outcome.NOT_RUN, message="the static check failed")
    none = DynamicResult(outcome=Outcome.NOT_RUN, findings=(skipped,))
    one = link(1, "filter", static=static(Outcome.NOT_EQUAL, wrong), dynamic=none)
    return Report(subject="link1.o", links=(one,), versions=_VERSIONS, seconds=0.018)


def nothing() -> Report:
    """A chain without links."""
    return Report(subject="chain empty", links=(), versions=_VERSIONS)


def hostile() -> Report:
    """Every text of the report is a hostile name."""
    place = Place("out", HOSTILE, 3, HOSTILE, HOSTILE)
    finding = Finding(
        rule=HOSTILE, outcome=Outcome.NOT_EQUAL, message=HOSTILE, place=place, hint=HOSTILE
    )
    example = Counterexample(
        packet=0, corpus=HOSTILE, data=b"<script>" * 9, context=b"", dimension=HOSTILE,
        expected=HOSTILE, got=HOSTILE, first_difference=place, saved_as=HOSTILE,
        after=(b"<", b">"), maps=((HOSTILE, b"<", b">"),),
    )  # fmt: skip
    covered = ProgramCoverage(
        program=HOSTILE, section=HOSTILE, instructions={(HOSTILE, 0): True, (HOSTILE, 1): False},
        edges={(HOSTILE, 0, True): True, (HOSTILE, 0, False): False},
        sources={(HOSTILE, 0): (HOSTILE, 1)}, functions={(HOSTILE, 0): HOSTILE},
    )  # fmt: skip
    names: Mapping[str, str] = {HOSTILE: HOSTILE}
    result = DynamicResult(
        outcome=Outcome.NOT_EQUAL, engines=(HOSTILE,), packets=1, findings=(finding,),
        corpora=(CorpusUse(name=HOSTILE, sha256=HOSTILE, packets=1, skipped=((HOSTILE, 1),)),),
        unmodelled=(HOSTILE,), nondeterministic=(HOSTILE,), codes={HOSTILE: 1},
        codes_unseen=(HOSTILE,), coverage=covered, counterexample=example, dimensions=names,
        protocols={HOSTILE: 1}, fills=(0,),
    )  # fmt: skip
    checked = StaticResult(
        outcome=Outcome.NOT_EQUAL, findings=(finding,), readers=(HOSTILE,), counted={HOSTILE: 1},
        residue=(Residue(place=place, offset=-8, size=8, how=HOSTILE),),
    )  # fmt: skip
    one = LinkResult(
        index=0, program=HOSTILE, hook=HOSTILE, input_name=HOSTILE, output_name=HOSTILE,
        input_sha256=HOSTILE, output_sha256=HOSTILE, success=HOSTILE, redirect=HOSTILE,
        strategy=HOSTILE, instructions=(1, 2), static=checked, dynamic=result, maps=(HOSTILE,),
        helpers=(HOSTILE,),
    )  # fmt: skip
    whole = ChainResult(
        name=HOSTILE, dynamic=result, verdicts={(HOSTILE, HOSTILE): 1}, reached={0: 1, 1: 0}
    )
    return Report(
        subject=HOSTILE, links=(one,), chain=whole, not_checked=(HOSTILE,), versions=names,
        rerun=HOSTILE, waivers=(HOSTILE,),
    )  # fmt: skip


def full() -> Report:
    """A chain of 33 links, all they can be."""
    links = tuple(
        link(n, f"program_{n}", dynamic=dynamic(coverage=coverage(f"program_{n}")))
        for n in range(33)
    )
    return Report(
        subject="chain full", links=links,
        chain=chain(reached=dict.fromkeys(range(33), 5102), tail_calls=33),
        versions=_VERSIONS, seconds=12.0,
    )  # fmt: skip


def long_names() -> Report:
    """Names as long as a file system lets them be."""
    name = "handle_ingress_of_the_interface_that_faces_the_provider_" * 4
    codes = {f"CODE_{n}": 10_000 - n for n in range(12)}
    return Report(
        subject=f"chain {name}", links=(link(0, name, dynamic=dynamic(codes=codes)),),
        versions=_VERSIONS, seconds=0.2,
    )  # fmt: skip


ALL = {
    "equal": equal, "not_equal": not_equal, "chain_not_equal": chain_not_equal,
    "inconclusive": inconclusive, "waived": waived, "unmodelled": unmodelled,
    "static_refused": static_refused, "nothing": nothing, "hostile": hostile, "full": full,
    "long_names": long_names,
}  # fmt: skip
"""By name."""
