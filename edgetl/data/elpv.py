"""The ELPV data set: photos of solar cells under electroluminescence, functional or defective.

Deitsch et al., "Automatic classification of defective photovoltaic module cells in electroluminescence images",
Solar Energy 2019 (arXiv 1807.02894). 2,624 grey photos of 300x300 pixels; CC BY-NC-SA 4.0.
"""

import importlib.util
from pathlib import Path

from edgetl.data.examples import Example, Examples
from edgetl.errors import DatasetError

_CLASSES = ("defective", "functional")
_FUNCTIONAL_BELOW = 0.5
"""Probability of a defect, as the experts judged: 0, 1/3, 2/3 or 1. The paper cuts here as well."""


def load_elpv() -> Examples:
    """List the photos of the installed package `elpv-dataset`. The package itself is not imported.

    Raises:
        DatasetError: the package is missing or damaged.
    """
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise DatasetError("elpv: the package elpv-dataset is not installed. Run: pip install elpv-dataset")
    root = Path(spec.origin).parent / "data"
    try:
        rows = [line.split() for line in (root / "labels.csv").read_text().splitlines() if line.strip()]
        items = tuple(
            Example(id=file, path=root / file, label=int(float(probability) < _FUNCTIONAL_BELOW))
            for file, probability, _cell_type in rows
        )
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"elpv: {root / 'labels.csv'} is damaged: {error}. Run: pip install --force-reinstall elpv-dataset"
        ) from error
    return Examples("elpv", root, _CLASSES, tuple(sorted(items, key=lambda item: item.id)))
