"""Writes the built-in packets, ``verify/bpfchain/verify/data/builtin.pcap``, and ``builtin.txt``,
which names them.

    python corpus/packets/generate.py          # write both
    python corpus/packets/generate.py --check  # exit 1 where they are not what this writes

Every field is given or computed (lengths, checksums), nothing is random: two runs write the same
bytes. README.md says what is inside and why.
"""

# ruff: noqa: E402, I001
# fmt: off
from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT / "transform"), str(ROOT / "verify")]  # runs from a bare checkout as well

from scapy.config import conf

conf.ipv6_enabled = True
conf.route_autoload = False  # the machine's addresses and routes must not get in
conf.route6_autoload = False

from scapy.all import (
    AH, ARP, BOOTP, DHCP, DNS, DNSQR, DNSRR, ESP, GRE, ICMP, IP, LLC, SCTP, SNAP, STP, TCP, UDP,
    VXLAN, Dot1AD, Dot1Q, Dot3, Ether, ICMPv6DestUnreach, ICMPv6EchoReply,
    ICMPv6EchoRequest, ICMPv6MLReport2, ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6ND_RA, ICMPv6ND_Redirect,
    ICMPv6ND_RS, ICMPv6NDOptDstLLAddr, ICMPv6NDOptMTU, ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr, ICMPv6PacketTooBig, ICMPv6ParamProblem, ICMPv6TimeExceeded,
    IPOption_NOP, IPOption_Router_Alert, IPOption_RR, IPOption_Timestamp, IPv6,
    IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting, PPPoE, PPP, Raw, RouterAlert, PadN, Pad1, SCTPChunkInit,
    SCTPChunkData, SCTPChunkParamSupportedExtensions, Jumbo,
)
from scapy.contrib.geneve import GENEVE, GeneveOptions
from scapy.contrib.gtp import GTP_U_Header, GTPEchoRequest
from scapy.contrib.igmp import IGMP
from scapy.contrib.mpls import MPLS

from bpfchain.verify.captures import to_pcap

PCAP = ROOT / "verify/bpfchain/verify/data/builtin.pcap"
NAMES = HERE / "builtin.txt"

START = 1_700_000_000_000_000_000
STEP = 1_000_003
"""First time and distance of packets, in ns; no multiple of a microsecond, so that it shows."""

Named = tuple[str, bytes]

MAC_A, MAC_B = "02:00:00:00:00:01", "02:00:00:00:00:02"
V4_A, V4_B = "10.0.0.1", "10.0.0.2"
V6_A, V6_B, LOCAL_A, LOCAL_B = "2001:db8::1", "2001:db8::2", "fe80::1", "fe80::2"
DATA = bytes(range(16))
PORTS = (0, 22, 23, 53, 80, 443, 8080, 65535)


def ether(**fields: Any) -> Ether:
    return Ether(**{"src": MAC_A, "dst": MAC_B} | fields)


def ip4(**fields: Any) -> IP:
    return IP(**{"src": V4_A, "dst": V4_B, "id": 7, "ttl": 64} | fields)


def ip6(**fields: Any) -> IPv6:
    return IPv6(**{"src": V6_A, "dst": V6_B, "hlim": 64} | fields)


def tcp(port: int = 80, flags: str = "S", **fields: Any) -> TCP:
    return TCP(**{"sport": 40000, "dport": port, "flags": flags, "seq": 1, "ack": 2} | fields)


def udp(port: int = 5201, **fields: Any) -> UDP:
    return UDP(**{"sport": 40000, "dport": port} | fields)


def label(number: int, last: int) -> MPLS:
    return MPLS(label=number, s=last, ttl=64)


def raw(packet: Any) -> bytes:
    return bytes(packet)


def tags() -> Iterator[Named]:
    """Tags in front of each of the common stacks."""
    inner = (
        ("ipv4/tcp", ip4() / tcp(443)),
        ("ipv4/udp", ip4() / udp(53) / DATA),
        ("ipv6/tcp", ip6() / tcp(443)),
        ("ipv6/udp", ip6() / udp(53) / DATA),
        ("arp", ARP(hwsrc=MAC_A, psrc=V4_A, pdst=V4_B)),
    )
    stacks = (
        ("untagged", ()),
        ("vlan 100", (Dot1Q(vlan=100),)),
        ("vlan 4095", (Dot1Q(vlan=4095),)),
        ("priority tag", (Dot1Q(vlan=0, prio=5),)),
        ("s-tag", (Dot1AD(vlan=200),)),
        ("qinq 88a8", (Dot1AD(vlan=200), Dot1Q(vlan=100))),
        ("qinq 8100", (Dot1Q(vlan=200), Dot1Q(vlan=100))),
        ("three tags", (Dot1AD(vlan=300), Dot1Q(vlan=200), Dot1Q(vlan=100))),
    )
    whole = ("untagged", "vlan 100", "qinq 88a8")
    for tagged, tagging in stacks:
        for name, payload in inner if tagged in whole else inner[::3]:
            packet = ether()
            for tag in tagging:
                packet /= tag
            yield f"{tagged}, {name}", raw(packet / payload)
    four = ether() / Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / Dot1Q(vlan=4)
    yield "four tags, ipv4/udp", raw(four / ip4() / udp())
    yield "vlan with drop eligible, ipv4/udp", raw(
        ether() / Dot1Q(vlan=100, prio=7, id=1) / ip4() / udp()
    )
    yield "vlan 100, nothing behind", raw(ether() / Dot1Q(vlan=100, type=0x0800))
    yield "tag 0x9100, ipv4/udp", raw(ether(type=0x9100) / Raw(b"\x00\x64\x08\x00") / ip4() / udp())


def link_layer() -> Iterator[Named]:
    """Ethernet kinds other than IP, and destination addresses."""
    request = {"hwsrc": MAC_A, "psrc": V4_A, "pdst": V4_B}
    yield "arp request", raw(ether(dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, **request))
    yield "arp reply", raw(ether() / ARP(op=2, hwdst=MAC_B, **request))
    yield "gratuitous arp", raw(ether(dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=MAC_A, psrc=V4_A, pdst=V4_A))
    yield "arp of another hardware", raw(ether() / ARP(op=1, hwtype=6, **request))
    yield "rarp", raw(ether(type=0x8035) / ARP(op=3, **request))
    stp = STP(rootmac=MAC_A, bridgemac=MAC_A)
    yield "llc, spanning tree", raw(
        Dot3(src=MAC_A, dst="01:80:c2:00:00:00") / LLC(dsap=0x42, ssap=0x42, ctrl=3) / stp
    )
    yield "llc/snap, ipv4", raw(
        Dot3(src=MAC_A, dst=MAC_B) / LLC(dsap=0xAA, ssap=0xAA, ctrl=3)
        / SNAP(OUI=0, code=0x0800) / ip4() / udp()
    )
    yield "802.3 length 1500", raw(ether(type=1500) / Raw(bytes(1500)))
    yield "ethertype 1535", raw(ether(type=1535) / Raw(bytes(46)))
    yield "ethertype 1536", raw(ether(type=1536) / Raw(bytes(46)))
    for number, name in (
        (0x0000, "0"), (0x88CC, "lldp"), (0x88E5, "macsec"), (0x888E, "eapol"), (0x88B5, "experimental"), (0xFFFF, "ffff"),
    ):
        yield f"ethertype {name}", raw(ether(type=number) / Raw(DATA + bytes(30)))
    yield "ethertype of ipv4, bytes swapped", raw(ether(type=0x0008) / ip4() / udp())
    yield "pppoe session, ipv4", raw(ether() / PPPoE(sessionid=17) / PPP(proto=0x21) / ip4() / udp())
    yield "pppoe session, ipv6", raw(ether() / PPPoE(sessionid=17) / PPP(proto=0x57) / ip6() / tcp())
    for dst, name in (
        ("ff:ff:ff:ff:ff:ff", "broadcast"), ("01:00:5e:00:00:01", "ipv4 multicast"),
        ("33:33:00:00:00:01", "ipv6 multicast"), ("00:00:00:00:00:00", "zero"),
    ):
        target = "224.0.0.1" if "multicast" in name else "255.255.255.255"
        body = ip6(dst="ff02::1") / udp() if name.startswith("ipv6") else ip4(dst=target) / udp()
        yield f"{name} address, udp", raw(ether(dst=dst) / body / DATA)
    yield "source address is a group", raw(ether(src="03:00:00:00:00:01") / ip4() / udp())


def ipv4() -> Iterator[Named]:
    """IPv4 headers: options, fragments, fields that contradict the packet."""
    yield "ipv4 options, router alert", raw(ether() / ip4(options=[IPOption_Router_Alert()]) / tcp())
    yield "ipv4 options, nop", raw(ether() / ip4(options=[IPOption_NOP()] * 4) / udp())
    yield "ipv4 options, record route", raw(
        ether() / ip4(options=[IPOption_RR(routers=["0.0.0.0"] * 3, length=15)]) / tcp(22)
    )
    yield "ipv4 options, timestamp", raw(
        ether() / ip4(options=[IPOption_Timestamp(flg=0, timestamp=0, length=8)]) / udp(53)
    )
    yield "ipv4 options, 40 bytes", raw(ether() / ip4(options=[IPOption_NOP()] * 40) / tcp(443) / DATA)
    for name, flags, offset in (
        ("first", "MF", 0), ("middle", "MF", 3), ("last", 0, 6), ("atomic, don't fragment", "DF", 0),
        ("offset 1", 0, 1), ("largest offset", 0, 8191),
    ):
        body = raw(tcp(80) / DATA) if name == "first" else DATA + bytes(8)
        yield f"ipv4 fragment, {name}", raw(ether() / ip4(flags=flags, frag=offset, proto=6) / body)
    udp_body = raw(udp(53, len=48, chksum=0) / DATA)
    yield "ipv4 fragment, first, udp", raw(ether() / ip4(flags="MF", proto=17) / udp_body)
    yield "ipv4 fragment, last, udp", raw(ether() / ip4(frag=3, proto=17) / DATA)
    for version in (0, 6):
        yield f"ipv4 ethertype, version {version}", raw(ether(type=0x0800) / ip4(version=version) / tcp())
    for ihl in (4, 6, 15):
        yield f"ipv4 ihl {ihl} without options", raw(ether() / ip4(ihl=ihl) / tcp())
    for size in (0, 19, 39, 41, 65535):
        yield f"ipv4 length {size}, 40 there", raw(ether() / ip4(len=size) / tcp())
    for ttl in (0, 1, 255):
        yield f"ipv4 ttl {ttl}", raw(ether() / ip4(ttl=ttl) / udp())
    for tos in (0x03, 0x2E << 2):
        yield f"ipv4 tos {tos:#04x}", raw(ether() / ip4(tos=tos) / tcp())
    yield "ipv4 wrong checksum", raw(ether() / ip4(chksum=0xBEEF) / tcp())
    for proto in (0, 61, 89, 255):
        yield f"ipv4 protocol {proto}", raw(ether() / ip4(proto=proto) / DATA)
    for src, dst, name in (
        ("0.0.0.0", "255.255.255.255", "any to broadcast"), ("127.0.0.1", "127.0.0.1", "loopback"),
        ("192.168.1.10", "8.8.8.8", "private to public"),
        ("10.0.0.1", "10.0.0.1", "source is destination"), ("169.254.1.1", "224.0.0.251", "link local"),
    ):
        yield f"ipv4 addresses, {name}", raw(ether() / ip4(src=src, dst=dst) / udp(5353))
    yield "ipv4 ends at its header", raw(ether() / ip4(proto=6))
    yield "ipv4 and padding to 60", raw(ether() / ip4() / udp()).ljust(60, b"\0")


def ipv6() -> Iterator[Named]:
    """IPv6 extension headers, alone and in chains, and fields that contradict the packet."""
    hop = IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN(optdata=b"")])
    dest = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])
    route = IPv6ExtHdrRouting(type=0, segleft=1, addresses=[V6_B])
    mobile = IPv6ExtHdrRouting(type=2, segleft=1, addresses=[V6_B])
    segments = IPv6ExtHdrSegmentRouting(
        addresses=[V6_B, "2001:db8::3"], segleft=1, lastentry=1
    )
    whole = IPv6ExtHdrFragment(offset=0, m=0, id=77)
    auth = AH(spi=1, seq=1, icv=bytes(12))
    chains: tuple[tuple[str, tuple[Any, ...]], ...] = (
        ("hop-by-hop", (hop,)), ("destination", (dest,)), ("routing 0", (route,)),
        ("routing 2", (mobile,)), ("segment routing", (segments,)), ("atomic fragment", (whole,)),
        ("ah", (auth,)), ("hop-by-hop, routing, destination", (hop, route, dest)),
        ("destination, routing, fragment, ah", (dest, route, whole, auth)),
        ("four destinations", (dest, dest, dest, dest)),
        ("eight destinations", (dest,) * 8),
    )
    for name, headers in chains:
        lasts = (("tcp", tcp(443)), ("udp", udp(53) / DATA))
        for last, body in lasts if name in ("hop-by-hop", "segment routing") else lasts[:1]:
            packet = ether() / ip6()
            for header in headers:
                packet /= header
            yield f"ipv6 {name}, {last}", raw(packet / body)
    padded = IPv6ExtHdrDestOpt(options=[Pad1(), Pad1(), PadN(optdata=bytes(18))])
    yield "ipv6 destination of 24 bytes, tcp", raw(ether() / ip6() / padded / tcp())
    for name, more, offset in (("first", 1, 0), ("middle", 1, 3), ("last", 0, 6)):
        fragment = IPv6ExtHdrFragment(offset=offset, m=more, id=77, nh=6)
        body = raw(tcp(80) / DATA) if name == "first" else DATA + bytes(8)
        yield f"ipv6 fragment, {name}", raw(ether() / ip6() / fragment / body)
    yield "ipv6 no next header", raw(ether() / ip6(nh=59))
    yield "ipv6 no next header, bytes behind", raw(ether() / ip6(nh=59) / DATA)
    for number in (0, 43, 44):
        yield f"ipv6 next header {number}, nothing behind", raw(ether() / ip6(nh=number))
    yield "ipv6 hop-by-hop longer than the packet", raw(ether() / ip6(nh=0) / Raw(b"\x06\xff" + bytes(6)))
    yield "ipv6 hop-by-hop after destination", raw(ether() / ip6() / dest / hop / tcp())
    for number in (135, 253, 255):
        yield f"ipv6 next header {number}", raw(ether() / ip6(nh=number) / DATA)
    for version in (0, 4):
        yield f"ipv6 ethertype, version {version}", raw(ether(type=0x86DD) / ip6(version=version) / tcp())
    for size in (0, 19, 65535):
        yield f"ipv6 length {size}, 20 there", raw(ether() / ip6(plen=size) / tcp())
    yield "ipv6 jumbo option", raw(
        ether() / ip6(plen=0) / IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=65536)]) / udp()
    )
    for limit in (0, 1):
        yield f"ipv6 hop limit {limit}", raw(ether() / ip6(hlim=limit) / udp())
    yield "ipv6 traffic class and flow label", raw(ether() / ip6(tc=0xB8, fl=0xFFFFF) / tcp())
    for src, dst, name in (
        ("::", "ff02::1", "unspecified to group"), ("::1", "::1", "loopback"),
        ("fd00::1", "fd00::2", "unique local"), ("::ffff:10.0.0.1", "64:ff9b::a00:2", "with ipv4 inside"),
    ):
        yield f"ipv6 addresses, {name}", raw(ether() / ip6(src=src, dst=dst) / udp())


def transport() -> Iterator[Named]:
    """TCP, UDP, UDP-Lite, SCTP: flags, options, ports, lengths."""
    for flags, name in (
        ("", "none"), ("F", "fin"), ("SA", "syn ack"), ("A", "ack"), ("PA", "psh ack"), ("R", "rst"),
        ("RA", "rst ack"), ("FA", "fin ack"), ("SF", "syn fin"), ("FPU", "christmas"),
        ("SEC", "syn with ecn"), ("FSRPAUEC", "all"),
    ):
        yield f"tcp flags {name}", raw(ether() / ip4() / tcp(80, flags) / (DATA if "P" in flags else b""))
    yield "ipv6 tcp flags ack", raw(ether() / ip6() / tcp(80, "A") / DATA)
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]
    yield "tcp options of a syn", raw(ether() / ip4() / tcp(443, "S", options=options))
    yield "ipv6 tcp options of a syn", raw(ether() / ip6() / tcp(443, "S", options=options))
    yield "tcp options, timestamp", raw(
        ether() / ip4() / tcp(443, "A", options=[("NOP", None), ("NOP", None), ("Timestamp", (9, 8))]) / DATA
    )
    yield "tcp options, sack", raw(
        ether() / ip4() / tcp(443, "A", options=[("NOP", None), ("NOP", None), ("SAck", (10, 20))])
    )
    yield "tcp options, end of list first", raw(ether() / ip4() / tcp(443, "S", options=[("EOL", None)]))
    for offset in (4, 6, 15):
        yield f"tcp data offset {offset}, no options", raw(ether() / ip4() / tcp(80, dataofs=offset))
    yield "tcp window 0, urgent pointer", raw(ether() / ip4() / tcp(80, "UA", window=0, urgptr=5) / DATA)
    yield "tcp wrong checksum", raw(ether() / ip4() / tcp(80, chksum=1))
    for port in PORTS:
        yield f"tcp port {port}", raw(ether() / ip4() / tcp(port))
        yield f"udp port {port}", raw(ether() / ip4() / udp(port))
    for port in (22, 80, 443, 8080):
        yield f"ipv6 tcp port {port}, from it", raw(ether() / ip6() / tcp(40000, "SA", sport=port))
    for size in (7, 9, 65535):
        yield f"udp length {size}, 24 there", raw(ether() / ip4() / udp(len=size) / DATA)
    yield "udp checksum 0", raw(ether() / ip4() / udp(chksum=0) / DATA)
    yield "ipv6 udp checksum 0", raw(ether() / ip6() / udp(chksum=0) / DATA)
    lite = Raw(bytes.fromhex("9c40 1451 0008 0000")) / DATA
    yield "udp-lite", raw(ether() / ip4(proto=136) / lite)
    yield "ipv6 udp-lite", raw(ether() / ip6(nh=136) / lite)
    init = SCTPChunkInit(
        init_tag=1, a_rwnd=65535, n_out_streams=1, n_in_streams=1, init_tsn=1,
        params=[SCTPChunkParamSupportedExtensions()],
    )
    ports = {"sport": 40000, "dport": 36412, "tag": 1}
    yield "sctp init", raw(ether() / ip4() / SCTP(**ports) / init)
    chunk = SCTPChunkData(tsn=1, stream_id=0, stream_seq=0, proto_id=0, data=DATA)
    yield "ipv6 sctp data", raw(ether() / ip6(nh=132) / SCTP(**ports) / chunk)
    yield "sctp, header only", raw(ether() / ip4(proto=132) / SCTP(**ports))
    yield "dccp", raw(ether() / ip4(proto=33) / Raw(bytes.fromhex("9c401451050000000000000000000001") + bytes(4)))
    yield "esp", raw(ether() / ip4(proto=50) / ESP(spi=1, seq=1, data=DATA))
    yield "ah, tcp", raw(ether() / ip4() / AH(spi=1, seq=1, icv=bytes(12)) / tcp(443))


def control() -> Iterator[Named]:
    """ICMP, ICMPv6 with neighbour discovery, IGMP."""
    clock = {"ts_ori": 1, "ts_rx": 2, "ts_tx": 3}  # else scapy takes the time of day
    for kind, code, name in (
        (8, 0, "echo request"), (0, 0, "echo reply"), (13, 0, "timestamp request"), (9, 0, "router"),
        (255, 255, "unknown"),
    ):
        yield f"icmp {name}", raw(ether() / ip4() / ICMP(type=kind, code=code, id=1, seq=1, **clock) / DATA)
    about = raw(ip4(src=V4_B, dst=V4_A) / udp())
    for kind, code, name in (
        (3, 1, "host unreachable"), (3, 3, "port unreachable"), (3, 4, "fragmentation needed"),
        (5, 1, "redirect"), (11, 0, "time exceeded"), (12, 0, "parameter problem"),
    ):
        yield f"icmp {name}", raw(ether() / ip4() / ICMP(type=kind, code=code) / Raw(about))
    yield "icmp, 4 bytes of it", raw(ether() / ip4(proto=1) / Raw(b"\x08\x00\xf7\xff"))
    yield "icmpv6 echo request", raw(ether() / ip6() / ICMPv6EchoRequest(id=1, seq=1, data=DATA))
    yield "icmpv6 echo reply", raw(ether() / ip6() / ICMPv6EchoReply(id=1, seq=1, data=DATA))
    about6 = raw(ip6(src=V6_B, dst=V6_A) / udp())
    for message, name in (
        (ICMPv6DestUnreach(code=4), "port unreachable"), (ICMPv6PacketTooBig(mtu=1280), "too big"),
        (ICMPv6TimeExceeded(), "time exceeded"), (ICMPv6ParamProblem(ptr=40), "parameter problem"),
    ):
        yield f"icmpv6 {name}", raw(ether() / ip6() / message / Raw(about6))
    near = {"hlim": 255, "src": LOCAL_A}
    group = "33:33:ff:00:00:02"
    option = ICMPv6NDOptSrcLLAddr(lladdr=MAC_A)
    yield "icmpv6 router solicitation", raw(ether() / ip6(dst="ff02::2", **near) / ICMPv6ND_RS() / option)
    prefix = ICMPv6NDOptPrefixInfo(prefix="2001:db8::", prefixlen=64)
    yield "icmpv6 router advertisement", raw(
        ether() / ip6(dst="ff02::1", **near) / ICMPv6ND_RA() / option / ICMPv6NDOptMTU(mtu=1500) / prefix
    )
    yield "icmpv6 neighbour solicitation", raw(
        ether(dst=group) / ip6(dst="ff02::1:ff00:2", **near) / ICMPv6ND_NS(tgt=LOCAL_B) / option
    )
    yield "icmpv6 neighbour solicitation, duplicate address", raw(
        ether(dst=group) / ip6(dst="ff02::1:ff00:2", hlim=255, src="::") / ICMPv6ND_NS(tgt=LOCAL_B)
    )
    yield "icmpv6 neighbour advertisement", raw(
        ether() / ip6(dst=LOCAL_B, **near) / ICMPv6ND_NA(tgt=LOCAL_A) / ICMPv6NDOptDstLLAddr(lladdr=MAC_A)
    )
    yield "icmpv6 redirect", raw(ether() / ip6(dst=LOCAL_B, **near) / ICMPv6ND_Redirect(tgt=LOCAL_A, dst=V6_B))
    yield "icmpv6 multicast report after hop-by-hop", raw(
        ether(dst="33:33:00:00:00:16") / ip6(dst="ff02::16", src=LOCAL_A, hlim=1)
        / IPv6ExtHdrHopByHop(options=[RouterAlert()]) / ICMPv6MLReport2()
    )
    yield "icmpv6 in ipv4", raw(ether() / ip4(proto=58) / Raw(b"\x80\x00" + bytes(6)))
    yield "igmp query", raw(
        ether(dst="01:00:5e:00:00:01")
        / ip4(dst="224.0.0.1", ttl=1, options=[IPOption_Router_Alert()])
        / IGMP(type=0x11, mrcode=20, gaddr="0.0.0.0")
    )
    yield "igmp report", raw(
        ether(dst="01:00:5e:01:01:01") / ip4(dst="239.1.1.1", ttl=1) / IGMP(type=0x16, mrcode=0, gaddr="239.1.1.1")
    )


def tunnels() -> Iterator[Named]:
    """Packets inside packets."""
    inner4, inner6 = ip4(src="172.16.0.1", dst="172.16.0.2"), ip6(src="fd00::1", dst="fd00::2")
    frame = ether(src="02:00:00:00:01:01", dst="02:00:00:00:01:02")
    outer = ether() / ip4()
    vx = VXLAN(flags=8, vni=42)
    yield "ipip, tcp", raw(outer / inner4 / tcp(443))
    yield "6in4, tcp", raw(outer / inner6 / tcp(443))
    yield "4in6, udp", raw(ether() / ip6() / inner4 / udp(53) / DATA)
    yield "6in6, tcp", raw(ether() / ip6() / inner6 / tcp(443))
    yield "gre, ipv4", raw(outer / GRE(proto=0x0800) / inner4 / tcp(443))
    yield "gre with key and checksum, ipv6", raw(
        outer / GRE(proto=0x86DD, key_present=1, key=7, chksum_present=1) / inner6 / udp()
    )
    yield "gre, frame", raw(outer / GRE(proto=0x6558) / frame / inner4 / udp())
    yield "gre version 1", raw(ether() / ip4(proto=47) / Raw(bytes.fromhex("3001880b0000000100000001")) / DATA)
    yield "ipv6 gre, ipv4", raw(ether() / ip6(nh=47) / GRE(proto=0x0800) / inner4 / udp())
    yield "vxlan, ipv4/tcp", raw(outer / udp(4789, chksum=0) / vx / frame / inner4 / tcp(443))
    yield "vxlan, ipv6/udp", raw(outer / udp(4789, chksum=0) / VXLAN(flags=8, vni=0xFFFFFF) / frame / inner6 / udp())
    yield "vxlan, vlan, ipv4/udp", raw(outer / udp(4789, chksum=0) / vx / frame / Dot1Q(vlan=7) / inner4 / udp())
    yield "vxlan without its flag", raw(
        outer / udp(4789, chksum=0) / VXLAN(flags=0, vni=0) / frame / inner4 / udp()
    )
    yield "ipv6 vxlan, ipv4/udp", raw(ether() / ip6() / udp(4789) / vx / frame / inner4 / udp())
    yield "geneve, ipv4/tcp", raw(
        outer / udp(6081, chksum=0) / GENEVE(vni=42, proto=0x6558, optionlen=0) / frame / inner4 / tcp(443)
    )
    option = GeneveOptions(classid=0x0102, type=0x80, length=2, data=bytes(8))
    yield "geneve with options, ipv6/udp", raw(
        outer / udp(6081, chksum=0) / GENEVE(vni=42, proto=0x6558, optionlen=3, options=[option])
        / frame / inner6 / udp()
    )
    yield "gtp-u, ipv4/udp", raw(outer / udp(2152, sport=2152) / GTP_U_Header(teid=7, gtp_type=255) / inner4 / udp())
    yield "gtp-u, ipv6/tcp", raw(
        outer / udp(2152, sport=2152) / GTP_U_Header(teid=7, gtp_type=255) / inner6 / tcp(443)
    )
    yield "gtp-u echo", raw(outer / udp(2152, sport=2152) / GTP_U_Header(teid=0, S=1, seq=1) / GTPEchoRequest())
    yield "mpls, ipv4/udp", raw(ether(type=0x8847) / label(16, 1) / inner4 / udp())
    yield "mpls twice, ipv6/tcp", raw(ether(type=0x8847) / label(16, 0) / label(17, 1) / inner6 / tcp())
    yield "mpls four times, nothing behind", raw(
        ether(type=0x8847) / label(1, 0) / label(2, 0) / label(3, 0) / label(4, 0)
    )
    yield "vlan, mpls multicast", raw(ether() / Dot1Q(vlan=5, type=0x8848) / label(99, 1) / inner4 / udp())
    yield "wireguard", raw(outer / udp(51820, sport=51820) / Raw(b"\x04\0\0\0" + bytes(28)))


def applications() -> Iterator[Named]:
    """What programs look for behind ports."""
    question = DNSQR(qname="example.org", qtype="A")
    yield "dns query", raw(ether() / ip4() / udp(53) / DNS(id=1, rd=1, qd=[question]))
    answer = DNSRR(rrname="example.org", type="A", ttl=60, rdata="192.0.2.1")
    yield "dns answer", raw(
        ether() / ip4() / udp(40000, sport=53) / DNS(id=1, qr=1, rd=1, ra=1, qd=[question], an=[answer])
    )
    yield "dns query, ipv6, aaaa", raw(
        ether() / ip6() / udp(53) / DNS(id=2, rd=1, qd=[DNSQR(qname="a.b.c.example.org", qtype="AAAA")])
    )
    yield "dns header only", raw(ether() / ip4() / udp(53) / Raw(bytes.fromhex("000101000001000000000000")))
    yield "dns name that points at itself", raw(
        ether() / ip4() / udp(53) / Raw(bytes.fromhex("000101000001000000000000c00c00010001"))
    )
    yield "dns over tcp", raw(ether() / ip4() / tcp(53, "PA") / Raw(b"\0\x1d") / DNS(id=1, rd=1, qd=[question]))
    yield "dhcp discover", raw(
        ether(dst="ff:ff:ff:ff:ff:ff") / ip4(src="0.0.0.0", dst="255.255.255.255")
        / udp(67, sport=68) / BOOTP(op=1, chaddr=bytes.fromhex("020000000001"), xid=1)
        / DHCP(options=[("message-type", "discover"), "end"])
    )
    yield "ntp", raw(ether() / ip4() / udp(123, sport=123) / Raw(b"\x1b" + bytes(47)))
    yield "http get", raw(ether() / ip4() / tcp(80, "PA") / Raw(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"))
    hello = bytes.fromhex("1603010031 0100002d 0303") + bytes(32) + bytes.fromhex("00 0002 1301 01 00 0000")
    yield "tls client hello", raw(ether() / ip4() / tcp(443, "PA") / Raw(hello))
    yield "quic initial", raw(
        ether() / ip4() / udp(443) / Raw(bytes.fromhex("c300000001 08 0102030405060708 00 00") + bytes(64))
    )
    yield "ssdp", raw(ether() / ip4(dst="239.255.255.250") / udp(1900) / Raw(b"M-SEARCH * HTTP/1.1\r\n\r\n"))


def sizes() -> Iterator[Named]:
    """Frames of a size: edges of headers, of minimum and maximum frames, of the test run's page."""
    for size in (42, 43, 60, 64, 128, 256, 512, 1024, 1500, 1514, 1518, 3520, 3521, 3712, 3713,
                 4096, 9014):
        body = size - 14 - 20 - 8
        filling = bytes(n % 251 for n in range(body))
        yield f"{size} bytes, ipv4/udp", raw(ether() / ip4() / udp(9) / filling)
    for size in (1514, 3520, 3521):
        filling = bytes(n % 251 for n in range(size - 14 - 40 - 20))
        yield f"{size} bytes, ipv6/tcp", raw(ether() / ip6() / tcp(443, "A") / filling)
    for byte, name in ((0x00, "zeros"), (0xFF, "ones")):
        for size in (14, 34, 64):
            yield f"{size} bytes of {name}", bytes([byte]) * size


def truncations() -> Iterator[Named]:
    """Every cut of three packets, each from where it differs from those before."""
    frame = ether(src="02:00:00:00:01:01", dst="02:00:00:00:01:02")
    vxlan = VXLAN(flags=8, vni=42)
    inner = ip4(src="172.16.0.1", dst="172.16.0.2") / udp(53)
    for name, packet, first in (
        ("ipv4/tcp", ether() / ip4() / tcp(80), 1),
        ("vlan 100, ipv6/tcp", ether() / Dot1Q(vlan=100) / ip6() / tcp(80), 14),
        ("vxlan, ipv4/udp", ether() / ip4() / udp(4789, chksum=0) / vxlan / frame / inner, 42),
    ):
        data = raw(packet)
        for size in range(first, len(data)):
            yield f"{name}, first {size} of {len(data)} bytes", data[:size]


GROUPS = (
    tags, link_layer, ipv4, ipv6, transport, control, tunnels, applications, sizes, truncations,
)


def packets() -> list[Named]:
    """All packets with their names, which are unique; so are the packets."""
    found: dict[bytes, str] = {}
    for group in GROUPS:
        for name, data in group():
            found.setdefault(data, name)
    return [(name, data) for data, name in found.items()]


def files() -> dict[Path, bytes]:
    """What this writes, by path."""
    named = packets()
    times = [START + STEP * number for number in range(len(named))]
    lines = [f"{n:3d} {len(data):5d} {name}" for n, (name, data) in enumerate(named)]
    return {
        PCAP: to_pcap([data for _, data in named], times),
        NAMES: ("# number, bytes, what\n" + "\n".join(lines) + "\n").encode(),
    }


def main() -> int:
    if sys.argv[1:] not in ([], ["--check"]):
        print(f"usage: {sys.argv[0]} [--check]", file=sys.stderr)
        return 2
    stale = 0
    for path, data in files().items():
        if "--check" not in sys.argv:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            print(f"{path.relative_to(ROOT)}: {len(data)} bytes")
        elif not path.exists() or path.read_bytes() != data:
            print(f"{path.relative_to(ROOT)} is not what {Path(__file__).name} writes", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
