"""The HTML page: what stands in it, in which order, and that no name in it becomes markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from bpfchain.verify.reports.html import render
from bpfchain.verify.reports.html_coverage import WHOLE
from bpfchain.verify.reports.packet_fields import fields_of
from bpfchain.verify.result import ProgramCoverage, Report
from support import sample_reports as samples
from support.html_page import Page

ALLOWED = {
    "html", "head", "meta", "title", "link", "style", "body", "main", "header", "section", "div",
    "h1", "h2", "h3", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "span", "i",
    "code", "pre", "strong", "mark", "details", "summary", "dl", "dt", "dd",
}  # fmt: skip
VOID = {"meta", "link"}


@pytest.mark.parametrize("name", samples.ALL)
def test_only_markup_of_ours_and_nothing_from_elsewhere(name: str) -> None:
    page = Page(render(samples.ALL[name]()))
    assert page.tags <= ALLOWED
    for tag, key, value in page.attributes:
        assert key in {"class", "id", "scope", "data-label", "style", "colspan", "open", "lang",
                       "charset", "http-equiv", "content", "name", "rel", "href"}, (tag, key)  # fmt: skip
        if key == "style":
            assert re.fullmatch(r"width:\d+%", value)
        if key == "href":
            assert (tag, value) == ("link", "data:,")
    style = page.texts["style"]
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.parametrize("name", samples.ALL)
def test_every_element_is_closed(name: str) -> None:
    stack: list[str] = []

    class Nesting(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in VOID:
                stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert stack.pop() == tag

    reader = Nesting()
    reader.feed(render(samples.ALL[name]()))
    reader.close()
    assert stack == []


@pytest.mark.parametrize("name", samples.ALL)
def test_no_control_character_or_half_pair_is_in_it(name: str) -> None:
    text = render(samples.ALL[name]())
    text.encode()
    assert all(char.isprintable() or char in "\n\xa0" for char in text)


def test_the_policy_allows_no_script_and_no_request() -> None:
    head = render(samples.equal()).split("</head>")[0]
    assert (
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"" in head
    )  # the style of this page, and the empty icon


@pytest.mark.parametrize(
    ("name", "word"),
    [("equal", "equal"), ("not_equal", "not equal"), ("inconclusive", "inconclusive"),
     ("unmodelled", "unmodelled"), ("nothing", "not run")],
)  # fmt: skip
def test_verdict_first_then_what_was_not_checked(name: str, word: str) -> None:
    page = Page(render(samples.ALL[name]()))
    assert page.body.startswith(word)
    assert page.ids[:2] == ["verdict", "not-checked"]
    order = ["verdict", "not-checked", "links", "findings", "counterexample", "chain", "dimensions",
             "coverage", "static", "packets", "facts"]  # fmt: skip
    assert page.ids == [part for part in order if part in page.ids]


def test_a_gate_finds_all_that_it_needs() -> None:
    body = Page(render(samples.chain_not_equal())).body
    for part in (
        "chain: packet 3 of builtin: verdict PASS, was DROP",
        "12 packets of small.pcap (over 3 520 bytes)",
        "link 1 (reached by no packet)",
        "other answers of bpf_fib_lookup",
        "never TX",
        "31.1 → 37.5",
        "ipv4/tcp 6 000",
        "01" * 32,
        "67" * 32,
        "cd" * 32,
        "1.0.693",
        "bpfchain verify chain.json --seed 7",
        "0x00, 0xa5",
    ):
        assert part in body.replace("\xa0", " "), part


def test_the_matrix_marks_what_is_off_its_diagonal() -> None:
    text = render(samples.chain_not_equal())
    assert '<td class="num same">5\xa0102</td>' in text
    assert '<td class="num off">9</td>' in text
    assert ' off"' not in render(samples.equal())


def test_the_packet_stands_field_beside_field() -> None:
    text = render(samples.not_equal())
    rows = re.findall(r'<tr class="differs">(.*?)</tr>', text, re.DOTALL)
    assert [re.sub("<.*?>", " ", row).split()[0] for row in rows] == ["ip.ttl", "ip.checksum"]
    assert "<mark>3f</mark>" in rows[0]
    assert "63" in rows[0]
    assert "<mark>fa</mark> 70" in rows[1]


def test_lines_and_instructions_have_the_colour_of_what_ran() -> None:
    text = render(samples.inconclusive())
    rows = {
        tuple(re.findall(r"<td[^>]*>(.*?)</td>", row)): kind
        for kind, row in re.findall(r'<tr class="((?:line|insn) \w+)">(.*?)</tr>', text)
    }
    assert rows["count.c:22", "2/2", "2/2", "if (eth-&gt;h_proto != bpf_htons(ETH_P_IP))"] == (
        "line seen"
    )
    assert rows["count.c:23", "2/2", "1/2", "if (!rule)"] == "line part"
    assert rows["7", "yes", "always&nbsp;taken", "if r0 == 0 goto +2 -&gt; 10"] == "insn part"
    assert rows["count.c:24", "0/2", "", "return XDP_ABORTED;"] == "line unseen"
    assert rows["9", "no", "", "exit"] == "insn unseen"
    assert rows["11", "yes", "", "exit"] == "insn seen"
    assert len(rows) == 12 + 7


def test_a_long_program_shows_only_what_was_not_seen() -> None:
    size = WHOLE + 200
    covered = ProgramCoverage(
        program="long", section="xdp", edges={},
        instructions={("xdp", at): at != 300 for at in range(size)},
    )  # fmt: skip
    link = samples.link(0, "long", dynamic=samples.dynamic(coverage=covered))
    text = render(Report(subject="link0.o", links=(link,)))
    assert len(re.findall('<tr class="insn unseen">', text)) == 1
    assert '<tr class="insn seen">' not in text
    assert f"… {size - 1} instructions, all seen" in text


def test_a_dimension_that_was_not_compared_says_why() -> None:
    body = Page(render(samples.not_equal())).body
    assert "not compared" in body
    assert "redirect: the kernel does not tell redirect targets" in body


def test_no_packets_is_not_green() -> None:
    none = samples.dynamic(packets=0, codes={}, coverage=None)
    text = render(Report(subject="x", links=(samples.link(0, "filter", dynamic=none),)))
    assert '<span class="chip quiet">no packets</span>' in text


@pytest.mark.parametrize("cut", range(len(samples.PACKET) + 1))
def test_the_fields_of_a_packet_are_all_its_bytes_in_order(cut: int) -> None:
    packet = samples.PACKET[:cut]
    fields = fields_of(packet)
    assert b"".join(item.data for item in fields) == packet
    assert all(packet[item.offset : item.offset + len(item.data)] == item.data for item in fields)
    assert len({item.name for item in fields}) == len(fields)


def test_the_fields_are_those_that_scapy_knows() -> None:
    from scapy.layers.inet import ICMP, IP, TCP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import ARP, Dot1Q, Ether

    def named(packet: object) -> dict[str, str]:
        return {item.name: item.value for item in fields_of(bytes(packet))}  # type: ignore[call-overload]

    ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    found = named(ether / IP(src="10.1.2.3", dst="10.4.5.6", ttl=9, flags="DF") / TCP(sport=1234, dport=443, flags="SA", options=[("MSS", 1460)]) / b"hello")  # fmt: skip
    assert (found["ip.src"], found["ip.dst"], found["ip.ttl"]) == ("10.1.2.3", "10.4.5.6", "9")
    assert (found["ip.proto"], found["ip.flags, ip.frag_offset"]) == ("TCP", "DF offset 0")
    assert (found["tcp.srcport"], found["tcp.dstport"]) == ("1234", "443")
    assert found["tcp.flags"] == "SYN ACK"
    assert {"tcp.options+0", "data+0"} <= set(found)
    found = named(ether / Dot1Q(vlan=7, prio=3) / IPv6(src="2001:db8::1", dst="::2", hlim=5) / UDP(sport=53, dport=54) / (b"x" * 20))  # fmt: skip
    assert found["vlan.tci"] == "id 7, priority 3"
    assert (found["ipv6.src"], found["ipv6.hlim"], found["ipv6.nxt"]) == ("2001:db8::1", "5", "UDP")
    assert (found["udp.srcport"], found["udp.length"]) == ("53", "28")
    assert {"data+0", "data+16"} <= set(found)
    found = named(ether / IP(proto=4) / IP(src="10.9.9.9") / ICMP(type=8))
    assert found["ip.src #2"] == "10.9.9.9"
    assert found["icmp.type"] == "8"
    found = named(ether / IP(frag=3, proto=6) / (b"y" * 20))
    assert found["ip.flags, ip.frag_offset"] == "offset 24"
    assert "tcp.srcport" not in found
    found = named(ether / ARP(op=2, psrc="10.0.0.9"))
    assert (found["arp.opcode"], found["arp.src.proto_ipv4"]) == ("2", "10.0.0.9")
    found = named(ether / IP(options=[]) / UDP())
    assert found["ip.version, ip.hdr_len"] == "4, 20 bytes"


def test_different_lengths_are_said() -> None:
    (link,) = samples.not_equal().links
    example = link.dynamic.counterexample
    assert example is not None
    grown = replace(example, after=(samples.PACKET, samples.PACKET + b"\0"))
    report = replace(
        samples.not_equal(), links=(replace(link, dynamic=replace(link.dynamic, counterexample=grown)),)
    )  # fmt: skip
    assert "Lengths: 58 and 59 bytes." in render(report)
