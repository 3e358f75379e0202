"""Data by URL (s3://, gs://, file:// and what else fsspec reads) -> a copy here, so that all else works on files.

Credentials, endpoints and proxies are the business of fsspec and its file systems: their configuration files and
environment variables, never a part of the URL, which a run writes down.
"""

import contextlib
import errno
import hashlib
import logging
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard
from urllib.parse import unquote

from edgetl.data.images import EXTENSIONS
from edgetl.data.manifest import METADATA, named_photos
from edgetl.data.mirror import AT_ONCE, FILES, Mirror, RemoteFile
from edgetl.data.scan import check_name
from edgetl.data.tables import SUFFIXES
from edgetl.errors import DatasetError, EdgetlError
from edgetl.locks import alone

log = logging.getLogger(__name__)

_MARK = "://"
_EXTRAS = {"s3": "edgetl[s3]", "s3a": "edgetl[s3]", "gs": "edgetl[gcs]", "gcs": "edgetl[gcs]"}
"""Protocol -> what to install for it; for others fsspec says what it needs."""
_CREDENTIALS = {
    "edgetl[s3]": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or aws configure",
    "edgetl[gcs]": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login",
}
_CONTENT = ("ETag", "md5Hash", "crc32c", "etag", "Content-MD5", "Digest")
"""What file systems call a value that follows from the content; the first that is there counts."""
_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "created")
"""What they call times of change; without any of the above all that are there count."""
_HTTP = ("http", "https")
_LOCAL = ("file", "local")
_KNOWN = ("s3", "gs", "https", "file", "az", "sftp")
_LONGEST = 200
"""Characters of another library's message that are repeated."""
_CHATTY = ("fsspec", "s3fs", "gcsfs")
"""Loggers of file systems, which log what they raise."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_Found = tuple[str, str, Mapping[str, Any]]
"""A file of a listing: its path below the place, what the file system calls it, and what it says of it."""


def is_url(data: str | Path) -> TypeGuard[str]:
    """Whether data is named by a URL. A Path never is: it has lost one of the slashes."""
    return isinstance(data, str) and _MARK in data


def fetch(url: str, cache: Path | None = None) -> Path:
    """Make the copy of a place here equal to it, and say where it lies.

    The place is listed every time; only files that are not here, or not as listed, are fetched. Of a folder these are
    photos and the tables of Hugging Face folders; of a table those that it names. Two processes that ask at once take
    turns.

    Args:
        url: of a folder in one of the layouts that `load` takes, or of a table beside its photos.
        cache: where features are stored, too; the default is theirs.

    Returns:
        The copy of the folder or of the table.

    Raises:
        DatasetError: the place can't be listed or read, or has file names that can't be used here.
        OSError: the disk is full, or can't be written.
    """
    protocol = _refuse_what_cannot_be_kept(url)
    with _told(url, protocol):
        entry, root = _place(url, protocol, cache)
        fs = _opened(url)
    copy = Mirror(url, protocol, fs, entry)
    copy.entry.mkdir(parents=True, exist_ok=True)
    with alone(copy.entry, f"{url}: another process is fetching it; waiting for it"), _told(url, protocol, copy):
        fs.invalidate_cache()  # a listing that this process has made before may be old
        if posixpath.splitext(root)[1].lower() in SUFFIXES:
            return _fetch_table(copy, root)
        copy.equalize(_list_folder(copy, root))
    return copy.files


def fetched(url: str, cache: Path | None = None) -> Path:
    """Say where the copy lies that `fetch` made before, without a look at the place.

    Args:
        url: of a folder or a table.
        cache: as for `fetch`.

    Returns:
        The copy of the folder or of the table; it may be older than the place.

    Raises:
        DatasetError: there is none.
    """
    protocol = _refuse_what_cannot_be_kept(url)
    with _told(url, protocol):
        entry, root = _place(url, protocol, cache)
    path = entry / FILES
    if posixpath.splitext(root)[1].lower() in SUFFIXES:
        path /= posixpath.basename(root)
    if not path.exists():
        raise DatasetError(
            f"{url}: no copy of it here, and what a run names is not fetched unasked. To fetch it, add --data {url}"
        )
    return path


@contextlib.contextmanager
def renamed(url: str, path: Path) -> Iterator[None]:
    """Let complaints about the copy name the place that it is of: that is where the user mends things.

    Args:
        url: the place, a folder or a table.
        path: its copy.
    """
    here, there = (path, url) if path.is_dir() else (path.parent, posixpath.dirname(url))
    try:
        yield
    except DatasetError as error:
        raise DatasetError(str(error).replace(str(here), there.rstrip("/"))) from error


def _fetch_table(copy: Mirror, table: str) -> Path:
    """Fetch a table, then what it names; of its folder, which may be a whole bucket, nothing else."""
    root, name = posixpath.split(table)
    own = _files(copy, [(name, table, copy.fs.info(table))])
    copy.bring(own)
    path = copy.files / name
    with renamed(copy.source, path):
        wanted = set(named_photos(path))
    below = posixpath.commonpath([posixpath.dirname(id_) for id_ in wanted])
    found = [each for each in _find(copy, posixpath.join(root, below) if below else root, root) if each[0] in wanted]
    copy.equalize(_files(copy, found) | own)
    return path


def _list_folder(copy: Mirror, root: str) -> dict[str, RemoteFile]:
    """List the photos of a folder and the tables that tell their labels; hidden ones don't count."""
    found: list[_Found] = []
    ignored: Counter[str] = Counter()
    for id_, name, info in _find(copy, root, root):
        suffix, parts = posixpath.splitext(id_)[1].lower(), id_.split("/")
        if suffix not in EXTENSIONS and parts[-1] not in METADATA:
            ignored[suffix or "without extension"] += 1
            continue
        if {"", ".", ".."} & set(parts):
            raise DatasetError(f"{copy.source}: the file name {id_!r} leads out of the folder. Rename it")
        check_name(id_, copy.source, "file name")
        if not any(part.startswith(".") for part in parts):
            found.append((id_, name, info))
    if ignored:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(ignored.items()))
        log.warning("%s: %d file(s) that are no photos are not fetched: %s", copy.source, sum(ignored.values()), kinds)
    if not found:
        raise DatasetError(f"{copy.source}: no photos there. Check the bucket and the folder")
    return _files(copy, found)


def _find(copy: Mirror, below: str, root: str) -> Iterator[_Found]:
    """List all files below a folder."""
    from edgetl.console import progress

    with progress(f"list {copy.source}"):
        found = _everything(copy.fs, below)
    above = f"{root.rstrip('/')}/" if root else ""
    for name, info in found.items():
        if name == root:
            raise DatasetError(f"{copy.source}: a file, need a folder or a table (*{' *'.join(SUFFIXES)})")
        if info.get("islink") and copy.fs.isdir(name):
            raise DatasetError(f"{copy.source}: {name} is a symbolic link to a folder. Copy what it points to")
        if info["type"] == "directory" or name.endswith("/"):
            continue
        id_ = name.removeprefix(above) if name.startswith(above) else f"../{name}"
        yield unquote(id_) if copy.protocol in _HTTP else id_, name, info


def _everything(fs: Any, below: str) -> Mapping[str, Mapping[str, Any]]:
    """All files below a folder, by name.

    Where a file system has no listing of its own for that, fsspec walks the folders, and leaves out without a word
    those that can't be listed.
    """
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    kind = type(fs)
    if kind.find is not AbstractFileSystem.find or getattr(kind, "_find", None) not in (None, AsyncFileSystem._find):
        listed: Mapping[str, Mapping[str, Any]] = fs.find(below, detail=True)
        return listed
    found, seen, waiting = {}, {below.rstrip("/")}, [below]
    while waiting:
        for info in fs.ls(waiting.pop(), detail=True):
            name = info["name"]
            if info["type"] != "directory" or info.get("islink"):
                found[name] = info
            elif name.rstrip("/") not in seen:
                seen.add(name.rstrip("/"))
                waiting.append(name)
    return found


def _files(copy: Mirror, found: Sequence[_Found]) -> dict[str, RemoteFile]:
    """Describe files by what the listing says of them; where that is too little, each is asked about."""
    folders = {str(parent) for id_, _, _ in found for parent in PurePosixPath(id_).parents}
    for id_, _, _ in found:
        if id_ in folders:
            raise DatasetError(f"{copy.source}: {id_} is a file and a folder at once. Rename one of them")
    vague = [name for _, name, info in found if info.get("islink") or info.get("size") is None or not _version(info)]
    with ThreadPoolExecutor(AT_ONCE, "ask") as pool:
        asked = dict(zip(vague, pool.map(copy.fs.info, vague), strict=True))
    told = ((id_, name, asked.get(name, info)) for id_, name, info in found)
    return {id_: RemoteFile(name, info.get("size"), _version(info)) for id_, name, info in told}


def _version(info: Mapping[str, Any]) -> str:
    content = next((f"{key} {info[key]}" for key in _CONTENT if info.get(key)), "")
    return content or " ".join(f"{key} {info[key]}" for key in _TIMES if info.get(key))


def _refuse_what_cannot_be_kept(url: str) -> str:
    """Refuse a URL that a run can't write down, and give its protocol.

    Raises:
        DatasetError: it holds a secret (which the message does not repeat), or means something only here.
    """
    protocol, _, rest = url.partition(_MARK)
    protocol = protocol.lower()
    if "::" in url:
        raise DatasetError(f"{protocol}{_MARK}...: several file systems in one URL. Give the place of the files alone")
    host = rest.partition("/")[0]
    user, _, machine = host.rpartition("@")
    secret = ":" in unquote(user) or (user and protocol in _HTTP) or re.search(r"\?[^/]*=", rest)
    if secret or not re.fullmatch(r"[^:]*(:\d*)?|\[.*](:\d*)?", machine) or (protocol in _HTTP and "?" in rest):
        raise DatasetError(
            f"{protocol}{_MARK}...: a password, a key or a query in the URL, which a run would write down. Leave it "
            "out: its place is fsspec's configuration or the environment"
        )
    if protocol in _LOCAL and not rest.startswith("/"):
        raise DatasetError(f"{url}: needs an absolute path. Write {protocol}:///mnt/photos for /mnt/photos")
    return protocol


def _place(url: str, protocol: str, cache: Path | None) -> tuple[Path, str]:
    """Where the copy of a URL has its entry, and what the file system calls the place.

    The class of the file system tells, for some connect as soon as there is an instance.
    """
    from edgetl.features import default_cache

    kind = _kind(url, protocol)
    root = kind._strip_protocol(url).rstrip("/")
    whole = kind.unstrip_protocol(kind, root)
    key = hashlib.sha256(whole.encode(errors="surrogateescape")).hexdigest()[:16]
    name = re.sub(r"[^\w-]+", "_", posixpath.basename(root))[:40]
    return (cache or default_cache()).absolute() / "remote" / f"{name or protocol}-{key}", root


def _kind(url: str, protocol: str) -> Any:
    """The class of a URL's file system."""
    package = _EXTRAS.get(protocol, "fsspec")
    try:
        import fsspec
    except ImportError:
        raise DatasetError(f"{url}: the package fsspec is not installed. Run: pip install {package!r}") from None
    try:
        return fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise DatasetError(
            f"{url}: unknown protocol {protocol!r}. Known are {', '.join(_KNOWN)}, and all others of fsspec"
        ) from None
    except ImportError as error:
        way_out = f"Run: pip install {package!r}" if protocol in _EXTRAS else "Install what it names"
        raise DatasetError(f"{url}: a package is not installed ({_line(error)}). {way_out}") from error


def _opened(url: str) -> Any:
    """The file system of a URL."""
    import fsspec

    for name in _CHATTY:
        if not logging.getLogger(name).hasHandlers():  # else Python prints their tracebacks, beside our one line
            logging.getLogger(name).addHandler(logging.NullHandler())
    return fsspec.core.url_to_fs(url)[0]


@contextlib.contextmanager
def _told(url: str, protocol: str, copy: Mirror | None = None) -> Iterator[None]:
    """Turn whatever file systems raise into one line; what goes wrong on the disk here stays what it is."""
    try:
        yield
    except EdgetlError:
        raise
    except Exception as error:
        here = copy is not None and str(getattr(error, "filename", None) or "").startswith(str(copy.entry))
        if isinstance(error, OSError) and (here or error.errno in _NO_ROOM):
            error.filename = error.filename or url
            raise
        last = f", or take what was there the last time: --data {_copied(copy, url)}" if copy and copy.complete else ""
        raise DatasetError(f"{url}: {_explained(error, protocol)}{last}") from error


def _copied(copy: Mirror, url: str) -> Path:
    """What stands for a place here: of a table the table, whose labels the folder does not know."""
    return copy.files / posixpath.basename(url) if url.lower().endswith(tuple(SUFFIXES)) else copy.files


def _explained(error: Exception, protocol: str) -> str:
    """What was wrong and what to do, by the few kinds of errors that all file systems have."""
    setting = _CREDENTIALS.get(_EXTRAS.get(protocol, ""), f"see fsspec on {protocol}")
    if isinstance(error, FileNotFoundError):
        return f"no such place ({_line(error)}). Check the bucket and the folder"
    if "Credentials" in type(error).__name__:
        return f"no credentials ({_line(error)}). Set them where its library reads them: {setting}"
    if isinstance(error, PermissionError) or getattr(error, "code", 0) in (401, 403) or "Forbidden" in str(error):
        return f"permission denied ({_line(error)}). Check its permissions and the credentials: {setting}"
    return f"can't be read ({_line(error)}). Check the network and the endpoint, and run the same command again"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST] or type(error).__name__
