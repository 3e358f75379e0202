"""How fast 12-megapixel JPEGs become pixels of a model's size: edgetl against full decode then resize.

    python -m benchmarks.decoding --json decoding.json

The contestants take turns, so that a busy machine slows all of them alike; read the ratios, not the milliseconds.
What bounds the gain is Huffman decoding: libjpeg must unpack every coefficient, even those it then leaves out, and
noise costs more of them. TensorFlow is for information: it is what a tf.data pipeline would run.
"""

import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.config import command
from edgetl.data import Pixels, read_image
from edgetl.inputs import ImageInput

MEGAPIXELS_12 = (4000, 3000)
QUALITY = 90
NOISE_LEVELS = 6.0
"""Standard deviation of camera noise in the noisy photo, of 255."""


@dataclass(frozen=True)
class Config:
    """Time the decoding of large JPEGs."""

    size: int = 224
    """Side of the square that the photos become, pixels."""
    repetitions: int = 15
    """How often each contestant decodes each photo."""
    json: Path | None = None
    """Where to write the raw times, if anywhere."""


@dataclass(frozen=True)
class Row:
    """One contestant on one photo."""

    photo: str
    method: str
    runs_ms: tuple[float, ...]
    mean_difference: float
    """Against full decode then resize, of 255 levels."""
    max_difference: int

    def percentile_ms(self, percent: float) -> float:
        """Time that this share of the runs stayed below, milliseconds."""
        return float(np.percentile(self.runs_ms, percent))


def main(config: Config) -> list[Row]:
    """Decode each photo with each contestant, in turns."""
    spec = ImageInput(config.size, config.size)
    contestants = methods(spec)
    rows = []
    for photo, data in photos().items():
        want = contestants["full decode, then resize"](data).astype(int)
        differences = {name: np.abs(method(data).astype(int) - want) for name, method in contestants.items()}
        runs: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(config.repetitions):
            for name, method in contestants.items():
                runs[name].append(elapsed_ms(method, data))
        for name, off in differences.items():
            rows.append(Row(f"{photo}, {len(data) / 1e6:.1f} MB", name, tuple(runs[name]), off.mean(), int(off.max())))
    if config.json:
        config.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return rows


def photos() -> dict[str, bytes]:
    """12-megapixel JPEGs from a sample photo of scikit-learn: as smooth as enlarging leaves it, and noisy."""
    from sklearn.datasets import load_sample_image

    smooth = Image.fromarray(load_sample_image("china.jpg")).resize(MEGAPIXELS_12, Image.Resampling.BICUBIC)
    grain = np.random.default_rng(0).normal(0, NOISE_LEVELS, (*smooth.size[::-1], 3))
    noisy = Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8))
    return {"smooth": jpeg(smooth), "noisy": jpeg(noisy)}


def jpeg(image: Image.Image) -> bytes:
    """Compress as a phone does."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=QUALITY)
    return data.getvalue()


def methods(spec: ImageInput) -> dict[str, Callable[[bytes], Pixels]]:
    """Name -> bytes to pixels."""
    from edgetl.console import quiet_tensorflow

    quiet_tensorflow()
    import tensorflow as tf

    def full(data: bytes) -> Pixels:
        with Image.open(io.BytesIO(data)) as image:
            small = image.convert("RGB").resize((spec.width, spec.height), Image.Resampling.BILINEAR)
        return np.array(small)

    def tensorflow(data: bytes) -> Pixels:
        image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
        small = tf.image.resize(image, (spec.height, spec.width), antialias=True)
        rounded: NDArray[np.uint8] = tf.cast(tf.round(small), tf.uint8).numpy()
        return rounded

    return {
        "edgetl read_image": lambda data: read_image(data, spec),
        "full decode, then resize": full,
        "tf.io, tf.image (all cores)": tensorflow,
    }


def elapsed_ms(method: Callable[[bytes], Pixels], data: bytes) -> float:
    """Wall time of one call, milliseconds."""
    start = time.perf_counter()
    method(data)
    return (time.perf_counter() - start) * 1e3


def table(rows: list[Row]) -> str:
    """Rows as text; the ratio is against full decode then resize on the same photo."""
    head = f"{'photo':16} {'method':28} {'median ms':>9} {'p10-p90':>13} {'ratio':>6} {'mean diff':>9} {'max':>4}"
    lines = [head]
    for row in rows:
        base = next(r for r in rows if r.photo == row.photo and r.method.startswith("full"))
        spread = f"{row.percentile_ms(10):.1f}-{row.percentile_ms(90):.1f}"
        ratio = base.percentile_ms(50) / row.percentile_ms(50)
        lines.append(
            f"{row.photo:16} {row.method:28} {row.percentile_ms(50):9.1f} {spread:>13} {ratio:6.2f}"
            f" {row.mean_difference:9.2f} {row.max_difference:4}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(command(main, Config, prog="benchmarks.decoding", show=table))
