"""Walks one class folder: which files are photos, which are something else, which lead elsewhere."""

import os
import posixpath
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from edgetl.data.images import EXTENSIONS
from edgetl.errors import DatasetError
from edgetl.printable import is_line


@dataclass
class Found:
    """What one class folder holds, hidden files and folders aside."""

    photos: list[str] = field(default_factory=list)
    """Posix paths relative to the root."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Lower-case extension -> number of other files."""
    escapes: list[str] = field(default_factory=list)
    """Symbolic links out of the root, and links to folders (which may lead in circles)."""


def scan(folder: Path, root: Path) -> Found:
    """List a class folder and all folders below it.

    Args:
        folder: the class folder.
        root: what ids are relative to, and what symbolic links must not leave.

    Raises:
        DatasetError: a file name that can't be written down as text.
    """
    found = Found()
    home = root.resolve()
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = Path(entry.path)
                if entry.is_symlink() and (path.is_dir() or not leads_into(path, home)):
                    found.escapes.append(path.relative_to(root).as_posix())
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif path.suffix.lower() in EXTENSIONS:
                    found.photos.append(_id(path, root))
                else:
                    found.ignored[path.suffix.lower()] += 1
    return found


def leads_into(path: Path, folder: Path) -> bool:
    """Whether a path, symbolic links followed, lies within a folder.

    Args:
        path: one whose links lead in circles lies where it is, as realpath has it; Path.resolve raises.
        folder: resolved.
    """
    return Path(os.path.realpath(path)).is_relative_to(folder)


def leads_out(path: str) -> bool:
    """Whether a posix path leads out of the folder that it is relative to, links aside."""
    return posixpath.isabs(path) or posixpath.normpath(path).split("/", 1)[0] == ".."


class Home:
    """A folder that alone is a data set. The folders in it are looked at once each: photos are many."""

    def __init__(self, root: Path) -> None:
        """Nothing is looked at yet.

        Args:
            root: the folder; it may be reached through links.
        """
        self._root = root.resolve()
        self._inside: dict[str, bool] = {}

    def holds(self, path: Path, *, link: bool) -> bool:
        """Whether a path below the folder stays in it when symbolic links are followed.

        Args:
            path: the path.
            link: whether it is itself a link.
        """
        folder = str(path.parent)
        if folder not in self._inside:
            self._inside[folder] = leads_into(path.parent, self._root)
        return self._inside[folder] and not (link and not leads_into(path, self._root))


def check_name(name: str, where: Path | str, what: str = "class folder") -> None:
    """Refuse a name that a text file with one name a line can't hold.

    Args:
        name: of a class, label or photo.
        where: where it was found, for the message.
        what: what has the name, likewise.

    Raises:
        DatasetError: it has a line break, another control character, or isn't valid Unicode.
    """
    if not is_line(name):
        raise DatasetError(f"{where}: {what} {name!a} has a control or non-Unicode character. Rename it")


def _id(path: Path, root: Path) -> str:
    name = path.relative_to(root).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DatasetError(f"{root}: file name {name!a} is not valid Unicode. Rename it") from None
    if "\r" in name:  # csv writes it so that it can't read it again
        raise DatasetError(f"{root}: file name {name!a} has a control character. Rename it")
    return name
