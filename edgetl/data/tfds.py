"""A prepared data set of TensorFlow Datasets -> a folder of photos with a table, so that all else works on files."""

import csv
import hashlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgetl.data.examples import SPLIT_NAMES
from edgetl.errors import DatasetError

log = logging.getLogger(__name__)

_TABLE = "metadata.csv"
_MAGIC = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"GI": ".gif", b"BM": ".bmp", b"RI": ".webp"}


@dataclass(frozen=True)
class _Layout:
    """Which features of the data set become which columns."""

    image: str
    label: str
    column: str
    """What the label is called in the table: `label`, `labels` or `target`."""
    rest: tuple[str, ...]


def tfds_folder(name: str, cache: Path | None = None) -> Path:
    """Write a data set out as files, unless that was done before.

    Nothing is fetched from a network: the data set has to be prepared already. Photos keep their encoded bytes. The
    table comes last, so a folder with one is whole; without one, the photos that are there are not written again.
    Each version, configuration and place where it is prepared has a folder of its own, so the package is asked which
    one is meant every time. A run stores the folder's path and is reopened without it.

    Args:
        name: as `tfds build` takes it: `mnist`, `mnist:3.0.1`, `user_set/config`; without a version the newest that is
            prepared.
        cache: where features are stored, too; the default is theirs.

    Returns:
        A folder with metadata.csv and one folder for each split.

    Raises:
        DatasetError: the package or the data set is missing, or it has no photos with labels.
    """
    if not name.strip() or ".." in name:
        raise DatasetError(f"tfds:{name}: no name of a data set. Name one as in tfds:mnist")
    from edgetl.features import default_cache

    builder = _builder(name)
    place = hashlib.sha256(str(Path(builder.data_dir).resolve()).encode()).hexdigest()[:8]
    folder: Path = (cache or default_cache()) / "tfds" / builder.info.full_name / place
    if not (folder / _TABLE).is_file():
        _write(name, builder, folder)
    return folder


def _write(name: str, builder: Any, folder: Path) -> None:
    from edgetl.console import progress
    from edgetl.rundir import write_atomic

    layout = _layout(name, builder.info)
    splits = [split for split in builder.info.splits if split.lower() in SPLIT_NAMES]
    if others := sorted(set(builder.info.splits) - set(splits)):
        log.warning("tfds:%s: split(s) left out: %s. Known are %s", name, ", ".join(others), ", ".join(SPLIT_NAMES))
    if not splits:
        raise DatasetError(f"tfds:{name}: no split called {', '.join(SPLIT_NAMES)}. It can't be used")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file_name", "split", layout.column, *layout.rest])
    unlabelled = 0
    total = sum(builder.info.splits[split].num_examples for split in splits)
    with progress(f"write tfds:{name} to {folder}", total) as bar:
        for split in splits:
            (folder / split).mkdir(parents=True, exist_ok=True)
            for at, (photo, cells) in enumerate(_examples(builder, split, layout)):
                bar.advance()
                if layout.column == "label" and not cells[0]:
                    unlabelled += 1
                    continue
                file = f"{split}/{at:07d}{_MAGIC.get(photo[:2], '.png')}"
                _keep(folder / file, photo)
                table.writerow([file, split if len(splits) > 1 else "", *cells])
    if unlabelled:
        log.warning("tfds:%s: %d example(s) left out: without a label", name, unlabelled)
    write_atomic(folder / _TABLE, text.getvalue())


def _keep(path: Path, photo: bytes) -> None:
    """Write a photo if it is not there whole. Its name stands for all of it; power failures only cost a second run."""
    if path.is_file() and path.stat().st_size == len(photo):
        return
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(photo)
    temporary.replace(path)


def _builder(name: str) -> Any:
    """Open what is prepared, by its files alone: the code that made it need not be there."""
    from edgetl.console import quiet_tensorflow

    quiet_tensorflow()
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise DatasetError(
            f"tfds:{name}: the package tensorflow-datasets is not installed. Run: pip install 'edgetl[tfds]'"
        ) from None
    try:
        return tfds.core.read_only_builder.builder_from_files(name)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        home = tfds.core.constants.DATA_DIR
        raise DatasetError(
            f"tfds:{name}: not prepared in {home} ({' '.join(str(error).split())[:120]}). Run: tfds build {name}, or "
            "set TFDS_DATA_DIR to where it is"
        ) from error


def _layout(name: str, info: Any) -> _Layout:
    """Find photo and label: what the data set itself calls input and output, else the only ones of their kind."""
    import tensorflow_datasets as tfds

    features = dict(sorted(info.features.items())) if hasattr(info.features, "items") else {}  # as read they vary
    image, label = info.supervised_keys[:2] if info.supervised_keys else ("", "")
    images = [image] if image else [key for key, f in features.items() if isinstance(f, tfds.features.Image)]
    numbers = [key for key, f in features.items() if _column(f) == "target"]
    labels = [label] if label else [key for key, f in features.items() if _column(f).startswith("label")] or numbers
    for kind, found in (("photo", images), ("label", labels)):
        if len(found) != 1:
            raise DatasetError(f"tfds:{name}: {len(found)} features that are a {kind} ({', '.join(found)}), need 1")
    column = _column(features.get(labels[0]))
    if not isinstance(features.get(images[0]), tfds.features.Image) or not column:
        raise DatasetError(f"tfds:{name}: {images[0]} -> {labels[0]} is not from a photo to a label. It can't be used")
    rest = [key for key, f in features.items() if key not in (images[0], labels[0]) and f.shape == ()]
    if lost := sorted(set(features) - {images[0], labels[0], *rest}):
        log.info("tfds:%s: left out, for they are no single values: %s", name, ", ".join(lost))
    return _Layout(images[0], labels[0], column, tuple(rest))


def _column(feature: Any) -> str:
    """What a feature is as a label: the table's column for it, empty if it is none."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.ClassLabel):
        return "label"
    if isinstance(feature, tfds.features.Sequence) and isinstance(feature.feature, tfds.features.ClassLabel):
        return "labels"
    number = isinstance(feature, tfds.features.Tensor) and feature.shape == ()
    return "target" if number and np.dtype(feature.np_dtype).kind in "fiu" else ""


def _examples(builder: Any, split: str, layout: _Layout) -> Iterator[tuple[bytes, list[str]]]:
    """The encoded photo of each example, in the order of the files, and its cells."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    undecoded = {layout.image: tfds.decode.SkipDecoding()}
    for example in tfds.as_numpy(builder.as_dataset(split=split, decoders=undecoded, shuffle_files=False)):
        yield example[layout.image], [_cell(features[key], example[key]) for key in (layout.label, *layout.rest)]


def _cell(feature: Any, value: Any) -> str:
    if getattr(value, "ndim", 0):
        return "|".join(feature.feature.int2str(int(each)) for each in value)
    if hasattr(feature, "int2str"):
        return str(feature.int2str(int(value))) if value >= 0 else ""  # -1 means that nobody knows
    return value.decode() if isinstance(value, bytes) else str(value)
