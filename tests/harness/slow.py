"""Fails a run if a test without the mark ``slow`` takes long: a plugin for ``make check``.

    pytest -p tests.harness.slow --slow-seconds 3 -m "not slow"

Time in which anything waited for a processor does not count, but for the processor time that the
test took itself: a loaded machine makes no test slow. (Linux says how long that was in
/proc/pressure; where it does not, processor time alone counts.)
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from time import monotonic  # this function, whatever a test makes of the module's

import pytest

PRESSURE = Path("/proc/pressure/cpu")
_PROPERTY = "slow_seconds"


def processor_seconds() -> float:
    """Of this process and of the children that it has waited for."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(each)[:2]) for each in who)


def waited_seconds() -> float | None:
    """How long something on this machine has waited for a processor, since its start."""
    try:
        some = PRESSURE.read_text().splitlines()[0]
    except OSError:
        return None
    return int(some.rpartition("=")[2]) / 1e6


def own_seconds(wall: float, processor: float, waited: float | None) -> float:
    """What a test would take on an idle machine, or less."""
    undisturbed = 0.0 if waited is None else wall - waited
    return min(wall, max(processor, undisturbed))


class Slow:
    """The tests of this run that took too long without the mark."""

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self.found: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        begin, processor, waited = monotonic(), processor_seconds(), waited_seconds()
        try:
            return (yield)
        finally:
            now = waited_seconds()
            item.user_properties.append(
                (
                    _PROPERTY,
                    own_seconds(
                        monotonic() - begin,
                        processor_seconds() - processor,
                        None if now is None or waited is None else now - waited,
                    ),
                )
            )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """In the process that reports, with xdist that of all workers."""
        seconds = dict(report.user_properties).get(_PROPERTY)
        if report.when != "call" or not isinstance(seconds, float) or "slow" in report.keywords:
            return
        if seconds > self.limit_seconds:
            self.found[report.nodeid] = seconds

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.found:
            terminalreporter.section("tests without the mark slow")
        for name, seconds in sorted(self.found.items(), key=lambda each: -each[1]):
            terminalreporter.line(f"SLOW {name}: {seconds:.1f} s; mark it: @pytest.mark.slow")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow-seconds", type=float, help="fail if a test without the mark is slower")


def pytest_configure(config: pytest.Config) -> None:
    limit: float | None = config.getoption("--slow-seconds")
    if limit is not None:
        config.pluginmanager.register(Slow(limit))
