"""Where labelled examples come from: a folder of class folders, a folder of splits, or a named data set."""

import difflib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from edgetl.data.elpv import load_elpv
from edgetl.data.examples import Example, Examples, SplitName
from edgetl.data.images import EXTENSIONS
from edgetl.data.scan import Found, check_name, scan
from edgetl.errors import DatasetError

log = logging.getLogger(__name__)

NAMED: dict[str, Callable[[], Examples]] = {"elpv": load_elpv}
"""Data sets that come as a package: name -> loader."""

SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
    "testing": "test",
}
Key = tuple[SplitName | None, str]
"""One class folder: split, class name."""
LAYOUT = "<class>/<photo>.jpg, or train/<class>/<photo>.jpg beside validation/ and test/"


def load(data: str | Path) -> Examples:
    """Find all labelled photos of a data set. No photo is opened.

    A name out of `NAMED` without a path separator means that data set, even if a folder of that name exists;
    `./elpv`, or a Path, means the folder.

    Args:
        data: a folder in one of the two layouts, or the name of a data set.

    Returns:
        The examples, sorted by id; those of a folder of splits carry their split.

    Raises:
        DatasetError: nothing is there, or not in a form that can be used.
    """
    if isinstance(data, str) and data in NAMED:
        if Path(data).exists():
            log.info("%s: the named data set, not the folder here; that would be ./%s", data, data)
        return NAMED[data]()
    root = Path(data).expanduser()
    if not str(data).strip() or not root.exists():
        raise DatasetError(f"{str(data)!r}: no such folder or data set. {_advice(str(data))}")
    if not root.is_dir():
        raise DatasetError(f"{data}: a file, need a folder with {LAYOUT}. Unpack it if it is an archive")
    return _load_folder(root, str(data))


def locate(data: str | Path) -> Path:
    """Find the folder that a data set's photos lie in. No label is read.

    Args:
        data: what `load` takes.

    Raises:
        DatasetError: nothing is there.
    """
    if isinstance(data, str) and data in NAMED:
        return NAMED[data]().root
    root = Path(data).expanduser()
    if not str(data).strip() or not root.exists():
        raise DatasetError(f"{str(data)!r}: no such folder or data set. {_advice(str(data))}")
    return root if root.is_dir() else root.parent


def _advice(data: str) -> str:
    near = difflib.get_close_matches(data.lower(), NAMED, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}? " if near else ""
    return f"{hint}Give a folder with {LAYOUT}, or a named data set: {', '.join(NAMED)}"


def _load_folder(root: Path, source: str) -> Examples:
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
    label = {name: number for number, name in enumerate(names)}
    items = (
        Example(id=file, path=root / file, label=label[name], split=split)
        for (split, name), part in found.items()
        for file in part.photos
    )
    return Examples(source, root, names, tuple(sorted(items, key=lambda item: item.id)))


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders that hold classes or splits, sorted; a complaint if there are none."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    links = sorted(entry.name for entry in visible if entry.is_symlink() and entry.is_dir())
    if links:
        raise DatasetError(
            f"{folder}: {len(links)} folder(s) are symbolic links ({links[0]}). Move or copy the photos into {folder}"
        )
    names = sorted(entry.name for entry in visible if entry.is_dir())
    photos = sum(1 for entry in visible if Path(entry.name).suffix.lower() in EXTENSIONS and not entry.is_dir())
    if not names and photos:
        raise DatasetError(f"{folder}: {photos} photo(s) but no class folders. Expected {folder}/<class>/<photo>.jpg")
    if not names:
        raise DatasetError(f"{folder}: the folder holds no class folders. Expected {folder}/<class>/<photo>.jpg")
    if photos:
        log.warning("%s: %d photo(s) beside the class folders belong to no class and are left out", folder, photos)
    return names


def _split_folders(root: Path, folders: list[str]) -> dict[SplitName, str] | None:
    """Split -> folder if the folders are splits, None if they are classes."""
    known = [name for name in folders if name.lower() in SPLIT_FOLDERS]
    meant = [SPLIT_FOLDERS[name.lower()] for name in known]
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
            same = [name for name in known if SPLIT_FOLDERS[name.lower()] == split]
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
