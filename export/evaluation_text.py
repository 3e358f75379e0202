"""An evaluation as text for a terminal: one table of models, and what slices, temperature and spoilt photos say."""

import textwrap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from edgetl.console import table_lines
from edgetl.outputs import Task
from edgetl.printable import printable
from edgetl.robustness import CORRUPTIONS
from edgetl.scores import PRIMARY, Scores

if TYPE_CHECKING:
    from edgetl.slices import Disparity
    from export.evaluate import Details, EvaluationReport

WIDTH = 125
SURE = 0.05
"""From this p on, chance explains that a slice is behind."""
Cell = Callable[[Any], str]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _each(name: str) -> Cell:
    """A figure of all targets, in their order."""
    return lambda scores: ", ".join(f"{getattr(target, name):.4g}" for target in scores.targets)


_CLASSES: dict[str, Cell] = {
    "balanced\n%": lambda scores: _percent(scores.balanced_accuracy),
    "F1\n%": lambda scores: _percent(scores.f1),
    "ROC\nAUC": lambda scores: _number(scores.roc_auc),
    "log\nloss": lambda scores: _number(scores.log_loss),
    "calib.\nerror %": lambda scores: _percent(scores.calibration_error),
}
_FIGURES: dict[Task, dict[str, Cell]] = {
    "classification": _CLASSES,
    "ordinal": {
        "steps\noff": lambda scores: f"{scores.mean_steps:.3f}",
        "kappa\n": lambda scores: _number(scores.kappa),
        "F1\n%": _CLASSES["F1\n%"],
        "log\nloss": _CLASSES["log\nloss"],
        "calib.\nerror %": _CLASSES["calib.\nerror %"],
    },
    "multi_label": {
        "micro\nF1 %": lambda scores: _percent(scores.micro_f1),
        "all right\n%": lambda scores: _percent(scores.subset_accuracy),
        "mean\nAP": lambda scores: _number(scores.average_precision),
        "log\nloss": _CLASSES["log\nloss"],
        "calib.\nerror %": _CLASSES["calib.\nerror %"],
    },
    "regression": {"MAE\n": _each("mae"), "RMSE\n": _each("rmse"), "bias\n": _each("bias")},
}
"""What stands behind the primary figure of each task, title -> cell."""
_LEGEND: dict[Task, str] = {
    "classification": "balanced, F1, ROC AUC: means over the classes",
    "ordinal": "steps off: how far the class named is from the right one; kappa: quadratic weights; F1: mean over the "
    "classes",
    "multi_label": "F1: mean over the labels, at their thresholds; all right: photos without a mistake; AP: average "
    "precision",
    "regression": "R2: mean over the targets; MAE, RMSE, bias: in the unit of each target, {names}",
}


def text(report: "EvaluationReport") -> str:
    """Everything in lines of at most 125 characters."""
    names = ", ".join(target.name for target in getattr(report.keras, "targets", ()))
    figure = PRIMARY[report.keras.task]
    legend = [
        f"{report.keras.samples} test photos. drop: points of {figure} lost against Keras on the same photos; "
        "as Keras: says the same",
        _LEGEND[report.keras.task].format(names=names),
    ]
    tables = [_models(report), legend, _calibration(report), list(_slices(report)), _robustness(report)]
    return "\n".join(part for lines in tables for line in lines for part in _fitting(line))


def _fitting(line: str) -> list[str]:
    """A line, in several where names are long."""
    return [line] if len(line) <= WIDTH else textwrap.wrap(line, WIDTH, subsequent_indent="  ")


def _details(report: "EvaluationReport") -> "Iterator[tuple[str, Details]]":
    yield "keras", report.keras_details
    for artifact in report.artifacts:
        yield artifact.scheme, artifact.details


def _lines(titles: list[str], rows: list[list[str]]) -> list[str]:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table_lines(table, WIDTH)


def _models(report: "EvaluationReport") -> list[str]:
    figures = _FIGURES[report.keras.task]
    titles = ["", f"{PRIMARY[report.keras.task]}\n%", "95 %\ninterval", "drop\n", "95 %\ninterval", "as Keras\n%"]

    def behind(scores: Scores) -> list[str]:
        return [cell(scores) for cell in figures.values()]

    def before(scores: Scores) -> list[str]:
        return [_percent(scores.primary), f"{100 * scores.primary_low:.1f}..{100 * scores.primary_high:.1f}"]

    rows = [["keras", *before(report.keras), "", "", "", *behind(report.keras)]]
    for artifact in report.artifacts:
        found = artifact.against_keras
        interval = f"{100 * found.drop_low:+z.2f}..{100 * found.drop_high:+z.2f}"
        middle = [f"{100 * found.drop:+z.2f}", interval, _percent(found.agreement)]
        rows.append([artifact.scheme, *before(artifact.scores), *middle, *behind(artifact.scores)])
    return _lines([*titles, *figures], rows)


def _calibration(report: "EvaluationReport") -> list[str]:
    """What a temperature would make of the scores."""
    rows = [
        [name, f"{found.temperature:.2f}", _number(found.log_loss_after), _percent(found.calibration_error_after)]
        for name, details in _details(report)
        if (found := details.temperature)
    ]
    if not rows:
        return []
    table = _lines(["", "temperature", "log loss then", "calib. error % then"], rows)
    return [
        *table,
        "temperature: fitted on the validation photos; logits are to be divided by it",
    ]


def _slices(report: "EvaluationReport") -> Iterator[str]:
    """The slice of each column that is most behind: of Keras always, of artifacts where chance does not explain it."""
    for name, details in _details(report):
        for column in details.slices:
            if column.worst.p < SURE or name == "keras":
                part = next(each for each in column.slices if each.value == column.worst.value)
                interval = f"{100 * part.low:.1f}..{100 * part.high:.1f}"
                whose = f"{_percent(part.figure)} % ({interval}) of {part.samples} photos"
                yield printable(f"{name}, {column.column}: worst {part.value}, {whose}, {_behind(column.worst)}")
            if column.most_lost and column.most_lost.p < SURE:
                lost = column.most_lost
                yield printable(f"{name}, {column.column}: {lost.value} lost more against Keras, {_behind(lost)}")


def _behind(found: "Disparity") -> str:
    verdict = "knowledge bias, or harder photos" if found.p < SURE else "chance explains it"
    interval = f"{100 * found.low:+z.1f}..{100 * found.high:+z.1f}"
    return f"{100 * found.gap:.1f} points behind the rest ({interval}), p {found.p:.2g}: {verdict}"


def _robustness(report: "EvaluationReport") -> list[str]:
    rows = []
    for name, details in _details(report):
        if found := details.robustness:
            cells = [" ".join(f"{100 * figure:.1f}" for figure in row.primary) for row in found.corrupted]
            rows.append([name, f"{100 * found.clean:.2f}", *cells, f"{100 * found.mean_drop:+z.2f}"])
    if not rows:
        return []
    strengths = [
        f"{kind}: {', '.join(f'{strength:g}' for strength in row.strengths)} ({row.unit})"
        for kind, row in CORRUPTIONS.items()
    ]
    return [*_lines(["", "clean", *CORRUPTIONS, "mean drop"], rows), *strengths]
