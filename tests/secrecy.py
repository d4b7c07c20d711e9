"""Whatever a test prints is searched for the keys that it used; where one is found, the test has failed.

Facts
  - Every key of these tests begins with ``sk-test``, and pytest captures what a test, the proxy in it and the
    processes that it starts print and log.

Rules
  1. What goes through a pipe is printed as well (`overhear`), so that it is searched too.
  2. A test that fails for a reason of its own may show what it likes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Generator

import pytest

KEY = "sk-test"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail the test whose captured output, setup and teardown included, holds a key."""
    report = yield
    if report.passed:
        for title, printed in report.sections:
            if KEY in printed:
                line = next(line for line in printed.splitlines() if KEY in line)
                report.outcome = "failed"
                report.longrepr = f"{item.nodeid}: a key was printed ({title}):\n{line}"
    return report


def overhear(process: asyncio.subprocess.Process) -> None:
    """Print what a process says into its pipes, when it says it."""
    for reader in (process.stdout, process.stderr):
        if reader is not None:
            _overhear(reader)


def _overhear(reader: asyncio.StreamReader) -> None:
    feed = reader.feed_data

    def printing(data: bytes) -> None:
        sys.stderr.write(data.decode("utf-8", "backslashreplace"))
        feed(data)

    # What has come already, before anybody could listen.
    sys.stderr.write(bytes(reader._buffer).decode("utf-8", "backslashreplace"))
    reader.feed_data = printing  # type: ignore[method-assign]
