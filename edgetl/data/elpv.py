"""The ELPV data set: photos of solar cells under electroluminescence, functional or defective.

Deitsch et al., "Automatic classification of defective photovoltaic module cells in electroluminescence images",
Solar Energy 2019 (arXiv 1807.02894). 2,624 grey photos of 300x300 pixels; CC BY-NC-SA 4.0.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from edgetl.data.examples import Example, Examples, Label
from edgetl.errors import DatasetError
from edgetl.outputs import Task

_FUNCTIONAL_BELOW = 0.5
"""Probability of a defect, as the experts judged: 0, 1/3, 2/3 or 1. The paper cuts here as well."""
_NAMES: dict[Task, tuple[str, ...]] = {
    "classification": ("defective", "functional"),
    "ordinal": ("functional", "likely_functional", "likely_defective", "defective"),
    "multi_label": ("defective", "monocrystalline"),
    "regression": ("defect_probability",),
}
_LABEL: dict[Task, Callable[[float, bool], Label]] = {
    "classification": lambda probability, _: int(probability < _FUNCTIONAL_BELOW),
    "ordinal": lambda probability, _: round(3 * probability),
    "multi_label": lambda probability, mono: (0,) * (probability >= _FUNCTIONAL_BELOW) + (1,) * mono,
    "regression": lambda probability, _: (probability,),
}
"""Probability of a defect, whether the cell is monocrystalline -> label."""


def load_elpv(task: Task | Literal["auto"] = "auto") -> Examples:
    """List the photos of the installed package `elpv-dataset`. The package itself is not imported.

    Args:
        task: the class functional or defective; the four levels of the experts' judgement in order; the labels
            defective and monocrystalline; or the probability of a defect, 0..1. `auto`: the class.

    Returns:
        The examples, with the column `cell_type`, mono or poly.

    Raises:
        DatasetError: the package is missing or damaged.
    """
    learned: Task = "classification" if task == "auto" else task
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise DatasetError("elpv: the package elpv-dataset is not installed. Run: pip install elpv-dataset")
    root = Path(spec.origin).parent / "data"
    label = _LABEL[learned]
    try:
        rows = [line.split() for line in (root / "labels.csv").read_text().splitlines() if line.strip()]
        items = tuple(
            Example(id=file, path=root / file, label=label(float(probability), cell == "mono"), values=(cell,))
            for file, probability, cell in rows
        )
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"elpv: {root / 'labels.csv'} is damaged: {error}. Run: pip install --force-reinstall elpv-dataset"
        ) from error
    items = tuple(sorted(items, key=lambda item: item.id))
    return Examples("elpv", root, _NAMES[learned], items, learned, ("cell_type",))
