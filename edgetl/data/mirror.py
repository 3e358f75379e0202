"""A folder here that is made equal to a listing of files elsewhere, file by file, as far as it is not yet.

An entry holds `files`, the copy itself; `index.jsonl`, what its files were when it was whole; and, while it is being
changed, `journal.jsonl`, the files that came since, and `part`, files on their way. So whatever a kill leaves behind,
a name in `files` never stands for half a file, and what came whole is not fetched again.
"""

import filecmp
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from edgetl.errors import DatasetError

log = logging.getLogger(__name__)

FILES = "files"
"""What an entry calls the copy itself."""
AT_ONCE = 16
"""Files that are fetched side by side: most of the time each waits for an answer."""
_BATCH = 1024
"""Files that are planned at a time: of millions the plan alone would fill the memory."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a listing."""

    name: str
    """What the file system there calls it."""
    size: int | None
    """Bytes; None where the listing doesn't say."""
    version: str
    """Changes when the content does; empty where nothing tells."""


class _Record(NamedTuple):
    """One line of the index: what a file here was fetched as, and its time, which tells if it was touched since."""

    id: str
    size: int
    version: str
    mtime_ns: int


@dataclass(frozen=True)
class Mirror:
    """The copy of one place."""

    source: str
    """URL of the place."""
    protocol: str
    """How its URL begins."""
    fs: Any
    """The file system of fsspec that it is on."""
    entry: Path
    """Folder of the copy and its index; it exists."""

    @property
    def files(self) -> Path:
        """The copy itself."""
        return self.entry / FILES

    @property
    def complete(self) -> bool:
        """Whether it was equal to a listing when it was last touched."""
        return self._index.is_file() and not self._journal.exists()

    @property
    def _index(self) -> Path:
        return self.entry / "index.jsonl"

    @property
    def _journal(self) -> Path:
        return self.entry / "journal.jsonl"

    @property
    def _part(self) -> Path:
        return self.entry / "part"

    def equalize(self, listed: Mapping[str, RemoteFile]) -> None:
        """Fetch what is not here, or not as listed, and remove what is not listed.

        Args:
            listed: the files by their posix paths below the place.

        Raises:
            DatasetError: a file changed on the way, or the disk has no room.
            Exception: whatever the file system raises.
        """
        others = self._present() - listed.keys()
        if self.complete and not others and not self._stale(listed):
            return
        self._journal.touch()
        for id_ in others:
            (self.files / id_).unlink()
        self._prune()
        self.bring(listed)
        self._settle(listed)

    def bring(self, listed: Mapping[str, RemoteFile]) -> None:
        """The same for some files alone: nothing is removed."""
        stale = self._stale(listed)
        if not stale:
            return
        self._refuse_full_disk([listed[id_] for id_ in stale])
        here = len(listed) - len(stale)
        log.info("%s: %d of %d files are in %s, the others are fetched", self.source, here, len(listed), self.files)
        self._fetch([(id_, listed[id_]) for id_ in stale])

    def _fetch(self, wanted: Sequence[tuple[str, RemoteFile]]) -> None:
        from edgetl.console import progress

        shutil.rmtree(self._part, ignore_errors=True)  # what a kill left
        self._part.mkdir()
        noting = Lock()
        with (
            self._journal.open("a", encoding="utf-8") as journal,
            progress(f"fetch {self.source}", len(wanted)) as bar,
            ThreadPoolExecutor(AT_ONCE, "fetch") as pool,
        ):

            def one(each: tuple[str, RemoteFile]) -> None:
                record = self._fetch_one(each)
                with noting:  # at once: files before it may take minutes, or fail
                    journal.write(json.dumps(record) + "\n")
                    journal.flush()
                    bar.advance()

            for start in range(0, len(wanted), _BATCH):
                for _ in pool.map(one, wanted[start : start + _BATCH]):
                    pass
        shutil.rmtree(self._part)

    def _fetch_one(self, wanted: tuple[str, RemoteFile]) -> _Record:
        id_, file = wanted
        part, path = self._part / sha256(id_.encode()).hexdigest(), self.files / id_
        self.fs.get_file(file.name, str(part))
        size = part.stat().st_size
        if file.size not in (None, size):
            raise DatasetError(
                f"{self.source}: {id_}: {size} bytes came, {file.size} were listed; it changed on the way. "
                "Run the same command again"
            )
        if path.is_file() and filecmp.cmp(part, path, shallow=False):
            part.unlink()  # with its time it keeps what was computed of it
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.replace(path)
        return _Record(id_, size, file.version, path.stat().st_mtime_ns)

    def _stale(self, listed: Mapping[str, RemoteFile]) -> list[str]:
        """Files that are not here, or as another version, or changed by somebody here."""
        known = self._records()
        return [id_ for id_, file in listed.items() if not self._is_here(file, known.get(id_))]

    def _is_here(self, file: RemoteFile, known: _Record | None) -> bool:
        if known is None or not file.version or file.version != known.version or file.size not in (None, known.size):
            return False
        try:
            stat = (self.files / known.id).lstat()
        except OSError:
            return False
        return (stat.st_size, stat.st_mtime_ns) == (known.size, known.mtime_ns)

    def _records(self) -> dict[str, _Record]:
        return {record.id: record for path in (self._index, self._journal) for record in _read(path)}

    def _settle(self, listed: Mapping[str, RemoteFile]) -> None:
        from edgetl.rundir import write_atomic

        known = self._records()
        write_atomic(self._index, "".join(json.dumps(known[id_]) + "\n" for id_ in listed))
        self._journal.unlink()

    def _present(self) -> set[str]:
        found = (Path(folder, name) for folder, _, names in os.walk(self.files) for name in names)
        links = (Path(folder, name) for folder, names, _ in os.walk(self.files) for name in names)
        return {p.relative_to(self.files).as_posix() for p in (*found, *(p for p in links if p.is_symlink()))}

    def _prune(self) -> None:
        """Remove folders that hold nothing any more: they would be classes without photos."""
        for folder, _, _ in os.walk(self.files, topdown=False):
            if not os.listdir(folder):  # noqa: PTH208 - the walk has looked before its children went
                Path(folder).rmdir()

    def _refuse_full_disk(self, wanted: Sequence[RemoteFile]) -> None:
        needed, free = sum(file.size or 0 for file in wanted), shutil.disk_usage(self.entry).free
        if needed > free:
            raise DatasetError(
                f"{self.source}: {needed / 1e9:.2f} GB to fetch, {self.entry} has {free / 1e9:.2f} GB free. Free some "
                "disk space, or set EDGETL_CACHE to a folder on a larger disk"
            )


def _read(path: Path) -> Iterator[_Record]:
    """Lines of an index; what a kill cut short, or somebody damaged, is passed over: those files come again."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                yield _Record(*json.loads(line))
            except (ValueError, TypeError, RecursionError):
                continue
