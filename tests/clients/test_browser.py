"""The page of a bundle in headless Chromium: its pixels, its scores, and what a person sees."""

import base64
import io
import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_artifacts
from conftest import client
from photos import make_photo
from PIL import Image

from edgetl import data
from edgetl.data import read_image
from edgetl.inputs import ImageInput
from edgetl.rundir import open_run
from export import browser, convert
from export.artifacts import Artifact, find_artifacts
from export.device.interpreter import Model
from export.device.outputs import Outputs

pytestmark = pytest.mark.browser

EXACT = ("float32", "float16", "int8", "mixed_int8")
NEAR = {
    # Activations are rounded to 8 bits in flight, so a last bit decides about whole steps: measured 6e-3 on 32 photos,
    # where two kernels of the interpreter itself are 7e-2 apart.
    "dynamic_int8": 3e-2,
    # XNNPACK has no such operators, and the compilers of the other ones differ: measured three steps of 2**-15, on 2
    # photos of 64, the others equal.
    "int16x8": 16 / 2**15,
    # Unpacked weights are summed in another order: measured 1.8e-6, and 1.1e-6 between kernels of the interpreter.
    "int4_weights": 1e-5,
}
RULES = ("stretch", "crop", "pad")
FRAME = (64, 96)  # other than square, so that swapped sides show


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless browser with a camera that is not real and a name that is not localhost."""
    api = client("playwright.sync_api")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.fail("these tests need Chromium: apt-get install chromium")
    flags = ["--use-fake-device-for-media-stream", "--host-resolver-rules=MAP plain.test 127.0.0.1"]
    with api.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=path, args=flags)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def artifacts(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Artifact, Path]]:
    """Every scheme that the page takes, and int8_io8: description and file."""
    wanted = (*EXACT, *NEAR, "int8_io8")
    missing = [name for name in wanted if not (run / "export" / f"{name}.tflite").is_file()]
    if missing:
        run = Path(shutil.copytree(run, tmp_path_factory.mktemp("browser") / "run"))
        layers = ("block1a_dwconv",) if "mixed_int8" in missing else ()
        convert.main(convert.Config(run, tuple(missing), float_layers=layers))
    opened = open_run(run)
    return {each.scheme: (each, opened.export_path / each.path) for each in find_artifacts(opened, wanted)}


class Quiet(SimpleHTTPRequestHandler):
    """What `python3 -m http.server` is, without its log."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="session")
def sites(artifacts: dict[str, tuple[Artifact, Path]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a folder with one page per scheme."""
    root = tmp_path_factory.mktemp("sites")
    for scheme in (*EXACT, *NEAR):
        (root / scheme).mkdir()
        browser.write(root / scheme, *artifacts[scheme])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()


@pytest.fixture
def context(chromium: Any) -> Iterator[Any]:
    with chromium.new_context(viewport={"width": 1100, "height": 800}) as opened:
        yield opened


@pytest.fixture
def page(context: Any, sites: str) -> Iterator[Any]:
    """The int8 page, ready. Fails the test on any error in its console, or a request to another place."""
    opened, errors, asked = context.new_page(), [], []
    opened.on("console", lambda message: errors.append(message.text) if is_error(message) else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    context.on("request", lambda request: asked.append(request.url))
    opened.goto(f"{sites}/int8/")
    ready(opened)
    yield opened
    assert len(asked) > 10 and not [url for url in asked if not url.startswith((f"{sites}/int8/", f"blob:{sites}/"))]
    assert not errors


def is_error(message: Any) -> bool:
    """LiteRT.js says as errors what are none."""
    return message.type == "error" and not message.text.startswith(("INFO: ", "WARNING: "))


def ready(page: Any, text: str = "Ready.") -> None:
    """Wait until the status line says so."""
    page.wait_for_function("text => document.getElementById('status').textContent.includes(text)", arg=text)


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def file_of(pixels: np.ndarray, kind: str, mode: str = "", **options: Any) -> bytes:
    """A photo as bytes of a file."""
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


PREPARE = """async ([photo, inputs]) => {
    const [{ decoded }, { prepare }] = await Promise.all([import("./photo.js"), import("./pixels.js")]);
    return prepare(await decoded(new Blob([Uint8Array.fromBase64(photo)])), inputs).toBase64();
}"""


def distance(page: Any, photo: bytes, spec: ImageInput) -> np.ndarray:
    """How far the page's pixels are from training's, of 255."""
    inputs = {"height": spec.height, "width": spec.width, "resize": spec.resize}
    found = np.frombuffer(base64.b64decode(page.evaluate(PREPARE, [encoded(photo), inputs])), np.uint8)
    assert found.std() > 0 or photo == POINT
    return np.abs(found.reshape(spec.shape).astype(int) - read_image(photo, spec))


RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (199, 301, 4), dtype=np.uint8)
SCENE = make_photo(0, 0, (301, 199))
POINT = file_of(NOISE[:1, :1, :3], "PNG")
LOSSLESS = {
    "photo": file_of(SCENE, "PNG"),
    "wide": file_of(RANDOM.integers(0, 256, (37, 700, 3), dtype=np.uint8), "PNG"),
    "tall": file_of(RANDOM.integers(0, 256, (900, 17, 3), dtype=np.uint8), "PNG"),
    # More than one strip of the canvas, along either axis.
    "large": file_of(np.tile(NOISE[..., :3], (5, 6, 1)), "PNG", compress_level=1),
    "large, tall": file_of(np.tile(NOISE[..., :3], (13, 2, 1)), "PNG", compress_level=1),
    "small": file_of(NOISE[:40, :50, :3], "PNG"),
    "of the model's size": file_of(NOISE[:64, :96, :3], "PNG"),
    "one pixel": POINT,
    "grey": file_of(SCENE, "PNG", "L"),
    "palette": file_of(SCENE, "PNG", "P"),
    "black and white": file_of(SCENE, "PNG", "1"),
    "alpha": file_of(NOISE, "PNG"),
    "grey with alpha": file_of(NOISE, "PNG", "LA"),
    "transparent colour": file_of(SCENE, "PNG", "P", transparency=3),
    "gif": file_of(SCENE, "GIF"),
    "bmp": file_of(SCENE, "BMP"),
    "webp": file_of(SCENE, "WEBP"),
    "webp with alpha": file_of(NOISE, "WEBP", lossless=True),
    "webp, turned": file_of(SCENE, "WEBP", lossless=True, exif=turned(6)),
    **{f"turned {n}": file_of(NOISE[..., :3], "PNG", exif=turned(n)) for n in range(1, 9)},
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_pixels_are_those_of_training(page: Any, name: str) -> None:
    assert not [rule for rule in RULES if distance(page, LOSSLESS[name], ImageInput(*FRAME, rule)).any()]


def test_pixels_of_real_photos_are_those_of_training(page: Any, run: Path) -> None:
    opened = open_run(run)
    for photo in data.stratified_subset(opened.splits().test, 16, seed=0):
        assert not distance(page, photo.path.read_bytes(), opened.inputs).any(), photo.id


@pytest.mark.parametrize(
    ("photo", "mean", "most"),
    [
        # Browsers cut 16 bits to 8, training rounds them.
        (file_of(RANDOM.integers(0, 65536, (199, 301), dtype=np.uint16), "PNG"), 0.5, 1),
        # Both decode with libjpeg-turbo; the bound leaves room for another version of it.
        (file_of(SCENE, "JPEG", quality=90), 0.1, 2),
        (file_of(SCENE, "JPEG", subsampling=0, exif=turned(6)), 0.1, 2),
        (file_of(SCENE, "JPEG", "L"), 0.1, 2),
        (file_of(SCENE, "JPEG", "CMYK"), 0.5, 2),
        # Training decodes these at half and at an eighth of their size (see MARGIN), browsers in full.
        (file_of(make_photo(0, 0, (640, 480)), "JPEG"), 0.5, 3),
        (file_of(make_photo(0, 0, (3000, 2001)), "JPEG"), 0.5, 4),
    ],
    ids=["16 bits", "jpeg", "turned", "grey", "cmyk", "larger", "large"],
)
def test_pixels_of_lossy_decoding_are_near_those_of_training(page: Any, photo: bytes, mean: float, most: int) -> None:
    found = distance(page, photo, ImageInput(*FRAME))
    assert found.mean() <= mean and found.max() <= most, (found.mean(), found.max())


CLASSIFY = """async (photos) => {
    const { load } = await import("./classifier.js");
    const { verified, classify } = await load();
    const scores = [];
    for (const photo of photos) scores.push(...(await classify(Uint8Array.fromBase64(photo))).scores);
    return { verified, scores };
}"""


def scores_of(context: Any, address: str, photos: np.ndarray, *, relaxed: bool = True) -> np.ndarray:
    """What the page's model gives for pixels, [n, classes]."""
    page = context.new_page()
    page.route("**/app.js", lambda route: route.abort())  # it would load the model as well
    if not relaxed:
        page.route("**/litert_wasm_internal.js", lambda route: route.continue_(url=compat(route.request.url)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    found = page.evaluate(CLASSIFY, [encoded(one.tobytes()) for one in photos])
    assert found["verified"] and any(url.endswith("_compat_internal.wasm") for url in asked) is not relaxed
    return np.array(found["scores"], np.float32).reshape(len(photos), -1)


def compat(url: str) -> str:
    return url.replace("litert_wasm_internal", "litert_wasm_compat_internal")


@pytest.mark.parametrize("scheme", EXACT)
def test_scores_are_bit_equal_to_xnnpack(
    context: Any, sites: str, artifacts: dict[str, tuple[Artifact, Path]], photos: np.ndarray, scheme: str
) -> None:
    some = photos if scheme in ("int8", "float32") else photos[:8]
    expected = Model(artifacts[scheme][1]).predict_batch(some)
    assert np.array_equal(scores_of(context, f"{sites}/{scheme}/", some), expected)
    assert len(np.unique(expected)) > 4


@pytest.mark.parametrize("scheme", NEAR)
def test_scores_of_other_schemes_are_near_xnnpack(
    context: Any, sites: str, artifacts: dict[str, tuple[Artifact, Path]], photos: np.ndarray, scheme: str
) -> None:
    expected = Model(artifacts[scheme][1]).predict_batch(photos[:8])
    assert np.abs(scores_of(context, f"{sites}/{scheme}/", photos[:8]) - expected).max() <= NEAR[scheme]


@pytest.mark.parametrize(("scheme", "most"), [("int8", 0.0), ("float32", 1e-5)])
def test_browser_without_relaxed_simd(
    context: Any, sites: str, artifacts: dict[str, tuple[Artifact, Path]], photos: np.ndarray, scheme: str, most: float
) -> None:
    """Multiplication and addition are rounded one by one there: measured 1e-6 for floats."""
    expected = Model(artifacts[scheme][1]).predict_batch(photos[:8])
    found = scores_of(context, f"{sites}/{scheme}/", photos[:8], relaxed=False)
    assert np.abs(found - expected).max() <= most


def test_litert_js_refuses_int8_input_as_we_do(
    context: Any, sites: str, artifacts: dict[str, tuple[Artifact, Path]], photos: np.ndarray
) -> None:
    """When this fails, LiteRT.js takes int8, and so may the page."""
    content = artifacts["int8_io8"][1].read_bytes()
    page = context.new_page()
    page.route("**/app.js", lambda route: route.abort())
    page.route("**/int8.tflite", lambda route: route.fulfill(body=content))
    about = json.loads(context.request.get(f"{sites}/int8/model.json").text())
    about["sha256"] = artifacts["int8_io8"][0].sha256
    page.route("**/model.json", lambda route: route.fulfill(json=about))
    page.goto(f"{sites}/int8/")
    with pytest.raises(Exception, match="INT8 is not supported"):
        page.evaluate(CLASSIFY, [encoded(photos[0].tobytes())])


def drop(page: Any, files: dict[str, bytes]) -> None:
    """Drop files on the page as a mouse does."""
    page.evaluate(
        """files => {
            const dataTransfer = new DataTransfer();
            const made = ([name, content]) => new File([Uint8Array.fromBase64(content)], name);
            for (const each of files) dataTransfer.items.add(made(each));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        [[name, encoded(content)] for name, content in files.items()],
    )


def test_dropped_photos_show_their_labels(page: Any, run: Path, artifacts: dict[str, tuple[Artifact, Path]]) -> None:
    opened = open_run(run)
    chosen = data.stratified_subset(opened.splits().test, 4, seed=1)
    drop(page, {photo.path.name: photo.path.read_bytes() for photo in chosen})
    page.wait_for_function("() => document.querySelectorAll('figure .bar').length === 8")
    model, seen = Model(artifacts["int8"][1]), set()
    for photo in chosen:
        scores = model.predict(read_image(photo.path, opened.inputs))
        card = page.locator("figure", has_text=photo.path.name)
        assert card.locator(".name").first.text_content() == opened.output_names[scores.argmax()]
        shown = card.locator(".value").first.text_content()
        assert float(shown.rstrip("%")) == pytest.approx(100 * scores.max(), abs=0.051)  # shown with one digit
        assert card.locator(".latency").text_content().endswith(" ms for the model")
        seen.add(opened.output_names[scores.argmax()])
    assert len(seen) == 2
    assert "int8.tflite, 3.7 MB" in page.locator("footer").text_content()
    assert ", verified" in page.locator("footer").text_content()
    page.get_by_role("button", name="Clear photos").click()
    assert page.locator("figure").count() == 0


@pytest.fixture(scope="session", params=["multi_label", "regression"])
def other(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Artifact, Path]]:
    """A page of labels or of values: its address, and what it shows."""
    folder = tmp_path_factory.mktemp(request.param)
    artifact, model = tiny_artifacts.tiny_artifact(folder, "int8", task=request.param)
    (folder / "web").mkdir()
    browser.write(folder / "web", artifact, model)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder / "web"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}/", artifact, model
    server.shutdown()


def test_labels_and_values_are_shown_as_what_they_are(context: Any, other: tuple[str, Artifact, Path]) -> None:
    address, artifact, path = other
    page, model = context.new_page(), Model(path)
    page.goto(address)
    ready(page)
    photos = tiny_artifacts.pixels(6)
    drop(page, {f"{number}.png": file_of(photo, "PNG") for number, photo in enumerate(photos)})
    page.wait_for_function("() => document.querySelectorAll('figure .name').length === 18")
    outputs, counts = Outputs(**vars(artifact.outputs)), set()
    for number, photo in enumerate(photos):
        scores = model.predict(photo).tolist()
        card, said = page.locator("figure", has_text=f"{number}.png"), outputs.said(scores)
        names, values = (card.locator(each).all_text_contents() for each in (".name", ".value"))
        marked = card.locator(".said .name").all_text_contents()
        assert set(marked) == set(said)
        counts.add(len(marked))
        for name, shown in zip(names, values, strict=True):
            value = scores[outputs.names.index(name)]
            if outputs.task == "regression":
                assert float(shown) == pytest.approx(value, rel=1e-3), "four digits"
            else:
                assert float(shown.rstrip("%")) == pytest.approx(100 * value, abs=0.051)
        assert card.locator(".bar:visible").count() == (0 if outputs.task == "regression" else 3)
        assert names == list(outputs.names) or outputs.task == "multi_label", "values stay in their order"
        assert names[: len(marked)] == marked, "what is said comes first"
    assert len(counts) > 1 or outputs.task == "regression"
    assert page.get_by_role("status").text_content().startswith("5.png: ")


def test_files_that_are_no_photos_say_so_and_leave_the_others_alone(page: Any) -> None:
    whole = file_of(SCENE, "JPEG")
    page.get_by_label("Choose photos").set_input_files(
        [
            {"name": name, "mimeType": "image/jpeg", "buffer": content}
            for name, content in {"notes.jpg": b"hello", "cut.jpg": whole[:2000], "good.jpg": whole}.items()
        ]
    )
    ready(page, "good.jpg: ")
    cards = page.locator("figure")
    assert "not a photo that can be read (JPEG, PNG, BMP, GIF, WEBP)" in cards.filter(has_text="notes.jpg").inner_text()
    assert "damaged" in cards.filter(has_text="cut.jpg").inner_text()
    assert "%" in cards.filter(has_text="good.jpg").inner_text()


def test_a_webp_whose_sizes_go_round_in_circles_does_not_hang_the_page(page: Any) -> None:
    # A chunk of 2^32 - 9 bytes: with the padding in 32 bits, the next chunk would begin where this one does.
    body = b"WEBPVP8 " + (2**32 - 9).to_bytes(4, "little") + bytes(32)
    content = b"RIFF" + len(body).to_bytes(4, "little") + body
    page.set_input_files("#files", [{"name": "round.webp", "mimeType": "image/webp", "buffer": content}])
    ready(page, "round.webp: ")
    assert "round.webp" in page.locator("figure").inner_text()


def test_camera_shows_labels_until_it_is_stopped(context: Any, page: Any) -> None:
    context.grant_permissions(["camera"])
    page.get_by_role("button", name="Open camera").click()
    page.wait_for_function("() => /median of [2-9]/.test(document.getElementById('live-latency').textContent)")
    assert page.locator("#live-scores .name").all_text_contents()[0] in ("defective", "functional")
    assert page.get_by_role("status").text_content().startswith("Camera: ")
    page.get_by_role("button", name="Stop camera").click()
    assert not page.locator("#live").is_visible()
    assert page.evaluate("() => document.getElementById('video').srcObject") is None
    page.get_by_role("button", name="Open camera").click()  # again, while the last picture may still be awaited
    page.wait_for_function("() => /median of [2-9]/.test(document.getElementById('live-latency').textContent)")


def test_refused_camera_says_so(page: Any) -> None:
    page.get_by_role("button", name="Open camera").click()
    ready(page, "The camera was refused.")
    assert not page.locator("#live").is_visible()
    assert page.get_by_role("button", name="Open camera").is_enabled()


def test_plain_http_has_no_camera_and_no_hash(context: Any, sites: str) -> None:
    page = context.new_page()
    page.goto(f"{sites.replace('localhost', 'plain.test')}/int8/")
    ready(page)
    assert "not verified: that takes https or localhost" in page.locator("footer").text_content()
    page.get_by_role("button", name="Open camera").click()
    ready(page, "only to pages on https or on localhost")


@pytest.mark.parametrize(
    ("file", "body", "sentence"),
    [
        ("int8.tflite", b"TFL3 of another bundle", "int8.tflite is not the file that model.json describes."),
        ("int8.tflite", None, "int8.tflite is not there (404)."),
        ("litert/litert_wasm_internal.wasm", b"no wasm", "LiteRT.js can't load int8.tflite in this browser"),
    ],
)
def test_folder_that_is_not_whole_says_so(
    context: Any, sites: str, file: str, body: bytes | None, sentence: str
) -> None:
    page = context.new_page()
    answer: dict[str, Any] = {"status": 404} if body is None else {"body": body}
    page.route(f"**/{file}", lambda route: route.fulfill(**answer))
    page.goto(f"{sites}/int8/")
    ready(page, sentence)
    assert page.locator("#camera").is_disabled()


def test_page_opened_as_a_file_says_what_to_do(
    context: Any, artifacts: dict[str, tuple[Artifact, Path]], tmp_path: Path
) -> None:
    browser.write(tmp_path, *artifacts["int8"])
    page = context.new_page()
    page.goto((tmp_path / "index.html").as_uri())
    page.get_by_text("python3 -m http.server").wait_for(state="visible", timeout=5000)


def test_policy_keeps_the_page_on_its_origin(page: Any, sites: str) -> None:
    elsewhere = sites.replace("localhost", "127.0.0.1")  # the same server, another origin
    blocked = """url => fetch(url, { mode: "no-cors" }).then(() => "let through", error => error.message)"""
    refused = page.context.new_page()
    refused.goto(page.url)
    assert refused.evaluate(blocked, f"{elsewhere}/int8/model.json") == "Failed to fetch"
    assert refused.evaluate(blocked, f"{page.url}model.json") == "let through"
    refused.close()


def test_narrow_screen_shows_all_without_scrolling_sideways(context: Any, sites: str) -> None:
    about = json.loads(context.request.get(f"{sites}/int8/model.json").text())
    about["outputs"]["names"] = ["a class with a name that is far longer than a phone is wide", "x" * 90]
    page = context.new_page()
    page.set_viewport_size({"width": 320, "height": 640})
    page.route("**/model.json", lambda route: route.fulfill(json=about))
    page.goto(f"{sites}/int8/")
    ready(page)
    drop(page, {"y" * 80 + ".png": LOSSLESS["photo"], "notes.jpg": b"hello"})
    page.wait_for_function("() => document.querySelectorAll('figure.failed, figure .bar').length === 3")
    wide = page.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide == [320, 320]


def test_keyboard_reaches_every_control_and_each_has_a_name(page: Any) -> None:
    reached = []
    for _ in range(2):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.id"))
    assert reached == ["files", "camera"]
    tree = page.locator("main").aria_snapshot()
    assert 'button "Choose photos or drop them anywhere' in tree and 'button "Open camera"' in tree
