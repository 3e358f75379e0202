"""Everything that was measured on a run, to look at: `python -m export.report RUN`. Measures nothing.

RUN/report.html, one page that needs no network; RUN/report.json, the figures; RUN/MODEL_CARD.md; and a table.
"""

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tyro.conf import Positional

from edgetl.config import checked, command, to_json
from edgetl.errors import ConfigError
from edgetl.rundir import RunDir, held, open_run, write_atomic
from export.reporting import table
from export.reporting.joined import Report, ReportRow, join

__all__ = ["Report", "ReportRow"]

PROG = "python -m export.report"
REPORT = "report.json"
PAGE = "report.html"
CARD = "MODEL_CARD.md"


@dataclass(frozen=True)
class Config:
    """Make one page of all that was measured on a run, RUN/report.html, with report.json, MODEL_CARD.md and a table."""

    run: Positional[Path]
    """Run directory (the --out of a recipe)."""
    photos: int = 12
    """Photos of each kind on the page (worst mistakes, disagreements); 0: none, where photos may not be passed on."""
    maps: int = 8
    """Photos on which the page shows where the network looks; 0: none, which is quicker."""
    audit: Path | None = None
    """The --out of `recipes.audit`; RUN/audit is found by itself."""
    data: str = ""
    """Where the photos are now, if they were moved since the run."""


def main(config: Config) -> Report:
    """Join artifacts, evaluation and latencies by their hashes and write report.json, report.html and MODEL_CARD.md.

    Raises:
        ConfigError: a number below 0.
        RunError: the run or one of its reports is missing or damaged, or another process is writing it.
        ArtifactError: a report is about another file than the one that is there.
    """
    config = checked(config)
    for name, number in (("photos", config.photos), ("maps", config.maps)):
        if number < 0:
            raise ConfigError(f"--{name} {number}: give how many are shown, or 0 for none")
    with held(open_run(config.run)) as run:
        return _reported(run, config)


def _reported(run: RunDir, config: Config) -> Report:
    report, evaluation = join(run)
    from export.reporting.card import card
    from export.reporting.material import gather
    from export.reporting.page import page
    from export.reporting.pictures import pictures
    from export.reporting.sections import sections
    from export.reporting.verdict import summary

    material = gather(run, report, evaluation, data=config.data, audit=config.audit)
    shown = sections(material, pictures(material, config.photos, config.maps))
    told = summary(material)
    made = f"Made by edgetl {version('edgetl')} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    html = page(run.path.resolve().name, told, shown, shipped=report.recommended, made=made)
    write_atomic(run.path / REPORT, to_json(report))
    write_atomic(run.path / PAGE, html)
    write_atomic(run.path / CARD, card(material, told))
    return report


def show(report: Report) -> str:
    """The table for the terminal, and what to know with it."""
    return table.show(report, (REPORT, PAGE, CARD))


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
