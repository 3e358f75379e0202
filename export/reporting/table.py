"""The report as a table for the terminal."""

from collections.abc import Mapping, Sequence

from edgetl.console import table_lines
from edgetl.outputs import Task
from edgetl.scores import PRIMARY
from export.devices import DeviceLatency, shown
from export.reporting.joined import Report, ReportRow

LOST: Mapping[Task, str] = {"classification": "recall", "ordinal": "recall", "multi_label": "F1", "regression": "R2"}
"""What `ReportRow.drops` are points of."""


def show(report: Report, files: Sequence[str]) -> str:
    """The table, and what to know with it.

    Args:
        report: all figures.
        files: names of what was written into the run directory, the figures first.
    """
    name, lost = PRIMARY[report.task], "the photos that only one of the two gets right"
    error = report.keras_calibration_error
    calibrated = "" if error is None else f", calibration error {100 * error:.2f} %"
    between = lost if report.artifacts[0].lost is not None else "a bootstrap of the photos"
    figures, *rest = (f"{report.run}/{file}" for file in files)
    lines = [
        *_table(report),
        f"{report.artifacts[0].samples} test photos of {report.data}; Keras itself: "
        f"{100 * report.keras_primary:.2f} %{calibrated}",
        f"drop: points of {name} lost against Keras; its interval is from {between}",
        *filter(None, (uneven(row, report) for row in report.artifacts)),
        _circumstances(report),
        *_devices(report),
        *report.notes,
        f"files: {report.run}/export/<scheme>.tflite; figures: {figures}",
        *([f"to look at: {', '.join(rest)}"] if rest else []),
    ]
    return "\n".join(lines)


def _table(report: Report) -> list[str]:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("scheme", no_wrap=True)
    titles = ("size\nMB", "gzip\nMB", f"{PRIMARY[report.task]}\n%", "95 %\ninterval", "drop\n", "95 %\ninterval")
    for title in (*titles, "as Keras\n%", "calib.\nerror %", "ms\nmedian", "ms\np90"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in report.artifacts:
        table.add_row(
            row.scheme,
            f"{row.size_bytes / 1e6:.2f}",
            f"{row.gzip_bytes / 1e6:.2f}",
            f"{100 * row.primary:.2f}",
            f"{100 * row.primary_low:.1f}-{100 * row.primary_high:.1f}",
            f"{100 * row.drop:+z.2f}",
            f"{100 * row.drop_low:+z.2f}..{100 * row.drop_high:+z.2f}",
            f"{100 * row.agreement:.2f}",
            "-" if row.calibration_error is None else f"{100 * row.calibration_error:.2f}",
            *(_ms(time) for time in (row.latency_ms_median, row.latency_ms_p90)),
        )
    return table_lines(table, 121)  # the last one is the table's margin


def _devices(report: Report) -> list[str]:
    """This machine and the devices, side by side."""
    here = {
        row.scheme: DeviceLatency(report.threads, row.latency_ms_median, row.latency_ms_p90, None, None, "")
        for row in report.artifacts
        if row.latency_ms_median is not None
    }
    return shown(report.devices, here) if report.devices else []


def _ms(time: float | None) -> str:
    return "-" if time is None else f"{time:.2f}" if time < 1000 else f"{time:.0f}"


def uneven(row: ReportRow, report: Report) -> str:
    """Name the output that lost more than its share, if one did: what the overall drop hides."""
    losses = [
        (drop, round(drop * samples), samples, name)
        for drop, (name, samples) in zip(row.drops, report.output_samples.items(), strict=True)
        # A share is what the interval of the overall drop allows; one photo alone is no sign of anything.
        if drop is not None and drop > max(row.drop_high, 0) and round(drop * samples) > 1
    ]
    if not losses:
        return ""
    drop, photos, samples, name = max(losses)
    more = f"; so did {len(losses) - 1} more {_kind(report.task, len(losses) - 1)}" if len(losses) > 1 else ""
    of = f" ({photos} of {samples} photos)" if row.lost is not None else ""
    return f"{row.scheme}: {name} lost more than its share, {100 * drop:.1f} points of {LOST[report.task]}{of}{more}"


def _kind(task: Task, count: int) -> str:
    return {"multi_label": "label(s)", "regression": "target(s)"}.get(task, "class(es)")


def _circumstances(report: Report) -> str:
    if not report.threads:
        return f"latency: not measured here; python -m export.benchmark {report.run}"
    busy = "; the machine was busy: do not trust the times" if report.noisy else ""
    return f"latency: {report.threads} thread(s), {report.kernels}, {report.device}{busy}"
