"""Which column of a table is what: by their names, or as the user says."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgetl.errors import DatasetError
from edgetl.outputs import Task

PHOTO_COLUMNS = ("path", "file_name")
"""Where a photo lies, relative to the table's folder; the second is what Hugging Face calls it."""


@dataclass(frozen=True)
class Labelling:
    """What the user says of the labels; what is left empty is told by the names of columns."""

    task: Task | Literal["auto"] = "auto"
    label: str = ""
    """Column of the class or of the labels."""
    targets: tuple[str, ...] = ()
    """Columns of numbers."""
    class_order: tuple[str, ...] = ()
    """Names of ordinal classes from low to high."""


@dataclass(frozen=True)
class Roles:
    """Which column, by position, is what."""

    task: Task
    photo: int
    label: tuple[int, ...]
    split: int | None
    group: int | None
    weight: int | None
    rest: tuple[int, ...]


def roles_of(columns: Sequence[str], path: Path, wanted: Labelling) -> Roles:
    """Find out which column is what.

    Args:
        columns: their names.
        path: of the table, for the message.
        wanted: what the user said of the labels.

    Raises:
        DatasetError: a column is missing, or there are some for more than one task.
    """
    task, labels = _task_and_labels(columns, path, wanted)
    photo = photo_column(columns, path)
    at = {name: index for index, name in enumerate(columns)}
    taken = {columns[photo], *labels, "split", "group", "weight", ""}
    return Roles(
        task,
        photo,
        tuple(at[name] for name in labels),
        at.get("split"),
        at.get("group"),
        at.get("weight"),
        tuple(index for name, index in at.items() if name not in taken),
    )


def photo_column(columns: Sequence[str], path: Path) -> int:
    """Find the column that says where a photo lies.

    Args:
        columns: their names.
        path: of the table, for the message.

    Raises:
        DatasetError: there is none.
    """
    photo = next((name for name in PHOTO_COLUMNS if name in columns), None)
    if photo is None:
        raise DatasetError(f"{path}: no column path (or file_name). {nearest('path', columns)} Rename one or add it")
    return columns.index(photo)


def _task_and_labels(columns: Sequence[str], path: Path, wanted: Labelling) -> tuple[Task, tuple[str, ...]]:
    """The task, and the columns that hold what is to be learned."""
    targets = wanted.targets or tuple(name for name in columns if name.startswith("target"))
    label = (wanted.label or "label",)
    several = (wanted.label or ("labels" if "labels" in columns or "label" not in columns else "label"),)
    by_task: dict[Task, tuple[str, ...]] = {
        "classification": label,
        "ordinal": label,
        "multi_label": several,
        "regression": targets or ("target",),
    }
    task = wanted.task if wanted.task != "auto" else _told_task(columns, path, wanted, by_task)
    if wanted.class_order and task != "ordinal":
        raise DatasetError(f"{path}: classes in an order (--class-order) are for --task ordinal, not {task}")
    if wanted.targets and task != "regression":
        raise DatasetError(f"{path}: --targets are for --task regression, not {task}. Name the column by --label")
    for name in by_task[task]:
        if name not in columns:
            option = "targets" if task == "regression" else "label"
            raise DatasetError(
                f"{path}: no column {name} for --task {task}. {nearest(name, columns)} Name it by --{option}"
            )
    return task, by_task[task]


def _told_task(columns: Sequence[str], path: Path, wanted: Labelling, by_task: Mapping[Task, tuple[str, ...]]) -> Task:
    """The task that options, or else the names of columns, tell."""
    if wanted.targets:
        return "regression"
    if wanted.class_order:
        return "ordinal"
    if wanted.label:
        return "classification"
    usual: dict[Task, tuple[str, ...]] = {
        "classification": ("label",),
        "multi_label": ("labels",),
        "regression": by_task["regression"],
    }
    found = [task for task, names in usual.items() if set(names) <= set(columns)]
    if len(found) > 1:
        raise DatasetError(
            f"{path}: columns for more than one task: {', '.join(usual[t][0] for t in found)}. "
            f"Say which: --task {' or --task '.join(found)}"
        )
    if not found:
        raise DatasetError(
            f"{path}: no column label, labels or target. {nearest('label', columns)} Rename one, or name it by --label "
            "or --targets"
        )
    return found[0]


def nearest(name: str, names: Iterable[str], *, among: str = "It has") -> str:
    """Say what there is instead of a name, and which is likely meant."""
    there = {each.lower(): each for each in names if each}
    near = difflib.get_close_matches(name.lower(), there, n=1)
    meant = f" Did you mean {there[near[0]]}?" if near else ""
    return f"{among} {', '.join(list(there.values())[:12]) or 'none'}.{meant}"
