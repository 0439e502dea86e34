"""Fixtures for all tests: the kernel of this machine, and a bpffs that nobody else sees."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from support.kernel import BPFFS, REQUIRE, enter_private_mounts, why_unusable

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started by nohup, or in the background
    with contextlib.suppress(ValueError):  # not the main thread
        # commands that the tests interrupt must not inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)

# a machine under load is slow: time is measured in bench/, never asserted
settings.register_profile("bpfchain", deadline=None)
settings.load_profile("bpfchain")


def pytest_configure(config: pytest.Config) -> None:
    """A skip always says why: as if -rs were given."""
    if "s" not in config.option.reportchars:
        config.option.reportchars += "s"


ALLOWED_SKIPS = (
    # a skip that CI may see, by a piece of its reason; everything else that is skipped there fails
    "Debian has no",  # a package of sid moved on: the newer one is tested instead
    "add its digest here",
)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a part that was skipped has not been tested: that is a failure."""
    if os.environ.get("CI") != "true" or hasattr(session.config, "workerinput"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter is not None else []
    strange = [
        report for report in skipped
        if not any(known in str(report.longrepr) for known in ALLOWED_SKIPS)
    ]  # fmt: skip
    if strange and session.exitstatus == 0:
        print(f"\n{len(strange)} tests were skipped, which CI does not allow (see above)")
        session.exitstatus = 1


@pytest.fixture(scope="session", autouse=True)
def private_mounts() -> str:
    """Moves the test process away from the host's bpffs; why that failed, empty if it did not.

    Of all tests, so that no pin that a library makes on its own is left on the host.
    """
    if os.geteuid() != 0:
        return "a private bpffs needs root"
    try:
        enter_private_mounts()
    except OSError as error:
        return f"no private bpffs: {error}"
    return ""


@pytest.fixture(scope="session")
def kernel(private_mounts: str) -> None:
    """The test needs a kernel that loads BPF: it is skipped, or with BPFCHAIN_REQUIRE_KERNEL=1 it
    fails, saying why, where there is none."""
    reason = why_unusable() or private_mounts
    if not reason:
        return
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{reason} ({REQUIRE}=1)", pytrace=False)
    pytest.skip(f"{reason} (set {REQUIRE}=1 to make this a failure)")


@pytest.fixture
def bpffs(kernel: None) -> Iterator[Path]:
    """An empty folder in the private bpffs, removed with all pins in it."""
    folder = BPFFS / f"test_{uuid.uuid4().hex}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)
