"""Photos in stores: real s3fs against moto's server, real gcsfs against an emulator, HTTP from a plain server."""

import http.server
import logging
import os
import shutil
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import client
from photos import make_photo_folder

from edgetl import data
from edgetl.errors import DatasetError
from edgetl.rundir import open_run
from export import convert
from recipes import feature_extraction

pytestmark = pytest.mark.clients
PHOTOS = {"cat": 12, "dog": 12}


@dataclass(frozen=True)
class Store:
    """A store that runs here, with a bucket called bucket."""

    protocol: str
    fs: Any
    log: list[str]
    """What its server logged of requests."""
    stop: Callable[[], None]

    def url(self, path: str) -> str:
        return f"{self.protocol}://bucket/{path}"

    def fetched(self) -> int:
        """How many objects were asked for since this was last asked; listings are no objects."""
        objects = [line for line in self.log if "GET /bucket/" in line or "GET /download/" in line]
        self.log.clear()
        return len(objects)


def start_s3(patch: pytest.MonkeyPatch) -> tuple[Any, Callable[[], None]]:
    server = client("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    request = urllib.request.Request(
        f"http://{host}:{port}/moto-api/reset", method="POST"
    )  # its state is the process's
    urllib.request.urlopen(request).close()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "testing")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return client("s3fs").S3FileSystem(skip_instance_cache=True), server.stop


def start_gs(patch: pytest.MonkeyPatch) -> tuple[Any, Callable[[], None]]:
    # Before gcsfs is imported: with it, each bucket is first asked over gRPC with TLS for its kind, for a minute here.
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    server = client("gcp_storage_emulator.server").create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    port = server._api._httpd.server_address[1]
    patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    patch.setattr("fsspec.config.conf", {"gs": {"token": "anon"}})  # as FSSPEC_GS_TOKEN=anon would, read at the import
    return client("gcsfs").GCSFileSystem(token="anon", skip_instance_cache=True), server.stop


STORES = {
    "s3": (start_s3, "werkzeug"),
    "gs": (start_gs, "gcp_storage_emulator.server"),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    start, logger = STORES[request.param]
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(logger).addHandler(handler)
    monkeypatch.setattr(logging.getLogger(logger), "level", logging.INFO)
    fs, stop = start(monkeypatch)
    try:
        fs.mkdir("bucket")
        yield Store(request.param, fs, lines, stop)
    finally:
        stop()
        logging.getLogger(logger).removeHandler(handler)
        type(fs).clear_instance_cache()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photo_folder(tmp_path_factory.mktemp("here") / "photos", PHOTOS)


def test_from_a_bucket_to_an_artifact(store: Store, photos: Path, tmp_path: Path) -> None:
    store.fs.put(str(photos), "bucket/photos", recursive=True)
    url = store.url("photos")
    store.fetched()

    def train(out: str) -> Any:
        path = tmp_path / out
        tiny = {"backbone": "MobileNet", "width": 0.25, "weights": "none", "image_size": 32}
        return feature_extraction.main(feature_extraction.Config(url, path, **tiny))

    run = train("first")
    assert store.fetched() == sum(PHOTOS.values())
    again = train("second")
    assert store.fetched() == 0, "what is here is not fetched again"
    assert again.manifest.data == run.manifest.data == url
    assert again.manifest.data_sha256 == run.manifest.data_sha256
    convert.main(convert.Config(run.path, ("int8",), calibration_images=12))
    assert (run.export_path / "int8.tflite").stat().st_size > 100_000
    assert store.fetched() == 0
    root = data.locate(url)
    assert {p.relative_to(root): p.read_bytes() for p in root.rglob("*.jpg")} == {
        p.relative_to(photos): p.read_bytes() for p in photos.rglob("*.jpg")
    }
    store.stop()
    shutil.rmtree(run.export_path)
    with pytest.raises(DatasetError, match=rf"^{url}: can't be read \(.*\)\. Check the network .* --data {root}$"):
        open_run(run.path).splits()
    assert len(open_run(run.path).splits(str(root)).test) == 6


def test_changes_tables_and_names(store: Store, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    store.fs.put(str(photos), "bucket/all/of/them", recursive=True)
    store.fs.pipe_file("bucket/all/Grün & 1 + 1=2%20.jpg", (photos / "cat/0000.jpg").read_bytes())
    store.fs.pipe_file("bucket/all/l.csv", "path,label\nGrün & 1 + 1=2%20.jpg,a\nof/them/dog/0001.jpg,b\n".encode())
    store.fetched()
    examples = data.load(store.url("all/l.csv"))
    assert [item.id for item in examples] == ["Grün & 1 + 1=2%20.jpg", "of/them/dog/0001.jpg"]
    assert examples.items[0].path.read_bytes() == (photos / "cat/0000.jpg").read_bytes()
    assert store.fetched() == 3
    store.fs.pipe_file("bucket/all/of/them/dog/0001.jpg", (photos / "dog/0002.jpg").read_bytes())
    changed = data.load(store.url("all/l.csv"))
    assert store.fetched() == 1
    assert changed.items[1].path.read_bytes() == (photos / "dog/0002.jpg").read_bytes()
    for name in ("nowhere", "all/nowhere.csv"):
        with pytest.raises(DatasetError, match=r"no such place \(|no photos there\. Check the bucket") as caught:
            data.load(store.url(name))
        assert "\n" not in str(caught.value)
    with pytest.raises(
        DatasetError, match=r"^.*://nobucket/x: no such place \(.*\)\. Check the bucket and the folder$"
    ):
        data.load(f"{store.protocol}://nobucket/x")


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_no_credentials(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # a machine in the cloud would be asked
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    client("s3fs").S3FileSystem.clear_instance_cache()
    with pytest.raises(
        DatasetError, match=r"no credentials \(Unable to locate credentials\)\. Set .*AWS_ACCESS_KEY_ID"
    ):
        data.load(store.url("photos"))


def test_http_listings(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing but a web page lists the files, each is asked for its size and time."""
    client("aiohttp")
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    there = shutil.copytree(photos, tmp_path / "there")
    (there / "cat/0000.jpg").rename(there / "cat/first of all & Grün.jpg")
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            asked.append(str(args[0]))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=there)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        examples = data.load(url)
        assert {item.id: item.path.read_bytes() for item in examples} == {
            p.relative_to(there).as_posix(): p.read_bytes() for p in there.rglob("*.jpg")
        }
        asked.clear()
        os.utime(there / "dog/0003.jpg", (1, 1))
        data.load(url)
        assert [line for line in asked if line.startswith("GET") and ".jpg" in line] == ["GET /dog/0003.jpg HTTP/1.1"]
        server.shutdown()
