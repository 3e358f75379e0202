"""Data by URL: the copy here is equal to the place there, whatever happened before, and what is wrong is one line."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from photos import make_photo_folder

from edgetl import data
from edgetl.data import mirror, remote
from edgetl.errors import DatasetError
from edgetl.features import photos_key

ROOT = Path(__file__).parent.parent


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counting(MemoryFileSystem):
    """Memory that counts what is fetched, and fails where it is told to."""

    protocol = "counting"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    fetched: ClassVar[list[str]] = []
    failing: ClassVar[dict[str, BaseException]] = {}
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("counting://").strip("/")

    def find(self, path: str, *args: Any, **keywords: Any) -> Any:
        if error := self.failing.get("find"):
            raise error
        return super().find(path, *args, **keywords)

    def get_file(self, rpath: str, lpath: str, **keywords: Any) -> None:
        if error := self.failing.get(rpath):
            raise error
        super().get_file(rpath, lpath, **keywords)
        self.fetched.append(rpath)


@pytest.fixture
def memory(cache: Path) -> Iterator[Counting]:
    fsspec.register_implementation("counting", Counting, clobber=True)
    fs = Counting()
    for kept in (fs.store, fs.fetched, fs.failing):
        kept.clear()
    yield fs
    fs.pseudo_dirs[:] = [""]


def put(fs: MemoryFileSystem, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        fs.pipe_file(name, content)


def upload(fs: MemoryFileSystem, folder: Path, to: str) -> None:
    put(fs, {f"{to}/{p.relative_to(folder).as_posix()}": p.read_bytes() for p in folder.rglob("*") if p.is_file()})


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


FOLDER = {f"/photos/{name}/{n}.jpg": f"{name}{n}".encode() for name in ("cat", "dog") for n in range(4)}


# --- layouts


def test_a_folder_of_classes(memory: Counting, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = {"/photos/cat/.hidden.jpg": b"x", "/photos/notes.txt": b"x", "/photos/cat/a.heic": b"x"}
    put(memory, FOLDER | others)
    examples = data.load("counting://photos")
    assert [item.id for item in examples] == sorted(name.removeprefix("/photos/") for name in FOLDER)
    assert all(item.path.read_bytes() == FOLDER[f"/photos/{item.id}"] for item in examples)
    assert examples.source == examples.location == "counting://photos"
    assert cache / "remote" in examples.root.parents
    assert "2 file(s) that are no photos are not fetched: 1 .heic, 1 .txt" in caplog.text
    assert sorted(memory.fetched) == sorted(FOLDER)
    assert data.load("counting://photos/").root == data.locate("counting://photos") == examples.root
    assert sorted(memory.fetched) == sorted(FOLDER), "what is here is not fetched again"


def test_a_folder_of_splits_and_a_hugging_face_folder(memory: Counting) -> None:
    put(memory, {f"/s/{part}/{name}/1.jpg": b"x" for part in ("train", "test") for name in "ab"})
    assert [item.split for item in data.load("counting://s")] == ["test"] * 2 + ["train"] * 2
    put(memory, {"/h/metadata.csv": b"file_name,label,camera\nx/1.jpg,a,n\n2.png,b,s\n"})
    put(memory, {"/h/x/1.jpg": b"1", "/h/2.png": b"2", "/h/other.csv": b"path\n"})
    found = data.load("counting://h")
    assert (found.columns, [item.id for item in found]) == (("camera",), ["2.png", "x/1.jpg"])


def test_of_a_table_only_the_photos_that_it_names_are_fetched(memory: Counting) -> None:
    put(memory, FOLDER | {"/photos/labels.csv": b"path,label\ncat/1.jpg,a\n./dog/../dog/2.jpg,b\n"})
    put(memory, {"/photos/cat.jsonl": b'{"path": "cat/3.jpg", "label": "a"}\n{"path": "cat/2.jpg", "label": "b"}\n'})
    examples = data.load("counting://photos/labels.csv")
    assert [item.id for item in examples] == ["cat/1.jpg", "dog/2.jpg"]
    assert memory.fetched == ["/photos/labels.csv", "/photos/cat/1.jpg", "/photos/dog/2.jpg"]
    assert examples.location == "counting://photos/labels.csv"
    assert data.locate(examples.location) == examples.root
    assert [item.id for item in data.load("counting://photos/cat.jsonl")] == ["cat/2.jpg", "cat/3.jpg"]
    memory.fetched.clear()
    put(memory, {"/photos/labels.csv": b"path,label\ncat/0.jpg,a\ndog/2.jpg,b\n"})
    data.load("counting://photos/labels.csv")
    assert memory.fetched == ["/photos/labels.csv", "/photos/cat/0.jpg"]
    assert set(tree(examples.root)) == {"labels.csv", "cat/0.jpg", "dog/2.jpg"}


def test_complaints_name_the_place_there(memory: Counting, cache: Path) -> None:
    put(memory, {"/t/l.csv": b"path,label\n1.jpg,a\n2.jpg,b\n", "/t/1.jpg": b"x", "/one/cat/1.jpg": b"x"})
    for url, message in [
        ("counting://one", "counting://one: found 1 class folder (cat), need at least 2. Expected counting://one/"),
        ("counting://t/l.csv", "counting://t/l.csv: 1 photo(s) are missing, the first: counting://t/l.csv: line 3: "),
        ("counting://t/1.jpg", "counting://t/1.jpg: a file, need a folder or a table"),
        ("counting://t/none.csv", "counting://t/none.csv: no such place (/t/none.csv). Check the bucket"),
        ("counting://none", "counting://none: no photos there. Check the bucket and the folder"),
    ]:
        with pytest.raises(DatasetError, match=re.escape(message)) as caught:
            data.load(url)
        assert str(cache) not in str(caught.value)
    put(memory, {"/t/l.csv": b"path,label\n../1.jpg,a\n2.jpg,b\n"})
    with pytest.raises(DatasetError, match=r"^counting://t/l\.csv: line 2: \.\./1\.jpg lies outside counting://t\. "):
        data.load("counting://t/l.csv")


# --- the same again


def test_what_changed_there_changes_here(memory: Counting) -> None:
    put(memory, FOLDER)
    examples = data.load("counting://photos")
    keys = {item.id: photos_key(examples.select([item.id]), 0) for item in examples}
    memory.fetched.clear()
    memory.rm_file("/photos/cat/0.jpg")
    changed = {"/photos/cat/1.jpg": b"CAT1", "/photos/dog/9.jpg": b"new", "/photos/dog/3.jpg": b"dog3"}
    put(memory, changed)  # the first has as many bytes as before, the last the same ones
    again = data.load("counting://photos")
    assert sorted(memory.fetched) == sorted(changed)
    assert tree(again.root) == {name.removeprefix("/photos/"): memory.cat_file(name) for name in memory.find("/photos")}
    now = {item.id: photos_key(again.select([item.id]), 0) for item in again}
    assert {id_ for id_ in now if now[id_] != keys.get(id_)} == {"cat/1.jpg", "dog/9.jpg"}, "features of others stay"


def test_a_class_that_went_leaves_no_folder(memory: Counting) -> None:
    put(memory, FOLDER | {"/photos/owl/1.jpg": b"x"})
    assert data.load("counting://photos").output_names == ("cat", "dog", "owl")
    memory.rm_file("/photos/owl/1.jpg")
    assert data.load("counting://photos").output_names == ("cat", "dog")
    memory.rm("/photos/dog", recursive=True)
    put(memory, {"/photos/dog": b"", "/photos/owl.jpg/1.jpg": b"x"})  # a name may be a file today, a folder tomorrow
    assert data.load("counting://photos").output_names == ("cat", "owl.jpg")


def test_what_was_changed_here_is_mended(memory: Counting) -> None:
    put(memory, FOLDER)
    root = data.load("counting://photos").root
    whole = tree(root)
    (root / "cat/0.jpg").unlink()
    (root / "cat/1.jpg").write_bytes(b"CAT1")
    (root / "stray").mkdir()
    (root / "stray/1.jpg").touch()
    (root / "linked").symlink_to(root / "cat")
    (root.parent / "index.jsonl").open("ab").write(b'["cat/2.jpg", 4\n{}\n\xff\n')
    memory.fetched.clear()
    assert tree(data.load("counting://photos").root) == whole
    assert sorted(memory.fetched) == ["/photos/cat/0.jpg", "/photos/cat/1.jpg"]
    assert not (root / "linked").is_symlink()


def test_a_failed_fetch_goes_on_where_it_was(memory: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "AT_ONCE", 1)
    put(memory, FOLDER)
    memory.failing["/photos/dog/2.jpg"] = ConnectionResetError("the line went dead\nin the middle")
    message = r"can't be read \(the line went dead in the middle\)\. Check the network and the endpoint, and run"
    with pytest.raises(DatasetError, match=message) as caught:
        data.load("counting://photos")
    assert "--data" not in str(caught.value), "a copy that is not whole is not offered"
    before = list(memory.fetched)
    assert 5 <= len(before) < len(FOLDER)
    memory.failing.clear()
    examples = data.load("counting://photos")
    resumed = memory.fetched[len(before) :]
    assert resumed == ["/photos/dog/2.jpg"]  # what came after it was noted as well
    assert tree(examples.root) == {name.removeprefix("/photos/"): content for name, content in FOLDER.items()}
    assert sorted(path.name for path in examples.root.parent.iterdir()) == ["files", "index.jsonl"]


KILLED = """
import os, sys
from fsspec.implementations.local import LocalFileSystem
from edgetl import data
from edgetl.data import mirror
mirror.AT_ONCE = 1
real, seen = LocalFileSystem.get_file, []
def get_file(self, rpath, lpath, **keywords):
    real(self, rpath, lpath, **keywords)
    seen.append(rpath)
    if len(seen) == 5:
        os.truncate(lpath, 1)
        os.kill(os.getpid(), 9)
LocalFileSystem.get_file = get_file
data.load(sys.argv[1])
"""


def test_a_killed_fetch_goes_on_where_it_was(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = make_photo_folder(tmp_path / "there", {"cat": 6, "dog": 6})
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ['PYTHONPATH']}"}
    done = subprocess.run([sys.executable, "-c", KILLED, there.as_uri()], env=environment, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    [entry] = (cache / "remote").iterdir()
    whole = {path: path.stat().st_mtime_ns for path in (entry / "files").rglob("*.jpg")}
    assert len(whole) == 4
    assert all(p.read_bytes() == (there / p.relative_to(entry / "files")).read_bytes() for p in whole)
    examples = data.load(there.as_uri())
    assert tree(examples.root) == tree(there)
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    assert not (entry / "part").exists() and not (entry / "journal.jsonl").exists()


def test_two_processes_at_once(tmp_path: Path, cache: Path) -> None:
    there = make_photo_folder(tmp_path / "there", {"cat": 150, "dog": 150}, size=(8, 8))
    code = (
        "import sys; from edgetl import data; from fsspec.implementations.local import LocalFileSystem as L; "
        "real = L.get_file; seen = []; "
        "L.get_file = lambda self, *a, **k: (seen.append(1), real(self, *a, **k))[1]; "
        "print(len(data.load(sys.argv[1])), len(seen))"
    )
    command = [sys.executable, "-c", code, there.as_uri()]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ['PYTHONPATH']}"}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = sorted(tuple(map(int, process.communicate()[0].split())) for process in both)
    assert told == [(300, 0), (300, 300)], "each is fetched once, by the first"
    assert tree(data.locate(there.as_uri())) == tree(there)


# --- file://


def test_shared_folders(tmp_path: Path, cache: Path) -> None:
    there = make_photo_folder(tmp_path / "there", {"cat": 2, "dog": 2})
    (there / "cat/linked.jpg").symlink_to(there / "dog/0000.jpg")
    root = data.load(there.as_uri()).root
    assert tree(root) == tree(there)
    assert not (root / "cat/linked.jpg").is_symlink()
    (there / "owls").symlink_to(there / "dog")
    with pytest.raises(DatasetError, match=r"there/owls is a symbolic link to a folder\. Copy what it points to"):
        data.load(there.as_uri())
    with pytest.raises(DatasetError, match=r"^file://photos: needs an absolute path\. Write file:///mnt/photos"):
        data.load("file://photos")


# --- what strangers call their files


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/photos/../../evil.jpg", "the file name '../../evil.jpg' leads out of the folder. Rename it"),
        ("/photos/cat/../../../evil.jpg", "leads out of the folder"),
        ("/photos//etc/evil.jpg", "the file name '/etc/evil.jpg' leads out"),
        ("/photos/cat/./1.jpg", "leads out"),
        ("/photos/cat/a\nb.jpg", "file name 'cat/a\\nb.jpg' has a control or non-Unicode character. Rename it"),
        ("/photos/cat/\0.jpg", "has a control"),
        ("/photos/cat/\udcff.jpg", "has a control or non-Unicode"),
        ("/photos/cat/1.jpg/2.jpg", "cat/1.jpg is a file and a folder at once. Rename one of them"),
        ("/elsewhere/1.jpg", "leads out"),
    ],
)
def test_hostile_names(
    name: str, message: str, memory: Counting, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(memory, FOLDER)
    found = dict(memory.find("/photos", detail=True)) | {name: {"name": name, "size": 1, "type": "file", "created": 1}}
    monkeypatch.setattr(Counting, "find", lambda self, path, **keywords: found)
    with pytest.raises(DatasetError, match=re.escape(message)) as caught:
        data.load("counting://photos")
    assert "\n" not in str(caught.value)
    assert memory.fetched == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "nothing was written"


# --- errors


def test_secrets_are_refused_and_not_repeated(cache: Path) -> None:
    for url in (
        "s3://AKIA:hunter2@bucket/photos",
        "s3://AKIA:hunter2/x@bucket/photos",
        "https://me:hunter2@host/photos/",
        "https://host/photos?sig=hunter2",
        "sftp://me:hunter2@host:22/photos",
    ):
        with pytest.raises(DatasetError, match="a password, a key or a query in the URL") as caught:
            data.load(url)
        assert "hunter2" not in str(caught.value)
    assert not cache.exists()


def test_what_is_missing_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetError, match=r"^nosuch://a: unknown protocol 'nosuch'\. Known are s3, gs, "):
        data.load("nosuch://a")
    with pytest.raises(DatasetError, match=r"several file systems in one URL\. Give the place"):
        data.load("zip://x::memory://a.zip")
    for url, package in (("s3://b/p", "s3"), ("gs://b/p", "gcs")):
        monkeypatch.setitem(sys.modules, {"s3": "s3fs", "gcs": "gcsfs"}[package], None)
        message = rf"^{url}: a package is not installed \(.*\)\. Run: pip install 'edgetl\[{package}\]'$"
        with pytest.raises(DatasetError, match=message):
            data.load(url)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    for url, package in (("s3://b/p", r"'edgetl\[s3\]'"), ("memory://p", "'fsspec'")):
        with pytest.raises(DatasetError, match=rf"the package fsspec is not installed\. Run: pip install {package}"):
            data.load(url)
    assert not cache.exists()


class NoCredentialsError(Exception):
    """Called as botocore calls it."""


class HttpError(Exception):
    """Like gcsfs' own."""

    code = 401


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            FileNotFoundError("The specified bucket does not exist"),
            "no such place (The specified bucket does not exist)",
        ),
        (PermissionError("Access Denied"), "permission denied (Access Denied). Check its permissions and the cred"),
        (
            OSError("Forbidden: https://storage/b\nAnonymous caller"),
            "permission denied (Forbidden: https://storage/b An",
        ),
        (HttpError("Anonymous caller, 401"), "permission denied (Anonymous caller, 401)"),
        (NoCredentialsError("Unable to locate credentials"), "no credentials (Unable to locate credentials). Set them"),
        (TimeoutError(), "can't be read (TimeoutError). Check the network and the endpoint"),
        (ValueError("bad"), "can't be read (bad). Check the network"),
    ],
)
def test_errors_of_stores_are_one_line_and_name_the_last_copy(
    error: Exception, message: str, memory: Counting, cache: Path
) -> None:
    put(memory, FOLDER)
    memory.failing["find"] = error
    with pytest.raises(DatasetError, match=re.escape(f"counting://photos: {message}")) as caught:
        data.load("counting://photos")
    assert "--data" not in str(caught.value), "there is no copy yet"
    memory.failing.clear()
    root = data.load("counting://photos").root
    memory.failing["find"] = error
    with pytest.raises(DatasetError, match=re.escape(f"or take what was there the last time: --data {root}")) as caught:
        data.load("counting://photos")
    assert "\n" not in str(caught.value)
    assert len(data.load(str(root))) == len(FOLDER)


def test_a_full_disk_is_said_before_and_during(memory: Counting, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(memory, FOLDER)
    memory.failing["/photos/cat/1.jpg"] = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left") as caught:
        data.load("counting://photos")
    assert caught.value.filename
    memory.failing.clear()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 3}))
    with pytest.raises(DatasetError, match=r"GB free\. Free some disk space, or set EDGETL_CACHE"):
        data.load("counting://photos")


def test_what_changes_on_the_way_is_an_error(memory: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    put(memory, FOLDER)
    found = dict(memory.find("/photos", detail=True))
    monkeypatch.setattr(Counting, "find", lambda self, path, **keywords: found)
    put(memory, {"/photos/dog/3.jpg": b"longer"})
    with pytest.raises(DatasetError, match=r"dog/3\.jpg: 6 bytes came, 4 were listed; it changed on the way\. Run"):
        data.load("counting://photos")


def test_what_tells_no_version_is_fetched_again_but_keeps_its_time(
    memory: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(memory, FOLDER)
    real = memory.find("/photos", detail=True)
    bare = {name: {"name": name, "size": None, "type": "file"} for name in real}
    monkeypatch.setattr(Counting, "find", lambda self, path, **keywords: bare)
    monkeypatch.setattr(Counting, "info", lambda self, path, **keywords: bare[path])
    examples = data.load("counting://photos")
    key = photos_key(examples, 0)
    again = data.load("counting://photos")
    assert len(memory.fetched) == 2 * len(FOLDER)
    assert photos_key(again, 0) == key
    etags = {name: {**info, "size": 4, "ETag": "1"} for name, info in bare.items()}
    monkeypatch.setattr(Counting, "info", lambda self, path, **keywords: etags[path])
    data.load("counting://photos")
    data.load("counting://photos")
    assert len(memory.fetched) == 3 * len(FOLDER), "asked one by one, they tell"


# --- runs


def test_what_a_run_names_is_not_fetched_unasked(
    memory: Counting, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = ["counting://photos", "counting://photos/labels.csv", "file:///no/such/place", "ftp://127.0.0.1:9/x"]
    with monkeypatch.context() as patch:
        patch.setattr(fsspec.core, "url_to_fs", None)  # some connect as soon as there is an instance
        for url in urls:
            with pytest.raises(DatasetError, match=f"{url}: no copy of it here, .* To fetch it, add --data {url}$"):
                data.relocate(url)
    assert not (cache / "remote").exists()
    put(memory, FOLDER | {"/photos/labels.csv": b"path,label\ncat/1.jpg,a\ndog/2.jpg,b\n"})
    there = [data.locate(url) for url in urls[:2]]
    memory.failing["find"] = OSError("no network")
    assert [data.relocate(url) for url in urls[:2]] == there, "copies that are here serve"


def test_a_run_finds_its_photos_by_the_url(memory: Counting, photo_folder: Path, tmp_path: Path) -> None:
    from edgetl.rundir import open_run
    from recipes import feature_extraction

    upload(memory, photo_folder, "/photos")
    tiny: dict[str, Any] = {"backbone": "MobileNet", "width": 0.25, "weights": "none", "image_size": 32}
    config = feature_extraction.Config("counting://photos", tmp_path / "run", **tiny)
    run = feature_extraction.main(config)
    assert run.manifest.data == "counting://photos"
    assert json.loads((run.path / "config.json").read_text())["data"] == "counting://photos"
    assert len(run.splits().test) == 15
    assert len(memory.fetched) == 60
    assert feature_extraction.main(config).finished
    assert len(open_run(run.path).splits(str(remote.fetch("counting://photos"))).test) == 15


def test_a_folder_that_cannot_be_listed_is_an_error_and_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.local import LocalFileSystem

    make_photo_folder(tmp_path / "photos", {"cat": 3, "dog": 3, "owl": 3}, size=(16, 12))
    url = f"file://{tmp_path / 'photos'}"
    assert len(data.load(url)) == 9
    ls = LocalFileSystem.ls

    def failing(self: LocalFileSystem, path: str, detail: bool = False, **options: object) -> object:
        if str(path).rstrip("/").endswith("owl"):
            raise TimeoutError("the server did not answer")
        return ls(self, path, detail=detail, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", failing)
    with pytest.raises(DatasetError, match=r"file://.*photos: "):
        data.load(url)
    monkeypatch.undo()
    assert len(data.load(url)) == 9


@pytest.mark.parametrize(
    "url",
    [
        "https://ghp_TOKEN@host/photos/",
        "https://me%3Ahunter2@host/photos/",
        "az://container/photos?sv=1&sig=hunter2",
        "HTTPS://host/photos?sig=hunter2",
    ],
)
def test_secrets_in_other_clothes_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(DatasetError, match="a password, a key or a query") as error:
        data.load(url)
    assert not any(secret in str(error.value) for secret in ("TOKEN", "hunter2"))
