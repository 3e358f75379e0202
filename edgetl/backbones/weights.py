"""Where pretrained weights come from: the network, a package, a file, or nowhere.

No surprises: the network is asked only for what the user named, with a time limit and a hash; nothing that a file
contains is executed; weights that don't fit are an error that names the layer.
"""

import contextlib
import hashlib
import importlib.util
import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from edgetl.backbones import efficientnet_lite, hdf5
from edgetl.backbones.backbone import Backbone, KerasFile, PackagedFile
from edgetl.backbones.registry import BACKBONES
from edgetl.backbones.torch_file import read_tensors
from edgetl.console import progress, quiet_tensorflow
from edgetl.errors import WeightsError
from edgetl.inputs import ImageInput

quiet_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402

IMAGENET = "imagenet"
NONE = "none"
_CHECKPOINT = ".pth"
"""Of the packages; not for files of the user, whose hash nobody knows."""
_STATISTICS_TOLERANCE = 1e-3
"""Published with three digits."""
SILENCE_LIMIT_S = 30.0
"""A download that receives nothing for so long has failed."""


def weights_sha256(model: keras.Model) -> str:
    """Hash what a model really holds, for keys of caches: whatever file or seed it came from."""
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def locate(backbone: Backbone, spec: ImageInput, weights: str) -> Path | None:
    """Find the file with the weights, downloading it if need be.

    Args:
        backbone: whose weights.
        spec: size of the photos; a few backbones have weights per size.
        weights: `imagenet`, `none` or a file.

    Returns:
        The file, or None for random weights.

    Raises:
        WeightsError: there is none; the message names the ways out.
    """
    if weights == NONE:
        return None
    if weights != IMAGENET:
        return _existing(weights)
    match backbone.imagenet:
        case PackagedFile() as packaged:
            return packaged_path(packaged)
        case KerasFile() as file:
            return download(file, backbone, spec)
    raise _no_imagenet(backbone)


def load_before(plain: keras.Model, backbone: Backbone, path: Path | None) -> None:
    """Load what is matched by order, which only the model as its constructor made it has.

    Raises:
        WeightsError: a layer is missing or has another shape, or the file is damaged.
    """
    if path is None:
        return
    if path.suffix == _CHECKPOINT:
        efficientnet_lite.load_checkpoint(plain, read_tensors(path), source=str(path))
    elif _is_ordered(path):
        hdf5.load_in_order(plain, path)
        _check_statistics(plain, backbone, path)


def load_after(model: keras.Model, path: Path | None, *, skip: str) -> None:
    """Load what is matched by name, which only the finished model has.

    Args:
        model: the flat model.
        path: as for `load_before`.
        skip: name of the layer that no file need have.

    Raises:
        WeightsError: a layer is missing or has another shape, or the file is damaged.
    """
    if path is not None and path.suffix != _CHECKPOINT and not _is_ordered(path):
        hdf5.load_by_name(model, path, skip=skip)


def _is_ordered(path: Path) -> bool:
    return path.suffix != ".keras" and hdf5.is_legacy(path)


def _check_statistics(plain: keras.Model, backbone: Backbone, path: Path) -> None:
    """Compare pixel statistics that a file carries with those that our own layer will apply in their place.

    Of the families here that is EfficientNet V1, whose published files hold the deviation where the variance belongs,
    and whose constructor makes up for it with one more division (tensorflow issue 49930).
    """
    scale, offset = np.array(backbone.normalization.scale), np.array(backbone.normalization.offset)
    deviation = 1 / (255 * scale)
    for layer in plain.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            mean, variance = (np.ravel(weight) for weight in layer.get_weights()[:2])
            if not np.allclose([mean, variance], [-offset * deviation, deviation], rtol=_STATISTICS_TOLERANCE):
                raise WeightsError(
                    f"{path}: trained on pixels normalized to mean {mean.round(3)} and deviation {variance.round(3)}, "
                    f"not as ImageNet's {-offset * deviation} and {deviation}. Train it again with edgetl"
                )


def packaged_path(packaged: PackagedFile) -> Path:
    """Find the checkpoint in the installed package, without importing it, and check its hash.

    Raises:
        WeightsError: the package is not installed, or the file is not the one that was published.
    """
    spec = importlib.util.find_spec(packaged.distribution.replace("-", "_"))
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = Path(folders[0], packaged.file) if folders else None
    if path is None or not path.is_file():
        raise WeightsError(f"the package with these weights is not installed. Run: pip install {packaged.distribution}")
    if (found := _digest(path, "sha256")) != packaged.sha256:
        raise WeightsError(
            f"{path}: sha256 is {found[:12]}..., expected {packaged.sha256[:12]}...; the file was changed or damaged. "
            f"Run: pip install --force-reinstall {packaged.distribution}"
        )
    return path


def cache_path(file: KerasFile) -> Path:
    """Where Keras keeps a file that was downloaded."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models" / file.cache_name


def at_hand(backbone: Backbone, spec: ImageInput) -> bool:
    """Whether ImageNet weights are on this machine: an installed package, or a file that Keras downloaded before."""
    match backbone.imagenet:
        case PackagedFile() as packaged:
            return importlib.util.find_spec(packaged.distribution.replace("-", "_")) is not None
        case KerasFile() as file:
            return cache_path(file.for_size(spec.height, spec.width)).is_file()
    return False


def download(file: KerasFile, backbone: Backbone, spec: ImageInput) -> Path:
    """Fetch a file into Keras' own cache, or find it there.

    Raises:
        WeightsError: no network, an HTTP error, silence, or a file with another hash.
    """
    file = file.for_size(spec.height, spec.width)
    cached = cache_path(file)
    home = cached.parent.parent
    if cached.is_file() and (file.digest is None or _has_digest(cached, file.digest)):
        return cached
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(home, os.W_OK):  # get_file would go to a folder that anybody may write to
            raise PermissionError(f"{home} is not writable")
        # What get_file prints goes nowhere: standard output belongs to results.
        with (
            _time_limit(SILENCE_LIMIT_S),
            progress(f"downloading {file.cache_name}"),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            found = keras.utils.get_file(
                file.cache_name, file.url, file_hash=file.digest, cache_dir=str(home), cache_subdir="models"
            )
    # get_file raises plain Exception for a failed download, ValueError for a wrong hash, OSError for silence.
    except Exception as error:
        reason = str(error).removeprefix(f"URL fetch failure on {file.url}: ").removeprefix("None -- ")
        reason = " ".join(reason.split()) or type(error).__name__
        raise WeightsError(
            f"{backbone.name}: can't get {file.url} ({reason}). Put that file at {cached}, or choose a backbone "
            f"whose weights come as a package: {', '.join(_packaged())}"
        ) from error
    return Path(found)


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Bound the silence on sockets that are opened inside; Keras' downloader sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _packaged() -> list[str]:
    return [name for name, backbone in BACKBONES.items() if isinstance(backbone.imagenet, PackagedFile)]


def _no_imagenet(backbone: Backbone) -> WeightsError:
    return WeightsError(
        f"{backbone.name}: no ImageNet weights are published in a form that can be read here. Use --weights none, "
        f"--weights FILE, or {', '.join(_packaged())}"
    )


def _existing(weights: str) -> Path:
    path = Path(weights).expanduser()
    if path.suffix not in hdf5.SUFFIXES:
        raise WeightsError(
            f"weights {weights!r}: expected {IMAGENET}, {NONE}, or a file that ends in {', '.join(hdf5.SUFFIXES)}"
        )
    if not path.is_file():
        raise WeightsError(f"{path}: no such file of weights. Check the path")
    hdf5.refuse_stuck(path)
    return path


def _has_digest(path: Path, digest: str) -> bool:
    return _digest(path, "sha256" if len(digest) == 64 else "md5") == digest


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
