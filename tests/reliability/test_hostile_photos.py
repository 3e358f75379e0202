"""Photos from anyone: whatever a file holds or is called, it is read, or left out with a reason, and that is all.

Promised: no file kills the process or makes it wait; each takes a bounded time and memory; host and device give the
same pixels, or the same reason; a command names what it leaves out, and no name can forge a line of what it prints.

How: real and drawn photos, in every format and mode that edgetl reads, damaged by a seeded generator, and files made to
harm. One process of its own reads them all, by every way that photos go in: a decoder that crashes would take it down.
"""

import csv
import functools
import io
import json
import os
import pickle
import random
import shutil
import socket
import struct
import subprocess
import sys
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import skimage
from photos import make_photo, make_photo_folder
from PIL import Image
from sklearn.datasets import load_sample_image

from edgetl.rundir import RunDir

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SEED = 20
MAX_SECONDS = 5
"""Of processor time for one photo by one way in; the machine may be busy with other things."""
WAYS = ("train", "audit", "device")
LARGEST_SECONDS = 10
"""Likewise, of a photo right at the limit of pixels: 177 megapixels with transparency took 5.3."""
STUCK_SECONDS = 100
"""A file that takes longer by the clock ends the process, with the place where it hangs."""

# --- the readers: a process of its own ------------------------------------------------------------------------------

PEAK = """
def peak_mb():
    # Not ru_maxrss, which begins at what the process that started this one had.
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000

"""
READERS = """
import faulthandler, json, sys, time
from pathlib import Path

from edgetl.audit.looks import look
from edgetl.data import Example
from edgetl.data.images import read_file
from edgetl.data.pipeline import load_pixels
from edgetl.errors import UnreadableImageError
from edgetl.inputs import ImageInput
from export.device.errors import DeviceError
from export.device.preprocess import read

ADVICE = ". Give a photo, or a frame as a .npy file"
SPEC = ImageInput(64, 48, sys.argv[1])
INPUTS = {"kind": "image", "height": 64, "width": 48, "resize": sys.argv[1]}
WAYS = {
    "train": lambda path: load_pixels(Example(path.name, path, 0), SPEC)[0],
    "audit": lambda path: look(read_file(path)),
    "device": lambda path: read(path, INPUTS),
}

def tell(path):
    said = {"name": path.name}
    for way in sys.argv[3:]:
        print(json.dumps([path.name, way]), file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True)
        start, used = time.monotonic(), time.process_time()
        try:
            found = WAYS[way](path)
            if way == "audit":
                plain = all(0 <= float(found[key]) < 1e6 for key in ("bright", "dark", "deviation", "sharpness"))
                said[way] = f"looked at {plain}"
            else:
                said[way] = f"pixels {found.dtype} {found.shape} {hash(found.tobytes())}"
        except UnreadableImageError as error:
            said[way] = f"reason: {error}"
        except DeviceError as error:
            said[way] = "reason: " + str(error).removeprefix(f"{path}: ").removesuffix(ADVICE)
        said[f"{way}_s"], said[f"{way}_cpu"] = time.monotonic() - start, time.process_time() - used
        faulthandler.cancel_dump_traceback_later()
    said["peak_mb"] = peak_mb()
    return said

faulthandler.enable()
for line in sys.stdin:
    print(json.dumps(tell(Path(json.loads(line)))), flush=True)
"""


def read_all(paths: list[Path], ways: Sequence[str] = WAYS) -> list[dict[str, object]]:
    """What each way in said of each file; fails where the process dies, naming the file that killed it."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK + READERS, "stretch", str(STUCK_SECONDS), *ways],
        input="".join(f"{json.dumps(str(path))}\n" for path in paths),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"seed {SEED}: ended with {done.returncode}: {done.stderr[-3000:]}"
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["name"] for each in said] == [path.name for path in paths]
    return said


def check(said: list[dict[str, object]]) -> Counter[str]:
    """Every file is read alike everywhere, or refused for the same reason; returns how many, and the reasons' kinds."""
    counts: Counter[str] = Counter()
    for each in said:
        where = f"seed {SEED}: {each}"
        train, audit, device = (str(each[way]) for way in ("train", "audit", "device"))
        assert train == device, where
        if train.startswith("pixels"):
            assert train.startswith("pixels uint8 (64, 48, 3) "), where
            assert audit == "looked at True", where
        else:
            assert audit == train and len(train) > len("reason: x") and train.isprintable(), where
        for way in WAYS:
            assert float(str(each[f"{way}_cpu"])) < MAX_SECONDS, where
        counts["read" if train.startswith("pixels") else "refused"] += 1
    return counts


def slowest(said: list[dict[str, object]], what: str) -> str:
    return f"{max(float(str(each[f'{way}_{what}'])) for each in said for way in WAYS):.2f} s"


# --- photos, damaged ------------------------------------------------------------------------------------------------

Damage = Callable[[random.Random, bytes], bytes]


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "maker"
    return exif.tobytes()


def sources() -> list[Image.Image]:
    folder = Path(skimage.__file__).parent / "data"
    real = [Image.open(folder / name).convert("RGB") for name in ("astronaut.png", "coffee.png", "chelsea.png")]
    real += [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    return [*(photo.resize((120, 96)) for photo in real), Image.fromarray(make_photo(1, 0, size=(97, 61)))]


@functools.cache
def whole() -> dict[str, bytes]:
    """Sound photos: every format, mode and trait that edgetl reads; name.extension -> bytes."""
    rng, many = random.Random(SEED), sources()
    colour = lambda: rng.choice(many)  # noqa: E731
    alpha = colour().convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(alpha.size))
    palette, grey = colour().quantize(60), colour().convert("L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames = {"save_all": True, "append_images": many[1:4], "duration": 40}
    made = {
        "plain.jpg": encoded(colour(), "JPEG", quality=85),
        "best.jpeg": encoded(colour(), "JPEG", quality=98, subsampling=0),
        "progressive.jpg": encoded(colour(), "JPEG", progressive=True),
        "restart.jpg": encoded(colour(), "JPEG", restart_marker_blocks=3),
        "grey.jpg": encoded(grey, "JPEG"),
        "cmyk.jpg": encoded(colour().convert("CMYK"), "JPEG"),
        "cmyk progressive.jpg": encoded(colour().convert("CMYK"), "JPEG", progressive=True),
        "large.jpg": encoded(many[3].resize((900, 700)), "JPEG", progressive=True),
        "pictures.jpg": encoded(many[4], "MPO", save_all=True, append_images=many[:2]),
        "plain.png": encoded(colour(), "PNG"),
        "alpha.png": encoded(alpha, "PNG"),
        "grey alpha.png": encoded(alpha.convert("LA"), "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "transparent.png": encoded(palette, "PNG", transparency=bytes(range(60))),
        "keyed.png": encoded(colour(), "PNG", transparency=(7, 7, 7)),
        "sixteen.png": encoded(wide, "PNG"),
        "one bit.png": encoded(grey.convert("1"), "PNG"),
        "two bits.png": encoded(colour().quantize(4), "PNG", bits=2),
        "exif.png": encoded(colour(), "PNG", exif=oriented(5)),
        "animated.png": encoded(many[0], "PNG", **frames),
        "plain.bmp": encoded(colour(), "BMP"),
        "alpha.bmp": encoded(alpha, "BMP"),
        "grey.bmp": encoded(grey, "BMP"),
        "palette.bmp": encoded(palette, "BMP"),
        "one bit.bmp": encoded(grey.convert("1"), "BMP"),
        "plain.gif": encoded(palette, "GIF"),
        "transparent.gif": encoded(palette, "GIF", transparency=3),
        "interlaced.gif": encoded(palette, "GIF", interlace=1),
        "animated.gif": encoded(many[0], "GIF", **frames),
        "lossy.webp": encoded(colour(), "WEBP"),
        "lossless.webp": encoded(colour(), "WEBP", lossless=True),
        "alpha.webp": encoded(alpha, "WEBP"),
        "animated.webp": encoded(many[0], "WEBP", **frames),
        "exif.webp": encoded(colour(), "WEBP", exif=oriented(6)),
    }
    return made | {f"turned {n}.jpg": encoded(colour(), "JPEG", exif=oriented(n)) for n in range(1, 9)}


def segments(data: bytes) -> list[bytes]:
    """A file cut where its format begins a chunk; one without chunks cut into eight."""
    if data[:4] == b"\x89PNG":
        cuts, size, at = [8], 12, 8
        while at + size <= len(data):
            at += size + struct.unpack(">I", data[at : at + 4])[0]
            cuts.append(at)
    elif data[:4] == b"RIFF":
        cuts, at = [12], 12
        while at + 8 <= len(data):
            at += 8 + (struct.unpack("<I", data[at + 4 : at + 8])[0] + 1) // 2 * 2
            cuts.append(at)
    elif data[:2] == b"\xff\xd8":
        cuts = [at for at in range(2, len(data) - 1) if data[at] == 0xFF and data[at + 1] not in (0x00, 0xFF)]
    else:
        cuts = [len(data) * part // 8 for part in range(1, 8)]
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]


def flipped(rng: random.Random, data: bytes, before: int, most: int) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.randint(1, most)):
        damaged[rng.randrange(min(before, len(data)))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def rearranged(rng: random.Random, data: bytes) -> bytes:
    parts = segments(data)
    at = rng.randrange(len(parts))
    match rng.choice(("remove", "double", "swap", "many")):
        case "remove":
            del parts[at]
        case "double":
            parts.insert(at, parts[at])
        case "swap":
            other = rng.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        case "many":
            parts[at:at] = [parts[at]] * 50
    return b"".join(parts)


def overwritten(rng: random.Random, data: bytes) -> bytes:
    at, count = rng.randrange(len(data)), rng.choice((1, 4, 64, 1024))
    filling = rng.choice((b"\0" * count, b"\xff" * count, rng.randbytes(count)))
    return data[:at] + filling + data[at + (count if rng.random() < 0.5 else 0) :]


def with_right_sums(rng: random.Random, data: bytes) -> bytes:
    """Flips in a PNG whose check sums are right again, so that the damage gets past them; in others, of lengths."""
    if data[:4] != b"\x89PNG":
        return flipped(rng, data, 32, 3)
    head, *chunks = segments(data)
    at = rng.randrange(len(chunks))
    body = bytearray(chunks[at][4:-4])
    body[rng.randrange(min(4, len(body) - 1), len(body)) if len(body) > 4 else 0] ^= 1 << rng.randrange(8)
    chunks[at] = chunks[at][:4] + bytes(body) + struct.pack(">I", zlib.crc32(bytes(body)))
    return head + b"".join(chunks)


def spliced(rng: random.Random, data: bytes) -> bytes:
    other = rng.choice(list(whole().values()))
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


DAMAGES: dict[str, tuple[int, Damage]] = {
    "head bits": (10, lambda rng, data: flipped(rng, data, 64, 4)),
    "tables bits": (8, lambda rng, data: flipped(rng, data, 700, 8)),
    "any bits": (10, lambda rng, data: flipped(rng, data, len(data), 40)),
    "cut": (8, lambda rng, data: data[: rng.randrange(len(data))]),
    "cut at a chunk": (4, lambda rng, data: b"".join(segments(data)[: rng.randint(1, len(segments(data)))])),
    "rearranged": (10, rearranged),
    "overwritten": (6, overwritten),
    "right sums": (6, with_right_sums),
    "spliced": (4, spliced),
}


def damaged() -> Iterator[tuple[str, bytes]]:
    """Name -> bytes; the name says how to make it again."""
    for number, (name, data) in enumerate(whole().items()):
        for kind, (count, damage) in DAMAGES.items():
            for index in range(count):
                rng = random.Random(f"{SEED} {kind} {number} {index}")
                yield f"{kind} {index} of {name}", damage(rng, data)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One class folder of all damaged photos, one of the sound ones; read only."""
    root = tmp_path_factory.mktemp("corpus")
    for folder, files in (("damaged", dict(damaged())), ("sound", whole())):
        (root / folder).mkdir()
        for name, data in files.items():
            (root / folder / name).write_bytes(data)
    return root


@pytest.fixture(scope="module")
def told(corpus: Path) -> list[dict[str, object]]:
    """What each way in said of the damaged photos."""
    return read_all(sorted((corpus / "damaged").iterdir()))


def test_damaged_photos_are_read_alike_everywhere_or_refused(
    corpus: Path, told: list[dict[str, object]], record_property: Callable[[str, object], None]
) -> None:
    sound = check(read_all(sorted((corpus / "sound").iterdir())))
    assert sound == {"read": len(whole())}
    assert len(told) >= 2000
    counts = check(told)
    assert min(counts["read"], counts["refused"]) > 500  # damage that all shows, or none, would test one half alone
    peak = max(float(str(each["peak_mb"])) for each in told)
    assert peak < 200, "MB; imports take 80, and a damaged header may say some megapixels"
    record_property("damaged photos, each read by training, audit and device", len(told))
    record_property("damaged photos read / refused", f"{counts['read']} / {counts['refused']}")
    record_property(
        "slowest damaged photo, by the clock / processor time", f"{slowest(told, 's')} / {slowest(told, 'cpu')}"
    )
    record_property("peak memory of the process that read them", f"{peak:.0f} MB")


# --- files made to harm ---------------------------------------------------------------------------------------------


def png(width: int, height: int, depth: int, colour: int, rows: int, extra: bytes = b"") -> bytes:
    """A black PNG that says it has width x height pixels and holds some rows of them, deflated to almost nothing."""
    row = 1 + (width * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] * depth + 7) // 8
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(bytes(row)) for _ in range(rows)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def jpeg_of(width: int, height: int, data: bytes) -> bytes:
    """A JPEG with another size in its header."""
    at = next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data)
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def webp_of(width: int, height: int) -> bytes:
    """Of one colour: 34 bytes whatever the size, as lossless WebP codes it."""
    data = bytearray(encoded(Image.new("RGB", (64, 64)), "WEBP", lossless=True))
    at = data.index(b"VP8L") + 9
    bits = int.from_bytes(data[at : at + 4], "little") >> 28 << 28 | (height - 1) << 14 | (width - 1)
    data[at : at + 4] = bits.to_bytes(4, "little")
    return bytes(data)


def many_scans(image: Image.Image, more: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(image, "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * more + data[-2:]


def tiff(entries: list[bytes], then: int = 0) -> bytes:
    """EXIF with these entries of twelve bytes, in one directory."""
    body = struct.pack(">H", len(entries)) + b"".join(entries) + struct.pack(">I", then)
    return b"Exif\0\0MM\0*\0\0\0\x08" + body


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack(">HHI", tag, kind, count) + value.ljust(4, b"\0")[:4]


def harmless_looking() -> dict[str, bytes]:
    """What is something else, whatever it is called."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("photo.jpg", whole()["plain.jpg"])
    grey = sources()[0].convert("L")
    made = {
        "nothing": b"",
        "one byte": b"\xff",
        "zeros": bytes(5000),
        "text": b"just text\n" * 50,
        "html": b"<!doctype html><script>alert(1)</script>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="99999" height="99999"/>',
        "elf": Path(sys.executable).resolve().read_bytes()[:20_000],
        "zip": archive.getvalue(),
        "pickle": pickle.dumps({"a": [1, 2, 3]}),
        "noise": random.Random(SEED).randbytes(20_000),
        "ghost": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run quit\n",
        **{kind.lower(): encoded(grey, kind) for kind in ("TIFF", "ICO", "PPM", "TGA", "PCX", "JPEG2000", "PDF")},
    }
    return {f"{name}{extension}": data for name, data in made.items() for extension in (".png", ".jpg", ".webp")}


def too_large() -> dict[str, bytes]:
    """Bombs: refused by what their headers say."""
    plain, gif, bmp = whole()["plain.jpg"], bytearray(whole()["plain.gif"]), bytearray(whole()["plain.bmp"])
    gif[6:10] = struct.pack("<HH", 30_000, 30_000)
    bmp[18:26] = struct.pack("<ii", 30_000, 30_000)
    negative, inner = bytearray(whole()["plain.bmp"]), bytearray(whole()["plain.gif"])
    negative[18:26] = struct.pack("<ii", 30_000, -30_000)
    at = inner.index(b",", 13 + 3 * 64)  # a frame larger than the screen that it lies on
    inner[at + 5 : at + 9] = struct.pack("<HH", 30_000, 30_000)
    return {
        "bomb.png": png(30_000, 30_000, 1, 0, 30_000),
        "bomb colour.png": png(30_000, 30_000, 8, 6, 40),
        "bomb.jpg": jpeg_of(30_000, 30_000, plain),
        "bomb largest.jpg": jpeg_of(65_500, 65_500, plain),
        "bomb progressive.jpg": jpeg_of(30_000, 30_000, whole()["progressive.jpg"]),
        "bomb.gif": bytes(gif),
        "bomb frame.gif": bytes(inner),
        "bomb.bmp": bytes(bmp),
        "bomb upside down.bmp": bytes(negative),
        "bomb.webp": webp_of(16_383, 16_383),
        "bomb 9500.webp": webp_of(9_500, 9_500),
        "line.png": png(178_000_000, 1, 1, 0, 1),
        "column.png": png(1, 70_000, 8, 2, 70_000),
        "scans.jpg": many_scans(Image.new("L", (4000, 4000), 128), 1000),
        "many scans.jpg": many_scans(Image.new("L", (8, 8), 128), 30_000),
    }


def odd() -> dict[str, bytes]:
    """May be read or not: little data for much, metadata that lies, and loops that cost time."""
    plain, small = whole()["plain.jpg"], encoded(Image.new("L", (8, 8)), "JPEG")
    turn = (0x0112, 3, 1)
    exifs = {
        "text": tiff([entry(0x0112, 2, 4, b"six")]),
        "huge count": tiff([entry(0x0112, 3, 0xFFFFFFFF, b"")]),
        "far away": tiff([entry(0x0112, 4, 9, b"\xff\xff\xff\xf0")]),
        "twice": tiff([entry(*turn, b"\0\3"), entry(*turn, b"\0\6")]),
        "thousands": tiff([entry(number, 3, 1, b"\0\1") for number in range(5000)]),
        "circle": tiff([entry(0x8769, 4, 1, b"\0\0\0\x08"), entry(*turn, b"\0\3")], then=8),
        "no kind": tiff([entry(0x0112, 99, 1, b"\0\6")]),
        "ratio": tiff([entry(0x0112, 5, 1, b"\0\0\0\x08")]),
        "negative": tiff([entry(0x0112, 8, 1, b"\xff\xff")]),
        "noise": b"Exif\0\0" + random.Random(SEED).randbytes(60_000),
        "cut": tiff([entry(*turn, b"\0\6")])[:19],
        "nothing": b"Exif\0\0",
    }
    made = {f"exif {name}.jpg": segment(plain, 0xE1, exif) for name, exif in exifs.items()}
    made |= {f"exif {name}.png": with_exif(exif[6:]) for name, exif in exifs.items()}
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='" + b"6" * 1000
    icc = b"ICC_PROFILE\0\1\xff" + random.Random(SEED).randbytes(30_000)
    text = zlib.compress(bytes(200_000_000), 1)
    loop = encoded(Image.new("P", (1, 1)), "GIF")
    frame = loop[loop.index(b",") : -1]
    return (
        made
        | long_ones()
        | {
            "xmp.jpg": segment(plain, 0xE1, xmp),
            "icc.jpg": segment(plain, 0xE2, icc),
            "no pictures.jpg": segment(plain, 0xE2, b"MPF\0MM\0*\0\0\0\x08" + b"\xff" * 60),
            "comments.jpg": small[:2] + b"\xff\xfe\0\2" * 100_000 + small[2:],
            "text bomb.png": png(8, 8, 8, 0, 8, chunk(b"zTXt", b"a\0\0" + text)),
            "profile bomb.png": png(8, 8, 8, 0, 8, chunk(b"iCCP", b"a\0\0" + text)),
            "texts.png": png(8, 8, 8, 0, 8, chunk(b"tEXt", b"a\0b") * 50_000),
            "no row.png": png(13_000, 13_000, 8, 6, 0),
            "some rows.png": png(13_000, 13_000, 8, 2, 100),
            "no pixel.png": png(0, 0, 8, 0, 0),
            "negative.bmp": whole()["plain.bmp"][:18] + struct.pack("<ii", -5, 9) + whole()["plain.bmp"][26:],
            "large, no data.jpg": jpeg_of(13_000, 13_000, plain),
            "large, no progress.jpg": jpeg_of(13_000, 13_000, whole()["progressive.jpg"]),
            "no size.jpg": jpeg_of(0, 0, plain),
            "frames.gif": loop[:-1] + frame * 100_000 + b";",
            "unending.gif": loop[:-1] + frame,
        }
    )


LONG = 20_000_000
"""Bytes of a file that makes its reader take one small step after another."""


def long_ones() -> dict[str, bytes]:
    """Small photos in large files, which cost Pillow ten seconds, and of a gigabyte many minutes."""
    jpeg, black = (encoded(Image.new("L", (8, 8)), kind) for kind in ("JPEG", "PNG"))
    loop = encoded(Image.new("P", (8, 8)), "GIF")
    tables = b"\xff\xdb" + struct.pack(">H", 2 + 65 * 1000) + (b"\1" + bytes(64)) * 1000
    exif = b"\xff\xe1\0\x40Exif\0\0" + bytes(56)
    end, at = len(black) - 12, loop.index(b",")
    made = {
        "empty comments.jpg": jpeg[:2] + b"\xff\xfe\0\2" * (LONG // 4) + jpeg[2:],
        "empty segments.jpg": jpeg[:2] + b"\xff\xe5\0\2" * (LONG // 4) + jpeg[2:],
        "fill.jpg": jpeg[:2] + b"\xff" * LONG + jpeg[2:],
        "loose bytes.jpg": jpeg[:2] + b"\xff\0" * (LONG // 2) + jpeg[2:],
        "tables.jpg": jpeg[:2] + tables * (LONG // len(tables)) + jpeg[2:],
        "small exifs.jpg": jpeg[:2] + exif * (5_000_000 // len(exif)) + jpeg[2:],
        "fill for a picture.jpg": jpeg[:-2] + b"\xff" * LONG + jpeg[-2:],
        "private chunks.png": black[:33] + chunk(b"abCd", b"") * (LONG // 12) + black[33:],
        "empty chunks.png": black[:33] + chunk(b"IDAT", b"") * (LONG // 12) + black[33:],
        "chunks at the end.png": black[:end] + chunk(b"abCd", b"") * (LONG // 12) + black[end:],
        "comments.gif": loop[:at] + b"!\xfe\1a\0" * (LONG // 5) + loop[at:],
        "blocks of one byte.gif": loop[:at] + b"!\xfe" + b"\1a" * (LONG // 2) + b"\0" + loop[at:],
        "loose bytes.gif": loop[:at] + bytes(LONG) + loop[at:],
        "ends of lines.bmp": runs(100, 100, bytes(LONG)),
        "empty lines.bmp": runs(16_000, 11_000, b"\1\1\0\0" * 11_000),
        "lines at the limit.bmp": runs(4096, 4096, b"\1\1\0\0" * 4096),
    }
    frame = b"!\xfe\0" + loop[at:-1]
    return made | {"film.gif": loop[:-1] + frame * (LONG // len(frame)) + b";"}  # the audit alone counts frames


def runs(width: int, height: int, body: bytes) -> bytes:
    """A bitmap in runs of equal pixels."""
    at = 14 + 40 + 1024
    about = struct.pack("<IIiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", at + len(body), 0, 0, at) + about + bytes(1024) + body


def segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    """Put a segment at the head of a JPEG."""
    return jpeg[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def with_exif(exif: bytes) -> bytes:
    head, first, *rest = segments(whole()["plain.png"])
    return head + first + chunk(b"eXIf", exif) + b"".join(rest)


def write(folder: Path, files: dict[str, bytes]) -> list[Path]:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def test_what_is_no_photo_or_too_large_is_refused_by_its_head(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    paths = [*write(tmp_path / "other", harmless_looking()), *write(tmp_path / "bombs", too_large())]
    paths += not_files(tmp_path / "special")
    said = read_all(paths)
    assert check(said) == {"refused": len(paths)}, [each for each in said if str(each["train"]).startswith("pixels")]
    base, peak = float(str(said[0]["peak_mb"])), float(str(said[-1]["peak_mb"]))
    assert peak < base + 100, "MB: what is refused is not decoded; of 30,000 x 30,000 pixels 2,700 would be"
    record_property("files that are no photos, bombs and special files, all refused", len(paths))
    record_property("slowest refusal", f"{slowest(said, 's')} by the clock, {slowest(said, 'cpu')} of processor time")
    record_property("memory that bombs took more than the first file", f"{peak - base:.0f} MB")


def not_files(folder: Path) -> list[Path]:
    """What has the name of a photo and can't be read as a file, or never ends."""
    folder.mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "there.png").symlink_to("back.png")
    (folder / "back.png").symlink_to("there.png")
    (folder / "nowhere.jpg").symlink_to("gone.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(folder)  # the name of a socket is short
        listening.bind("socket.jpg")
        os.chdir(here)
    with (folder / "huge.jpg").open("wb") as file:
        file.truncate(1 << 40)  # says a terabyte, takes nothing
    return sorted(folder.iterdir())


def test_odd_photos_are_read_or_refused_in_bounded_time_and_memory(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    paths = write(tmp_path / "odd", odd() | long_ones())
    said = read_all(paths)
    counts = check(said)
    refused = [each["name"] for each in said if str(each["train"]).startswith("reason")]
    damaged_exif = [name for name in refused if str(name).startswith("exif")]
    assert not damaged_exif, "metadata that lies costs no photo"
    record_property("odd photos read / refused", f"{counts['read']} / {counts['refused']}")
    record_property("slowest odd photo", f"{slowest(said, 's')} by the clock, {slowest(said, 'cpu')} of processor time")


def test_the_largest_photos_take_bounded_memory_one_at_a_time(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    largest = {
        "alpha.png": png(13_300, 13_300, 8, 6, 13_300),  # 177 of 179 megapixels
        "lossless.webp": encoded(
            Image.new("RGB", (9_400, 9_400)), "WEBP", lossless=True, quality=0, method=0
        ),  # 88 of 89
        "progressive.jpg": many_scans(Image.new("L", (13_300, 13_300), 128), 14),  # 20 scans of 20
    }
    said = [each for path in write(tmp_path / "largest", largest) for each in read_all([path], ["train"])]
    for each in said:
        assert str(each["train"]).startswith("pixels") and float(str(each["train_cpu"])) < LARGEST_SECONDS, each
        assert float(str(each["peak_mb"])) < 1700, "MB: 8 bytes a pixel are 1,415, imports the rest"
        record_property(
            f"largest {each['name']}",
            f"{each['peak_mb']:.0f} MB, {each['train_s']:.1f} s, {each['train_cpu']:.1f} s cpu",
        )
    code = PEAK + (
        "import sys\nfrom edgetl.data import decoded, load\nfrom edgetl.inputs import ImageInput\n"
        "batches = decoded(load(sys.argv[1]), ImageInput(64, 64), workers=4)\n"
        "print(sum(len(batch.pixels) for batch in batches), round(peak_mb()))\n"
    )
    data = png(6_000, 6_000, 8, 6, 6_000)  # 36 megapixels, 288 MB each while it is decoded
    for name in ("a", "b"):
        write(tmp_path / "photos" / name, {f"{number}.png": data for number in range(2)})
    words = [sys.executable, "-c", code, str(tmp_path / "photos")]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    count, peak = map(int, done.stdout.split())
    assert count == 4 and peak < 500, f"{peak} MB: four at once would take 1,150"
    record_property("four threads decode four photos of 36 megapixels in", f"{peak} MB")


# --- the commands ---------------------------------------------------------------------------------------------------

NAMES = (
    "line\nbreak",
    "forged\naudits: 0 photos\n\nnothing found that speaks against them",
    "escape\x1b[2J\x1b]0;title\x07",
    "bell\x07\x08\x7f\x9b1m",
    "tab\tand two  blanks",
    " blanks at the ends ",
    "dots...",
    "-rf",
    "--exclude=x",
    unicodedata.normalize("NFC", "Gemüse é"),
    unicodedata.normalize("NFD", "Gemüse é"),
    "right \u202egpj.exe",
    "שלום عليكم",
    "🐈‍⬛👩🏽‍🚀",
    "zero\u200bwidth\ufeff",
    "line\u2028separators\u2029",
    '=HYPERLINK("x","y"),;|',
    "quote'\"`$(touch x)%n%s{}\\",
    "CON",
    "x" * 251,
)
"""Of photos, before `.jpg`; the last makes the 255 bytes that a name may have."""
CLASSES = ("owl", "owl ", " owl", "owl.", "-owl", unicodedata.normalize("NFD", "é"), unicodedata.normalize("NFC", "é"))
CLASSES += ("🦉‍⬛", "=1+1", "x" * 255)


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command; whatever it prints is text without control characters."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    for line in (out + err).split("\n"):
        assert not any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in line), repr(line)
        assert not set(line) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"), repr(line)
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def refused(*words: str | Path, cwd: Path) -> str:
    """The one line of an error."""
    done = run(*words, cwd=cwd)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("\n"), done.stderr
    return done.stderr


def test_an_audit_names_what_it_cannot_read_and_a_recipe_leaves_it_out(
    corpus: Path,
    told: list[dict[str, object]],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    root = tmp_path / "photos"
    shutil.copytree(corpus, root / "a")
    write(root / "b", harmless_looking() | too_large() | odd())
    not_files(root / "b" / "special")
    (root / "b" / "special" / "device.jpg").unlink()  # leads out of the folder: see below
    known = {str(each["name"]) for each in told}
    others = [path for path in sorted(root.rglob("*.*")) if path.name not in known and not path.is_dir()]
    said = told + read_all(others)
    assert len({each["name"] for each in said}) == len(said)
    readable = {str(each["name"]) for each in said if str(each["train"]).startswith("pixels")}

    audited = run("recipes.audit", "--data", root, "--out", "audit", "--no-features", "--quiet", cwd=tmp_path)
    assert (audited.returncode, audited.stderr) == (0, "")
    findings = json.loads((tmp_path / "audit/audit.json").read_bytes())["findings"]
    unreadable = {each["id"]: each["detail"] for each in findings if each["kind"] == "unreadable"}
    assert len(unreadable) == len(said) - len(readable) and all(unreadable.values())
    assert f"{len(unreadable)}  can't be read" in audited.stdout

    options = ["recipes.feature_extraction", "--data", root, "--out", "run", "--image-size", "64"]
    error = refused(*options, "--quiet", cwd=tmp_path)
    assert f"of {len(said)} files can't be read, more than 1.0%: a/damaged/any bits 0 of alpha.png: damaged: " in error
    assert not (tmp_path / "run/model.keras").exists()
    done = run(*options, "--max-unreadable", "0.9", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = RunDir(tmp_path / "run").rows
    assert set(rows) == {each.relative_to(root).as_posix() for each in root.rglob("*.*") if each.name in readable}
    record_property("files of the folder that audit and recipe went through", len(said))
    record_property("of which left out by both", len(unreadable))


def test_names_are_kept_to_the_letter_and_forge_nothing(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    root = make_photo_folder(tmp_path / "photos", dict.fromkeys(CLASSES, 6), size=(32, 24))
    ids = {path.relative_to(root).as_posix() for path in root.rglob("*.jpg")}
    for number, name in enumerate(NAMES):
        path = root / CLASSES[number % len(CLASSES)] / f"{name}.jpg"
        Image.fromarray(make_photo(number, 100)).save(path, "JPEG")
        ids.add(path.relative_to(root).as_posix())
        for part in ("sub folder", "bad"):
            (root / "owl" / part).mkdir(exist_ok=True)
        (root / "owl" / "bad" / f"{name}.jpg").write_bytes(b"\xff\xd8")
    bad = {f"owl/bad/{name}.jpg" for name in NAMES}
    arguments = ["--data", root, "--image-size", "32"]

    assert run("recipes.audit", *arguments, "--out", "audit", "--no-features", cwd=tmp_path).returncode == 0
    found = json.loads((tmp_path / "audit/audit.json").read_bytes())
    assert {each["id"] for each in found["findings"] if each["kind"] == "unreadable"} == bad
    page = (tmp_path / "audit/audit.html").read_bytes().decode()
    assert not set(page) & {"\x1b", "\x07", "\x7f", "\u202e", "\u2028"} and "escape\\x1b[2J" in page

    options = ["recipes.feature_extraction", *arguments, "--allow-leakage", "--out", "run"]
    stopped = run(*options, "--quiet", cwd=tmp_path)
    warning, error = stopped.stderr.splitlines()  # splitlines would see a forged one, too
    assert stopped.returncode == 2 and ": groups stay whole, so shares miss" in warning
    assert f"{len(NAMES)} of {len(ids) + len(bad)} files can't be read" in error
    assert run(*options, "--exclude", "audit/exclude.csv", cwd=tmp_path).returncode == 0
    run_dir = RunDir(tmp_path / "run")
    splits = run_dir.splits()
    kept = {item.id for part in (splits.train, splits.validation, splits.test) for item in part}
    listed = {row["id"] for row in csv.DictReader((tmp_path / "audit/exclude.csv").open(newline="", encoding="utf-8"))}
    assert bad <= listed and kept == set(run_dir.rows) == ids
    assert run_dir.outputs.names == tuple(sorted(CLASSES))

    for words in (["convert", "--schemes", "float32"], ["evaluate"], ["report"]):
        done = run(f"export.{words[0]}", "run", *words[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    record_property("names of photos and of classes kept to the letter", f"{len(NAMES)} and {len(CLASSES)}")


BYTES = {
    "photo, not Unicode": (b"cat/\xff\xfe.jpg", "not valid Unicode"),
    "class, not Unicode": (b"c\xfft/x.jpg", "not valid Unicode"),
    "class, line break": (b"c\nfine: 0 errors/x.jpg", "control"),
    "class, escape": (b"c\x1b[2J/x.jpg", "control"),
    "photo, carriage return": (b"cat/a\rb.jpg", "control"),
}


@pytest.mark.parametrize("what", BYTES)
def test_names_that_a_text_file_cannot_hold_are_one_line(what: str, tmp_path: Path) -> None:
    name, part = BYTES[what]
    root = make_photo_folder(tmp_path / "photos", {"cat": 3, "dog": 3}, size=(16, 12))
    path = root / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(whole()["plain.jpg"])
    assert part in refused("recipes.audit", "--data", root, "--out", "audit", "--no-features", cwd=tmp_path)
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "/dev/zero", "../../secret.jpg", "/", "loop\x1b[2J"])
def test_links_out_of_the_folder_are_one_line(target: str, tmp_path: Path) -> None:
    root = make_photo_folder(tmp_path / "photos", {"cat": 3, "dog": 3}, size=(16, 12))
    (tmp_path / "secret.jpg").write_bytes(whole()["plain.jpg"])
    (root / "cat" / "x\x1b[31m\nfine.jpg").symlink_to(target if target[0] in "/." else f"/{target}")
    line = refused("recipes.audit", "--data", root, "--out", "audit", "--no-features", cwd=tmp_path)
    assert "1 symbolic link(s) lead out" in line
