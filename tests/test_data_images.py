"""Bytes -> pixels: every mode and format, the resize rules, orientation, damage."""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import make_photo
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from edgetl.audit.looks import look
from edgetl.data import geometry, images, read_image
from edgetl.errors import UnreadableImageError
from edgetl.inputs import ImageInput

PHOTO = make_photo(kind=1, number=0, size=(40, 24))
SAME = ImageInput(height=24, width=40)
RULES = ("stretch", "crop", "pad")


def encoded(image: Image.Image | np.ndarray, format: str, **options: object) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def read(image: Image.Image | np.ndarray, format: str, spec: ImageInput = SAME, **options: object) -> np.ndarray:
    return read_image(encoded(image, format, **options), spec)


def apart(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# --- formats and modes; the frame has the size of the photo, so nothing is resized


@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("PNG", {"interlace": 1})]
)
def test_lossless_formats_give_the_pixels_that_were_saved(format: str, options: dict[str, object]) -> None:
    pixels = read(PHOTO, format, **options)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, PHOTO)


@pytest.mark.parametrize("options", [{"quality": 95}, {"quality": 95, "progressive": True}])
def test_jpeg_is_close_to_what_was_saved(options: dict[str, object]) -> None:
    smooth = np.array(Image.fromarray(PHOTO).resize((4, 3)).resize((40, 24)))
    assert apart(read(smooth, "JPEG", subsampling=0, **options), smooth) <= 8  # quality 95 rounds DCT terms by a few


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "WEBP"])
def test_grey_fills_three_equal_channels(format: str) -> None:
    grey = Image.fromarray(PHOTO).convert("L")
    pixels = read(grey, format, **({"lossless": True} if format == "WEBP" else {}))
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert apart(pixels[..., 0], np.asarray(grey)) <= (20 if format == "JPEG" else 0)  # JPEG loses some noise


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP"])
def test_palette(format: str) -> None:
    palette = Image.fromarray(PHOTO).quantize(16)
    np.testing.assert_array_equal(read(palette, format), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_transparent_palette_entry_becomes_white(format: str) -> None:
    indices = np.zeros((24, 40), dtype=np.uint8)
    indices[:, 20:] = 1
    palette = Image.fromarray(indices, mode="P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    pixels = read(palette, format, transparency=0)
    assert (pixels[:, :20] == 255).all()
    assert (pixels[:, 20:] == (200, 100, 50)).all()


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_transparency_is_laid_on_white(format: str) -> None:
    rgba = np.zeros((24, 40, 4), dtype=np.uint8)
    rgba[:, 10:20] = (200, 100, 0, 255)
    rgba[:, 20:] = (200, 100, 0, 128)
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    pixels = read(rgba, format, **options)
    assert (pixels[:, :10] == 255).all()
    assert (pixels[:, 10:20] == (200, 100, 0)).all()
    half = 255 - (255 - np.array([200, 100, 0])) * 128 / 255
    assert np.abs(pixels[:, 20:] - half).max() <= 1  # integer arithmetic of the blend


def test_grey_with_alpha_and_colour_key() -> None:
    la = np.zeros((24, 40, 2), dtype=np.uint8)
    la[:, 20:] = (90, 255)
    pixels = read(Image.fromarray(la, mode="LA"), "PNG")
    assert (pixels[:, :20] == 255).all()
    assert (pixels[:, 20:] == 90).all()
    keyed = np.full((24, 40, 3), 7, dtype=np.uint8)
    keyed[:, 20:] = 90
    pixels = read(keyed, "PNG", transparency=(7, 7, 7))
    assert (pixels[:, :20] == 255).all()
    assert (pixels[:, 20:] == 90).all()


def test_cmyk_jpeg_has_the_right_colours() -> None:
    cmyk = np.zeros((24, 40, 4), dtype=np.uint8)
    cmyk[:, :20] = (0, 255, 255, 0)  # magenta and yellow: red
    cmyk[:, 20:] = (255, 0, 0, 0)  # cyan
    pixels = read(Image.fromarray(cmyk, mode="CMYK"), "JPEG", quality=95)
    assert np.abs(pixels[4:20, 4:12].astype(int) - (255, 0, 0)).max() <= 4  # away from the edge, which JPEG blurs
    assert np.abs(pixels[4:20, 28:36].astype(int) - (0, 255, 255)).max() <= 4


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    wide = np.linspace(0, 65535, 24 * 40).astype(np.uint16).reshape(24, 40)
    pixels = read(Image.fromarray(wide), "PNG")
    np.testing.assert_array_equal(pixels[..., 1], np.round(wide / 257).astype(np.uint8))
    assert pixels.max() == 255


def test_sixteen_bit_colour_keeps_the_upper_byte() -> None:
    wide = np.arange(24 * 40 * 3, dtype=">u2").reshape(24, 40, 3)
    wide = (wide * 20).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    pixels = read_image(png(40, 24, depth=16, colour=2, rows=rows), SAME)
    np.testing.assert_array_equal(pixels, (wide >> 8).astype(np.uint8))


def test_thirty_two_bit_integers_are_taken_as_sixteen_and_floats_refused() -> None:
    """Older Pillow gives 16-bit PNG as mode I; F stands for whatever has no known range."""
    values = np.array([[0, 257, 65535]], dtype=np.int32)
    assert np.asarray(images._eight_bit(Image.fromarray(values))).tolist() == [[0, 1, 255]]
    with pytest.raises(UnreadableImageError, match="expected 16 bits"):
        images._eight_bit(Image.fromarray(values + 1))
    with pytest.raises(UnreadableImageError, match="floating-point"):
        images._eight_bit(Image.fromarray(values.astype(np.float32)))


@pytest.mark.parametrize("format", ["PNG", "BMP"])
def test_one_bit(format: str) -> None:
    dots = np.random.default_rng(0).random((24, 40)) > 0.5
    np.testing.assert_array_equal(read(Image.fromarray(dots), format)[..., 2], dots * np.uint8(255))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "MPO"])
def test_first_frame_of_many(format: str) -> None:
    frames = [Image.new("RGB", (40, 24), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    options = {"lossless": True} if format == "WEBP" else {}
    pixels = read(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert apart(pixels, np.asarray(frames[0])) <= 2  # MPO is JPEG


# --- orientation


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_photo(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(PHOTO, format, exif=exif.tobytes(), **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert upright.shape == ((40, 24, 3) if orientation >= 5 else (24, 40, 3))
    pixels = read_image(data, ImageInput(*upright.shape[:2]))
    np.testing.assert_array_equal(pixels, upright)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("orientation", range(2, 9))
def test_orientation_and_resize_together(rule: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PHOTO, "PNG", exif=exif.tobytes())
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    spec = ImageInput(17, 11, rule)
    # Pillow resizes rows first, then columns, rounding in between; turning swaps that order.
    assert apart(read_image(data, spec), read(upright, "PNG", spec)) <= 1


@pytest.mark.parametrize("value", [0, 9, 77])
def test_senseless_orientation_counts_as_upright(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    np.testing.assert_array_equal(read(PHOTO, "PNG", exif=exif.tobytes()), PHOTO)


def test_damaged_exif_does_not_cost_the_photo() -> None:
    pixels = read(PHOTO, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    np.testing.assert_array_equal(pixels, read(PHOTO, "JPEG"))


# --- resize rules


def thirds(width: int, height: int) -> np.ndarray:
    """Red, green and blue thirds along the longer side."""
    band = np.zeros((max(width, height), 3), dtype=np.uint8)
    for colour, part in enumerate(np.array_split(np.arange(len(band)), 3)):
        band[part, colour] = 255
    long = np.broadcast_to(band[:, None] if height > width else band[None], (height, width, 3))
    return np.ascontiguousarray(long)


def test_stretch_is_pillows_antialiased_bilinear() -> None:
    spec = ImageInput(9, 13)
    want = np.asarray(Image.fromarray(PHOTO).resize((13, 9), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(read(PHOTO, "PNG", spec), want)


def test_shrinking_averages_instead_of_picking() -> None:
    checks = (np.indices((240, 400)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.abs(read(checks, "PNG", ImageInput(24, 40)).astype(int) - 127.5).max() <= 2  # grey, no pattern left


@pytest.mark.parametrize(("width", "height"), [(90, 30), (30, 90)])
def test_crop_keeps_the_centre(width: int, height: int) -> None:
    pixels = read(thirds(width, height), "PNG", ImageInput(30, 30, "crop"))
    assert (pixels == (0, 255, 0)).all()


@pytest.mark.parametrize(("width", "height"), [(90, 30), (30, 90)])
def test_pad_keeps_everything_between_black_bars(width: int, height: int) -> None:
    pixels = read(thirds(width, height) // 2 + 100, "PNG", ImageInput(45, 45, "pad"))
    pixels = pixels if width > height else pixels.transpose(1, 0, 2)
    assert (pixels[:15] == 0).all()
    assert (pixels[30:] == 0).all()
    assert (pixels[15:30] >= 100).all()
    assert pixels[20, 2].argmax() == 0
    assert pixels[20, 42].argmax() == 2


@settings(max_examples=150, deadline=None)
@given(
    photo=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    frame=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    rule=st.sampled_from(RULES),
)
def test_geometry_of_any_size(photo: tuple[int, int], frame: tuple[int, int], rule: str) -> None:
    (left, top, right, bottom), (width, height) = geometry.placed(photo, frame, rule)
    assert 0 <= left < right <= photo[0]
    assert 0 <= top < bottom <= photo[1]
    assert 1 <= width <= frame[0]
    assert 1 <= height <= frame[1]
    image = Image.open(io.BytesIO(encoded(Image.new("RGB", photo), "JPEG")))
    scale = images._shrink_on_decode(image, (left, top, right, bottom), (width, height))
    assert image.size == tuple(-(-side // scale) for side in photo)  # libjpeg did what was asked
    if scale > 1:
        assert (right - left) / scale >= 2 * width
        assert (bottom - top) / scale >= 2 * height
    pixels = read(Image.new("RGB", photo, "white"), "JPEG", ImageInput(frame[1], frame[0], rule))
    assert pixels.shape == (frame[1], frame[0], 3)
    if rule != "pad":
        assert (pixels == 255).all()


# --- scaled decoding of large JPEGs


@pytest.fixture(scope="module")
def twelve_megapixels() -> bytes:
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((4000, 3000), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).integers(-12, 13, (3000, 4000, 1), dtype=np.int16)
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(np.clip(np.asarray(photo) + noise, 0, 255).astype(np.uint8), "JPEG", quality=90, exif=exif.tobytes())


@pytest.mark.parametrize("spec", [ImageInput(224, 224), ImageInput(224, 160, "crop"), ImageInput(96, 128, "pad")])
def test_scaled_decoding_stays_close_to_full_decoding(
    twelve_megapixels: bytes, spec: ImageInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = read_image(twelve_megapixels, spec).astype(int)
    monkeypatch.setattr(images, "MARGIN", 1e9)
    full = read_image(twelve_megapixels, spec).astype(int)
    difference = np.abs(fast - full)
    assert difference.any()  # else the fast path was not taken
    # The inverse DCT at a fraction of the size averages blocks of pixels before the triangle filter sees them. Measured
    # on this photo: mean 0.25, max 3 where 3.3 decoded pixels make one, mean 0.6, max 7 where 2.2 do (the crop). A box
    # that is off by one decoded pixel gives a mean of 1.2.
    assert difference.mean() < 0.8
    assert difference.max() <= 12


# --- what can't be read


def png(width: int, height: int, *, depth: int = 8, colour: int = 0, rows: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def with_scans(photo: np.ndarray, more: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.fromarray(photo).convert("L"), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * more + data[-2:]


UNREADABLE = {
    "empty": (b"", "empty file"),
    "text": (b"<html>404 not found</html>", "not a photo that can be read (JPEG, PNG, BMP, GIF, WEBP)"),
    "tiff": (encoded(PHOTO, "TIFF"), "not a photo that can be read"),
    "truncated jpeg": (encoded(PHOTO, "JPEG")[:-80], "damaged: image file is truncated"),
    "truncated png": (encoded(PHOTO, "PNG")[:-200], "damaged: "),
    "truncated webp": (encoded(PHOTO, "WEBP")[:-100], ""),
    "truncated bmp": (encoded(PHOTO, "BMP")[:-200], "damaged: image file is truncated"),
    "truncated gif": (encoded(PHOTO, "GIF")[:-300], "damaged: image file is truncated"),
    "header only": (encoded(PHOTO, "JPEG")[:20], ""),
    "bomb": (png(60_000, 60_000), "too many pixels, the limit is 178956970"),
    "webp bomb": (encoded(Image.new("RGB", (9_600, 9_600)), "WEBP"), "9600x9600 pixels, the limit is 89478485"),
    "line": (png(65_536, 1), "65536x1 pixels, the limit of a side is 65535"),
    "scans": (with_scans(PHOTO, 4_000), "4006 scans of 40x24 pixels, the limit is 3410"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_files_say_why(name: str, tmp_path: Path) -> None:
    data, reason = UNREADABLE[name]
    with pytest.raises(UnreadableImageError) as of_bytes:
        read_image(data, SAME)
    assert str(of_bytes.value).startswith(reason)
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(UnreadableImageError) as of_path:
        read_image(path, SAME)
    assert str(of_path.value) == f"{path}: {of_bytes.value}"
    assert "\n" not in str(of_path.value)


def test_missing_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"gone\.jpg: No such file"):
        read_image(tmp_path / "gone.jpg", SAME)


def test_what_only_looks_like_scans_is_no_scan() -> None:
    # A phone puts a film behind its photo, in which any bytes may be.
    photo = with_scans(PHOTO, 40)
    np.testing.assert_array_equal(read_image(photo + b"\xff\xda" * 4_000, SAME), read_image(photo, SAME))


def with_segments(jpeg: bytes, marker: int, bodies: Iterable[bytes]) -> bytes:
    parts = (bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body for body in bodies)
    return jpeg[:2] + b"".join(parts) + jpeg[2:]


XMP = b"http://ns.adobe.com/xmp/extension/\0"
EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\3\0\0\0\0\0\0"


def lengthy() -> dict[str, bytes]:
    """Honest photos with as much beside the picture as any camera or program writes."""
    jpeg, png, gif = (encoded(PHOTO, kind) for kind in ("JPEG", "PNG", "GIF"))
    at = png.index(b"IDAT") - 4
    stored = zlib.decompress(png[at + 8 : at + 8 + int.from_bytes(png[at : at + 4], "big")])
    packed = zlib.compress(stored, 0)
    bits = b"".join(_chunk(b"IDAT", packed[here : here + 1]) for here in range(len(packed)))
    frame = gif[gif.index(b",", 13 + 3 * 256) : -1]
    return {
        "a depth map.jpg": with_segments(jpeg, 0xE1, [XMP + bytes(65_000)] * 250),
        "the largest profile.jpg": with_segments(
            jpeg, 0xE2, [b"ICC_PROFILE\0" + bytes((n, 255)) + bytes(65_519) for n in range(1, 256)]
        ),
        "10 000 segments.jpg": with_segments(jpeg, 0xED, [b"x"] * 10_000),
        "two exifs.jpg": with_segments(jpeg, 0xE1, [EXIF + bytes(65_000), EXIF + bytes(65_000)]),
        "erased flash memory behind.jpg": jpeg + b"\xff" * 1_000_000,
        "a chunk for each byte.png": png[:at] + bits + _chunk(b"IEND", b""),
        "texts behind.png": png[:-12] + _chunk(b"tEXt", b"a\0b") * 10_000 + png[-12:],
        "5 000 frames.gif": gif[:-1] + frame * 5000 + b";",
    }


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("name", lengthy())
def test_much_beside_the_picture_costs_no_photo(name: str) -> None:
    expected = read(PHOTO, {"jpg": "JPEG", "png": "PNG", "gif": "GIF"}[name[-3:]])
    if name == "two exifs.jpg":  # which turn it upside down
        expected = expected[::-1, ::-1]
    data = lengthy()[name]
    np.testing.assert_array_equal(read_image(data, SAME), expected)
    assert look(data)["frames"] == (5001 if name.endswith("gif") else 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            lambda jpeg: with_segments(jpeg, 0xE5, [b""] * 210_000),
            "in too many small pieces, the limit is 600000 reads",
        ),
        (lambda jpeg: with_segments(jpeg, 0xE5, [bytes(65_000)] * 280), "no picture in the first 18000000 bytes"),
        (lambda jpeg: jpeg[:-2] + b"\xff" * 200_000, "65536 bytes of fill"),
    ],
    ids=["pieces", "head", "fill"],
)
def test_what_would_take_long_is_refused(data: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(UnreadableImageError, match=message):
        read_image(data(encoded(PHOTO, "JPEG")), SAME)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", Path("/dev/zero"), tmp_path):
        with pytest.raises(UnreadableImageError, match=f"{path}: not a regular file"):
            read_image(path, SAME)
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(images.MAX_FILE_BYTES + 1)  # without taking the place
    with pytest.raises(UnreadableImageError, match="1073741825 bytes, the limit is 1073741824"):
        read_image(tmp_path / "huge.jpg", SAME)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK", "I;16", "RGB"])
def test_strips_of_a_large_photo_give_what_the_whole_gives(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(PHOTO).convert("L" if mode == "I;16" else mode)
    image = image.convert("I;16") if mode == "I;16" else image
    whole = np.asarray(images._eight_bit(image))
    monkeypatch.setattr(images, "_ROWS", 40 * 7)  # 24 rows: three strips and a rest
    monkeypatch.setattr(images, "LARGE", 1)
    np.testing.assert_array_equal(images._eight_bit(image), whole)
    if mode != "CMYK":
        read(image, "PNG")


def test_pixel_limit_holds_even_where_pillows_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(UnreadableImageError, match="60000x60000 pixels, the limit is"):
        read_image(png(60_000, 60_000), SAME)


def test_content_counts_not_extension(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(PHOTO, "PNG"))
    np.testing.assert_array_equal(read_image(path, SAME), PHOTO)


@settings(max_examples=200, deadline=None)
@given(
    data=st.sampled_from([encoded(PHOTO, f) for f in ("JPEG", "PNG", "BMP", "GIF", "WEBP")]),
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_bytes_give_pixels_or_one_kind_of_error(data: bytes, places: list[tuple[float, int]]) -> None:
    damaged = bytearray(data)
    for place, value in places:
        damaged[int(place * min(len(data), 400))] = value
    try:
        assert read_image(bytes(damaged), SAME).shape == (24, 40, 3)
    except UnreadableImageError as error:
        assert "\n" not in str(error)


def test_threads_read_what_one_thread_reads() -> None:
    data = [encoded(make_photo(kind, 0), f) for kind in range(20) for f in ("JPEG", "PNG", "WEBP", "GIF")]
    spec = ImageInput(20, 20, "crop")
    with ThreadPoolExecutor(8) as pool:
        for parallel, alone in zip(pool.map(lambda d: read_image(d, spec), data), data, strict=True):
            np.testing.assert_array_equal(parallel, read_image(alone, spec))
