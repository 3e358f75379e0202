"""The counts of these tests, which `docs/reliability.md` states, are printed at the end of a run."""

from collections.abc import Iterator

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have counted with pytest's `record_property`."""
    lines = [line for report in terminalreporter.getreports("passed") for line in _counts(report.user_properties)]
    if lines:
        terminalreporter.section("counts")
        for line in lines:
            terminalreporter.write_line(line)


def _counts(properties: list[tuple[str, object]]) -> Iterator[str]:
    for name, value in properties:
        yield f"{name}: {value}"
