"""Tests of the kernel matrix: what can be told without a boot, and one boot where QEMU is there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import cost
from bench.chains import MANUAL, PROGRAMS, BuildError
from bench.kernels import initramfs
from bench.kernels.fetch import STORE, FetchError, newest_image
from bench.kernels.matrix import Job, Link, MatrixError, boot_jobs, parse_console, write_jobs

ALWAYS_PASS = Link(PROGRAMS / "el" / "always_pass.o", {"always_pass": 0})


def test_newest_plain_image_is_chosen() -> None:
    names = [
        "linux-image-6.1.0-9-amd64-unsigned",
        "linux-image-6.1.0-47-amd64-unsigned",
        "linux-image-6.1.0-50-cloud-amd64-unsigned",
        "linux-image-6.1.0-50-rt-amd64-unsigned",
        "linux-image-6.1.0-48-amd64",
        "linux-image-6.12.0-99-amd64-unsigned",
        "linux-binary-7.2.13+deb14-amd64",
        "linux-binary-7.2.13+deb14-arm64-16k",
    ]
    assert newest_image(names, "6.1", "amd64") == "linux-image-6.1.0-47-amd64-unsigned"
    assert newest_image(names, "7.2", "amd64") == "linux-binary-7.2.13+deb14-amd64"
    with pytest.raises(FetchError, match=r"no kernel 7\.2 for arm64"):
        newest_image(names, "7.2", "arm64")


def test_console_is_parsed() -> None:
    boot = parse_console(
        "SeaBIOS\r\nKERNEL release=6.1.0-50-amd64 machine=x86_64\r\n"
        "[ 1.0] noiseRESULT no\r\nRESULT job=a retval=2 ns=59 bytes=64:00000001\r\n"
        "ERROR job=b load x.o: Invalid argument | R0 !read_ok\r\nDONE failed=1\r\n",
        "6.1",
    )
    assert boot.release == "6.1.0-50-amd64"
    assert boot.results == {
        "a": {"retval": 2, "ns": 59, "bytes": "64:00000001"},
        "b": {"error": "load x.o: Invalid argument | R0 !read_ok"},
    }


@pytest.mark.parametrize(
    "console",
    [
        "",
        "Kernel panic - not syncing\r\n",
        "KERNEL release=1\nRESULT job=a retval=2 ns=59\n",
        "KERNEL release=1\nERROR job=? /t/jobs:2: not understood\nDONE failed=1\n",
    ],
)
def test_console_without_an_end_is_an_error(console: str) -> None:
    with pytest.raises(MatrixError, match=r"6\.1 did not finish"):
        parse_console(console, "6.1")


def test_initramfs_is_reproducible_and_cpio_reads_it(tmp_path: Path) -> None:
    if not shutil.which("cpio"):
        pytest.skip("cpio is missing: apt-get install cpio")
    archives = []
    for name, order in (("one", ("a", "b/c")), ("two", ("b/c", "a"))):
        for path in order:
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(path)
        runner = tmp_path / "runner"
        runner.write_bytes(b"\x7fELF" + b"r" * 33)
        archives.append(initramfs.build(runner, tmp_path / name, runner))
    assert archives[0] == archives[1]
    raw = subprocess.run(["gzip", "-dc"], input=archives[0], capture_output=True, check=True).stdout
    listed = subprocess.run(["cpio", "-t"], input=raw, capture_output=True, check=True).stdout
    assert listed.decode().split() == [
        *("boot", "boot/config", "dev", "dev/console", "init", "t", "t/a", "t/b", "t/b/c")
    ]
    out = tmp_path / "out"
    out.mkdir()
    command = ["cpio", "-id", "--quiet", "t/*", "init"]
    subprocess.run(command, input=raw, cwd=out, check=True)
    assert (out / "t/b/c").read_text() == "b/c"
    assert (out / "init").read_bytes() == runner.read_bytes()


def test_two_jobs_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MatrixError, match="same name"):
        write_jobs([Job("a", [ALWAYS_PASS]), Job("a", [ALWAYS_PASS])], tmp_path)


def test_manual_links_are_the_corpus_plus_tail_calls() -> None:
    cost.check_manual()


def test_a_changed_manual_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("filter", "metrics"):
        source = (MANUAL / f"{name}.c").read_text()
        changed = source.replace("if (counter)", "if (0 && counter)")
        (tmp_path / f"{name}.c").write_text(changed)
    monkeypatch.setattr("bench.cost.MANUAL", tmp_path)
    with pytest.raises(BuildError, match=r"metrics\.c differs"):
        cost.check_manual()


def test_results_that_did_not_do_their_work_fail() -> None:
    packet = cost.packets()["ipv6-tcp"]
    job = Job("a", [ALWAYS_PASS] * 3, packet.data)
    good: dict[str, int | str] = {"retval": 2, "ns": 600, "hits": 40, "records": 1000}
    assert not cost.check_result(job, packet, good)
    assert "not XDP_PASS" in cost.check_result(job, packet, {**good, "retval": 1})
    assert "999 log records" in cost.check_result(job, packet, {**good, "records": 999})
    assert "not settled" in cost.check_result(job, packet, {**good, "hits": 1})
    assert cost.check_result(job, packet, {"error": "why"}) == "why"


def test_a_chain_over_the_limit_fails() -> None:
    def table(chain: int) -> dict[str, dict[str, dict[str, int | str]]]:
        return {"6.1": {name: {"manual": 500, "chain": chain} for name in cost.packets()}}

    assert cost.find_failures(table(510), 1.02) == []
    lines = cost.find_failures(table(511), 1.02)
    assert [line.split(":")[0] for line in lines] == [f"6.1 {name}" for name in cost.packets()]
    assert all("allowed 1.02" in line for line in lines)


def test_only_the_expected_failure_is_expected() -> None:
    (arch, kernel, way), why = next(iter(cost.EXPECTED.items()))

    def lines(value: int | str, arch: str = arch, kernel: str = kernel) -> list[str]:
        return cost.find_failures({kernel: {"ipv6-tcp": {way: value}}}, 1.02, arch)

    assert lines(f"load x.o: Invalid argument | {why}") == []
    assert "works, but is expected to say" in lines(600)[0]
    assert "Out of memory" in lines("load x.o: Out of memory")[0]
    assert why in lines(why, kernel="6.1")[0]
    assert why in lines(why, arch="x86_64")[0]


def test_two_boots_give_the_same_numbers() -> None:
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("qemu-system-x86_64 is missing: apt-get install qemu-system-x86")
    if not (STORE / "x86_64" / "6.1" / "kernel.json").exists():
        pytest.skip("kernel 6.1 is not fetched: python bench/kernels/fetch.py 6.1")
    jobs = [
        Job("pass", [ALWAYS_PASS], b"\0" * 64),
        Job("no-such-program", [Link(ALWAYS_PASS.object, {"nope": 0})], b"\0" * 64),
        Job("loads", [ALWAYS_PASS], kind="load"),
    ]
    first = boot_jobs(jobs, ["6.1"])["6.1"].results
    second = boot_jobs(list(reversed(jobs)), ["6.1"])["6.1"].results
    assert first == second
    assert first["pass"]["retval"] == cost.XDP_PASS
    assert int(first["pass"]["ns"]) > 0
    assert first["loads"] == {"loaded": 1}
    assert "no program nope" in str(first["no-such-program"]["error"])
