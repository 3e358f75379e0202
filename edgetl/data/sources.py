"""Where labelled examples come from: folders of classes or of splits, tables, URLs, and data sets by name."""

import contextlib
import dataclasses
import difflib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

from edgetl.data.columns import Labelling, nearest
from edgetl.data.elpv import load_elpv
from edgetl.data.examples import SPLIT_NAMES, Example, Examples, SplitName, ordered
from edgetl.data.images import EXTENSIONS
from edgetl.data.manifest import load_manifest, metadata_tables
from edgetl.data.remote import fetch, fetched, is_url, renamed
from edgetl.data.scan import Found, check_name, scan
from edgetl.data.tables import SUFFIXES
from edgetl.data.tfds import tfds_folder
from edgetl.errors import ConfigError, DatasetError
from edgetl.outputs import Task

log = logging.getLogger(__name__)

NAMED: dict[str, Callable[[Task | Literal["auto"]], Examples]] = {"elpv": load_elpv}
"""Data sets that come as a package: name -> loader."""
TFDS = "tfds:"
"""What a data set of TensorFlow Datasets begins with."""
FOLDER = "folder"
"""Column of a folder of classes: where in its class's folder a photo lies; absent if all lie right in it."""

Key = tuple[SplitName | None, str]
"""One class folder: split, class name."""
LAYOUT = "<class>/<photo>.jpg, or train/<class>/<photo>.jpg beside validation/ and test/"


def load(
    data: str | Path,
    *,
    task: Task | Literal["auto"] = "auto",
    label: str = "",
    targets: Sequence[str] = (),
    group: str = "",
    class_order: Sequence[str] = (),
) -> Examples:
    """Find all labelled photos of a data set. No photo is opened.

    A name out of `NAMED` without a path separator means that data set, even if a folder of that name exists;
    `./elpv`, or a Path, means the folder.

    Args:
        data: a folder in one of the two layouts; a Hugging Face image folder; a table, see `manifest`; the name of a
            data set; `tfds:NAME`, a prepared data set of TensorFlow Datasets; or the URL of a folder or a table, see
            `remote`.
        task: what is learned; `auto` goes by the columns of a table, and is classification elsewhere.
        label: column of a table that holds the class or the labels; its name is `label` or `labels` otherwise.
        targets: columns of a table that hold numbers to be learned; otherwise those whose names begin with `target`.
        group: column whose values are groups; otherwise `group`.
        class_order: the ordinal classes from low to high; otherwise numbers by value, names as people count.

    Returns:
        The examples, sorted by id; those of a folder of splits carry their split.

    Raises:
        DatasetError: nothing is there, or not in a form that can be used.
    """
    wanted = Labelling(task, label, tuple(targets), tuple(class_order))
    return _grouped(_find(data, wanted), group)


def _find(data: str | Path, wanted: Labelling) -> Examples:
    if isinstance(data, str) and data in NAMED:
        if Path(data).exists():
            log.info("%s: the named data set, not the folder here; that would be ./%s", data, data)
        _refuse_columns(data, wanted, class_order=True)
        return NAMED[data](wanted.task)
    if is_url(data):
        path = fetch(data)
        with renamed(data, path):
            return _read(path, data, wanted)
    if isinstance(data, str) and data.startswith(TFDS):
        data = tfds_folder(data.removeprefix(TFDS))
    return _read(_existing(data), str(data), wanted)


def _read(path: Path, source: str, wanted: Labelling) -> Examples:
    """Take a folder or a table for what it is."""
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return load_manifest({None: path}, path.parent, source, wanted)
    if not path.is_dir():
        raise DatasetError(f"{source}: a file, need a folder with {LAYOUT}, or a table. Unpack it if it is an archive")
    if tables := metadata_tables(path):
        return load_manifest(tables, path, source, wanted, folders=True)
    _refuse_columns(source, wanted)
    return _load_folder(path, source, wanted)


def locate(data: str | Path) -> Path:
    """Find the folder that a data set's photos lie in. No label is read.

    Args:
        data: what `load` takes.

    Raises:
        DatasetError: nothing is there.
    """
    if isinstance(data, str) and data in NAMED:
        return NAMED[data]("auto").root
    if isinstance(data, str) and data.startswith(TFDS):
        return tfds_folder(data.removeprefix(TFDS))
    return _folder(fetch(data) if is_url(data) else _existing(data))


def relocate(location: str) -> Path:
    """Find that folder again for a run that stores where it is (`Examples.location`).

    Nothing is fetched: the run may be a stranger's, and only the user says what to ask a network for.

    Args:
        location: a name, an absolute path, or a URL.

    Raises:
        DatasetError: nothing is there, or of a URL no copy here.
    """
    if location in NAMED:
        return locate(location)
    return _folder(fetched(location) if is_url(location) else _existing(location))


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def refuse_inside(out: Path, data: str, examples: Examples) -> None:
    """Refuse to write among photos that are found by walking through folders.

    Raises:
        ConfigError: `out` would be taken for a class the next time.
    """
    if Path(data).expanduser().is_dir() and out.expanduser().resolve().is_relative_to(examples.root.resolve()):
        raise ConfigError(f"{out}: lies in the data and would be taken for a class. Choose another run directory")


def _existing(data: str | Path) -> Path:
    path = Path(data)
    with contextlib.suppress(RuntimeError):  # ~NAME, of nobody here
        path = path.expanduser()
    if not str(data).strip() or not path.exists():
        raise DatasetError(f"{str(data)!r}: no such folder or data set. {_advice(str(data))}")
    return path


def _advice(data: str) -> str:
    near = difflib.get_close_matches(data.lower(), NAMED, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}? " if near else ""
    tables = f"a table (*{' *'.join(SUFFIXES)})"
    other = f"{tables}, either by URL as well, {TFDS}NAME, or a named data set: {', '.join(NAMED)}"
    return f"{hint}Give a folder with {LAYOUT}, {other}"


def _refuse_columns(data: str, wanted: Labelling, *, class_order: bool = False) -> None:
    """Refuse options that only a table can follow."""
    given = {"label": wanted.label, "targets": wanted.targets, "class-order": class_order and wanted.class_order}
    if named := [f"--{name}" for name, value in given.items() if value]:
        raise DatasetError(f"{data}: {', '.join(named)} can't be followed: its labels come with it. Leave them out")


def _grouped(examples: Examples, column: str) -> Examples:
    """Take the values of a column for the groups."""
    if not column or (column == "group" and any(item.group for item in examples)):
        return examples
    if column not in examples.columns:
        raise DatasetError(
            f"{examples.source}: no column {column} for --group. {nearest(column, examples.columns)} Name one of them"
        )
    at = examples.columns.index(column)
    return examples.with_items([dataclasses.replace(item, group=item.values[at]) for item in examples])


def _load_folder(root: Path, source: str, wanted: Labelling) -> Examples:
    task: Task = "classification" if wanted.task == "auto" else wanted.task
    task = "ordinal" if wanted.task == "auto" and wanted.class_order else task
    if task not in ("classification", "ordinal") or (wanted.class_order and task != "ordinal"):
        raise DatasetError(
            f"{source}: a folder of classes gives no --task {task}. Write a table: path, labels or target"
        )
    folders = _subfolders(root)
    splits = _split_folders(root, folders)
    found: dict[Key, Found] = {}
    if splits is None:
        found |= {(None, name): scan(root / name, root) for name in folders}
    for split, folder in (splits or {}).items():
        found |= {(split, name): scan(root / folder / name, root) for name in _subfolders(root / folder)}
    _report_ignored(root, found)
    _refuse_escapes(root, found)
    names = _class_names(root, splits, found)
    if task == "ordinal":
        names = ordered(names, wanted.class_order, source)
    label = {name: number for number, name in enumerate(names)}
    items = [
        Example(file, root / file, label[name], split, values=(_below(file, 1 if split is None else 2),))
        for (split, name), part in found.items()
        for file in part.photos
    ]
    examples = Examples(source, root, names, tuple(sorted(items, key=lambda item: item.id)), task, (FOLDER,))
    if any(item.values[0] for item in items):
        return examples
    flat = [dataclasses.replace(item, values=()) for item in examples]
    return dataclasses.replace(examples, items=tuple(flat), columns=())


def _below(file: str, depth: int) -> str:
    """The folder of a photo, below that of its class."""
    return "/".join(file.split("/")[depth:-1])


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders that hold classes or splits, sorted; a complaint if there are none."""
    with os.scandir(folder) as entries:
        visible = [Path(entry.path) for entry in entries if not entry.name.startswith(".")]
    links = sorted(entry.name for entry in visible if entry.is_symlink() and entry.is_dir())
    if links:
        raise DatasetError(
            f"{folder}: {len(links)} folder(s) are symbolic links ({links[0]}). Move or copy the photos into {folder}"
        )
    names = sorted(entry.name for entry in visible if entry.is_dir())
    photos = sum(1 for entry in visible if entry.suffix.lower() in EXTENSIONS and not entry.is_dir())
    if not names and photos:
        raise DatasetError(f"{folder}: {photos} photo(s) but no class folders. Expected {folder}/<class>/<photo>.jpg")
    if not names:
        raise DatasetError(f"{folder}: the folder holds no class folders. Expected {folder}/<class>/<photo>.jpg")
    if photos:
        log.warning("%s: %d photo(s) beside the class folders belong to no class and are left out", folder, photos)
    return names


def _split_folders(root: Path, folders: list[str]) -> dict[SplitName, str] | None:
    """Split -> folder if the folders are splits, None if they are classes."""
    known = [name for name in folders if name.lower() in SPLIT_NAMES]
    meant = [SPLIT_NAMES[name.lower()] for name in known]
    if not known or (len(known) == 1 and len(folders) > 1):
        return None  # a class may well be called "train"
    other = [name for name in folders if name not in known]
    if other:
        raise DatasetError(
            f"{root}: {', '.join(known)} look like splits, {', '.join(other[:5])} not. "
            "Keep either splits or classes in it"
        )
    for split in set(meant):
        if meant.count(split) > 1:
            same = [name for name in known if SPLIT_NAMES[name.lower()] == split]
            raise DatasetError(f"{root}: {' and '.join(same)} both mean {split}. Merge them")
    if "train" not in meant:
        raise DatasetError(f"{root}: {', '.join(known)} without train. Add {root}/train/<class>/<photo>.jpg")
    folder = dict(zip(meant, known, strict=True))
    return {split: folder[split] for split in get_args(SplitName) if split in folder}


def _class_names(root: Path, splits: dict[SplitName, str] | None, found: dict[Key, Found]) -> tuple[str, ...]:
    base: SplitName | None = None if splits is None else "train"
    where = root if splits is None else root / splits["train"]
    names = sorted(name for split, name in found if split == base)
    for name in names:
        check_name(name, where)
    empty = [name for name in names if not found[base, name].photos]
    if empty:
        listed = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise DatasetError(f"{where}: {len(empty)} class folder(s) without photos: {listed}. Add photos or remove them")
    unknown = sorted({f"{split}/{name}" for split, name in found if name not in names})
    if unknown:
        raise DatasetError(
            f"{root}: class(es) that train lacks: {', '.join(unknown[:5])}. Add photos to train or remove them"
        )
    if len(names) < 2:
        raise DatasetError(
            f"{where}: found 1 class folder ({names[0]}), need at least 2. Expected {where}/<class>/<photo>.jpg"
        )
    return tuple(names)


def _report_ignored(root: Path, found: dict[Key, Found]) -> None:
    ignored: dict[str, int] = {}
    for part in found.values():
        for extension, count in part.ignored.items():
            ignored[extension] = ignored.get(extension, 0) + count
    if ignored:
        kinds = ", ".join(f"{count} {extension or 'without extension'}" for extension, count in sorted(ignored.items()))
        readable = " ".join(sorted(EXTENSIONS))
        log.warning("%s: %d file(s) left out: %s. Photos are %s", root, sum(ignored.values()), kinds, readable)


def _refuse_escapes(root: Path, found: dict[Key, Found]) -> None:
    escapes = [path for part in found.values() for path in part.escapes]
    if escapes:
        raise DatasetError(
            f"{root}: {len(escapes)} symbolic link(s) lead out of it or to folders ({escapes[0]}). "
            "Copy what they point to, so that the folder alone is the data set"
        )
