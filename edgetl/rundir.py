"""One directory per experiment: what was asked, what came out, and proof that nothing changed since.

Files: `config.json`, `inputs.json`, `outputs.json`, `labels.txt`, `splits.csv`, `model.keras`, `metrics.json`, what a
recipe adds, and last of all `manifest.json`, which holds the sha256 of each. A directory without a manifest is
unfinished. Every file is written under a temporary name and renamed, so a name never stands for half a file.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from edgetl import seal
from edgetl.config import from_json, to_json
from edgetl.console import log, quiet_tensorflow
from edgetl.data import Examples, Splits, locate, read_csv, read_rows, relocate
from edgetl.errors import ConfigError, DatasetError, RunError
from edgetl.inputs import InputSpec
from edgetl.outputs import OutputSpec

if TYPE_CHECKING:
    import keras

T = TypeVar("T")

CONFIG = "config.json"
INPUTS = "inputs.json"
OUTPUTS = "outputs.json"
LABELS = "labels.txt"
SPLITS = "splits.csv"
MODEL = "model.keras"
METRICS = "metrics.json"
MANIFEST = "manifest.json"
RESULTS = (CONFIG, INPUTS, OUTPUTS, LABELS, SPLITS, MODEL, METRICS)
_PART = ".edgetl-part"
_TEMPORARY = re.compile(rf"\..*{re.escape(_PART)}|\.\d+\.{re.escape(MODEL)}", re.DOTALL)
"""What `new_file` and `write_model` call a file that is not whole yet."""
_SHARED = re.compile(rb'("shared_object_id": )([0-9]+)')
_OLDEST_YEAR = 1980
"""The first that the zip format, and so a .keras file, knows."""
PACKAGES = (
    "edgetl",
    "tensorflow",
    "keras",
    "tf_keras",
    "tensorflow-model-optimization",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "numpy",
    "pillow",
    "scikit-learn",
)


@dataclass(frozen=True)
class Manifest:
    """What a finished run is made of and made with."""

    recipe: str
    data: str
    """Where `edgetl.data.locate` finds the photos again: a name, or an absolute path."""
    data_sha256: str
    """Hash over (id, label, sha256) of every example used."""
    seed: int
    files: dict[str, str]
    """File name -> sha256."""
    versions: dict[str, str]
    schema_version: int = 2


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that its name stands for all of it or for what was there before.

    Raises:
        OSError: no space, no permission; the temporary file is removed.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe or a device stays what it is
        path.write_bytes(data)
        return
    with new_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """The same for a file that is written piece by piece; it gets its name when the block ends without an error."""
    with _naming(path):
        handle, temporary = _temporary(path)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o644)
                Path(temporary).replace(path)  # while it is locked: what is not may be swept
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _temporary(path: Path) -> tuple[int, str]:
    """Open a new file, locked as long as it is open: what is not locked was left by a kill."""
    while True:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PART)
        with contextlib.suppress(OSError):  # some network file systems have no locks; nothing is swept there either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if Path(temporary).exists():
            return handle, temporary
        os.close(handle)  # swept by another process before it was locked


def sweep(folder: Path) -> None:
    """Delete what kills have left of half-written files, each as large as a checkpoint perhaps.

    Files that another process is writing with `new_file` stay.

    Args:
        folder: need not exist.
    """
    for each in folder.iterdir() if folder.is_dir() else ():
        if not (_TEMPORARY.fullmatch(each.name) and each.is_file()):
            continue
        with contextlib.suppress(OSError), each.open("r+b") as file:  # NFS locks only what can be written
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            each.unlink()


def _reproducible(path: Path, file: BinaryIO) -> None:
    """Copy a .keras file, leaving out when it was saved and where in memory its objects were."""
    numbers: dict[bytes, int] = {}  # of objects that layers share, any that tell them apart; Keras takes addresses
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(file, "w") as copy:
        for name in source.namelist():
            with source.open(name) as old, copy.open(zipfile.ZipInfo(name), "w", force_zip64=True) as new:
                if name == "metadata.json":
                    new.write(json.dumps(json.load(old) | {"date_saved": "1980-01-01@00:00:00"}).encode())
                elif name == "config.json":
                    new.write(
                        _SHARED.sub(lambda at: at[1] + b"%d" % numbers.setdefault(at[2], len(numbers)), old.read())
                    )
                else:
                    shutil.copyfileobj(old, new, 1 << 20)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Report what the disk says under the file's own name: a full one names none, others the temporary file."""
    try:
        yield
    except OSError as error:
        if not error.filename or path.name in Path(str(error.filename)).name:
            error.filename = str(path)
        raise


def sha256_of(path: Path) -> str:
    """Hash a file's content, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def installed_versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@dataclass(frozen=True)
class RunDir:
    """A run directory that exists. `open_run` gives a finished and verified one."""

    path: Path

    @property
    def finished(self) -> bool:
        """Whether the manifest, the last file of a run, is there."""
        return (self.path / MANIFEST).is_file()

    @property
    def model_path(self) -> Path:
        """The Keras model: raw pixels in, out comes what `outputs` says."""
        return self.path / MODEL

    @property
    def model_sha256(self) -> str:
        """Hash of the Keras model: what artifacts and reports name as their source."""
        return self.manifest.files[MODEL]

    @property
    def export_path(self) -> Path:
        """Where artifacts and reports on them go."""
        return self.path / "export"

    @cached_property
    def manifest(self) -> Manifest:
        """What the run is made of."""
        return read_json(Manifest, self.path / MANIFEST)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What was asked for: config.json; empty where there is none.

        Raises:
            RunError: it is damaged.
        """
        path = self.path / CONFIG
        try:
            return from_json(dict[str, Any], path.read_bytes(), source=str(path))
        except FileNotFoundError:
            return {}
        except ConfigError:
            raise RunError(f"{path}: damaged (no JSON object). Restore it or run the recipe into a new --out") from None

    @cached_property
    def inputs(self) -> InputSpec:
        """The input contract."""
        return read_json(InputSpec, self.path / INPUTS)

    @cached_property
    def outputs(self) -> OutputSpec:
        """What the model says of a photo."""
        return read_json(OutputSpec, self.path / OUTPUTS)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Of classes, labels or targets; the position is the output index."""
        return self.outputs.names

    def write(self, name: str, content: bytes | str) -> None:
        """Write one file of the run, whole or not at all."""
        write_atomic(self.path / name, content)

    def write_model(self, model: "keras.Model") -> None:
        """Write the Keras model, whole or not at all; equal models are equal files."""
        temporary = self.path / f".{os.getpid()}.{MODEL}"  # Keras goes by the extension
        try:
            with _naming(self.model_path):
                model.save(temporary)
            with new_file(self.model_path) as file:
                _reproducible(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)

    def load_model(self) -> "keras.Model":
        """Load the Keras model.

        Raises:
            RunError: it is not one of the photos and the outputs that the run says.
        """
        quiet_tensorflow()
        import keras

        model = keras.saving.load_model(self.model_path, compile=False)
        taken, given = tuple(model.input_shape[1:]), tuple(model.output_shape[1:])
        if (taken, given) != (self.inputs.shape, (len(self.output_names),)):
            raise RunError(
                f"{self.model_path}: takes {taken} and gives {given}; {INPUTS} says {self.inputs.shape}, {OUTPUTS} "
                f"{len(self.output_names)} names. Restore the run or make it anew"
            )
        return model

    def root(self, data: str = "") -> Path:
        """The folder that the photos lie in now.

        Args:
            data: where that is, if they were moved since; a URL that stands in the run alone is not fetched.

        Raises:
            DatasetError: nothing is there.
        """
        return locate(data) if data else relocate(self.manifest.data)

    def splits(self, data: str = "") -> Splits:
        """The stored split, with the photos where they lie now.

        Args:
            data: as for `root`.

        Raises:
            RunError: splits.csv is no text.
            DatasetError: splits.csv is damaged; the data or one of its photos is gone.
        """
        text, source = self._splits_csv
        splits, _ = read_csv(text, self.root(data), self.outputs, source=source)
        return splits

    @property
    def _splits_csv(self) -> tuple[str, str]:
        """Text and name."""
        path = self.path / SPLITS
        try:
            return path.read_bytes().decode(), str(path)
        except UnicodeDecodeError:
            raise RunError(f"{path}: damaged (not UTF-8). Restore it or run the recipe anew") from None

    @cached_property
    def rows(self) -> dict[str, dict[str, str]]:
        """What splits.csv says of each example when the run was made, by id."""
        header, rows = read_rows(*self._splits_csv)
        return {cells[0]: dict(zip(header, cells, strict=True)) for _, cells in rows}

    @property
    def untested(self) -> str:
        """Why nothing can be measured on a test split; empty where photos were held out."""
        if any(row["split"] == "test" for row in self.rows.values()):
            return ""
        return f"{self.path}: no photos were held out for testing (--test-fraction 0)"

    @cached_property
    def photo_sha256(self) -> dict[str, str]:
        """Hash of each photo's bytes when the run was made, by id."""
        return {id_: row["sha256"] for id_, row in self.rows.items()}

    def refuse_changed(self, photos: Examples, sha256: Sequence[str]) -> None:
        """Make sure that photos are those of the run: what is measured is named after them.

        Args:
            photos: examples of the run.
            sha256: of their bytes as just read.

        Raises:
            DatasetError: one has other content now.
        """
        for photo, found in zip(photos, sha256, strict=True):
            if found != self.photo_sha256.get(photo.id):
                raise DatasetError(
                    f"{photo.path}: changed since the run was made. Restore the photo or train into a new --out"
                )

    def finish(self, *, recipe: str, data: str, data_sha256: str, seed: int, extra: Sequence[str] = ()) -> None:
        """Seal the run: hash every result and write the manifest.

        Args:
            recipe: its name.
            data: where `edgetl.data.locate` finds the photos again.
            data_sha256: hash over all examples used.
            seed: of the split and of everything random.
            extra: names of results that only this recipe has; from now on they may not change either.
        """
        files = {name: sha256_of(self.path / name) for name in (*RESULTS, *extra)}
        self.write(MANIFEST, sealed(Manifest(recipe, data, data_sha256, seed, files, installed_versions())))


def sealed(value: Any) -> str:
    """JSON for a file that no manifest vouches for, see `edgetl.seal`."""
    return seal.sealed(to_json(value))


def read_json(kind: type[T], path: Path) -> T:
    """Read one of the run's JSON files.

    Raises:
        RunError: it is missing, damaged, or of another version of its schema.
    """
    try:
        content = seal.unsealed(path.read_bytes())
        _refuse_other_schema(kind, path, content)
        return from_json(kind, content, source=str(path))
    except FileNotFoundError:
        raise RunError(f"{path}: missing. Run the command that writes it again") from None
    except ValueError as error:
        raise RunError(f"{path}: {error}. It is damaged: delete it and make it anew") from None
    except ConfigError as error:
        raise RunError(f"{error}. It is damaged or from another version: delete it and make it anew") from None


def _refuse_other_schema(kind: type, path: Path, content: bytes) -> None:
    """Say which version a file is of before its fields are looked at: the same ones may have meant something else."""
    ours = getattr(kind, "schema_version", None)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):  # damaged: `from_json` says how
        return
    # What has no version as it is written has today's by default, like a settings file.
    version = found.get("schema_version", ours) if isinstance(found, dict) else ours
    if version != ours:
        newer = isinstance(version, int) and isinstance(ours, int) and version > ours
        advice = "Use a newer edgetl, or make the file again" if newer else "Make the file again"
        raise RunError(f"{path}: schema_version {version!r:.20}, this edgetl reads {ours}. {advice}")


def open_run(path: str | Path) -> RunDir:
    """Open a finished run and check every file against its hash.

    Raises:
        RunError: no such directory, not a run, unfinished, a file was changed or lost, or files contradict each other.
    """
    run = RunDir(Path(path).expanduser())
    if not run.path.is_dir():
        raise RunError(f"{run.path}: no such run directory. Make one with python -m recipes.feature_extraction")
    if not (run.path / CONFIG).is_file():
        raise RunError(f"{run.path}: not a run directory ({CONFIG} is missing). Name the --out of a recipe")
    if not run.finished:
        if inner := sorted(run.path.glob(f"*/{MANIFEST}")):
            raise RunError(f"{run.path}: not a run, but it holds some. Name one, such as {inner[0].parent}")
        raise RunError(f"{run.path}: unfinished run. Run its recipe again with the same settings to complete it")
    if unlisted := set(RESULTS) - set(run.manifest.files):
        raise RunError(
            f"{run.path / MANIFEST}: damaged (no hash of {', '.join(sorted(unlisted))}). "
            "Restore it or run the recipe into a new --out"
        )
    for name, expected in run.manifest.files.items():
        file = run.path / name
        if not file.is_file():
            raise RunError(f"{file}: missing from a finished run. Restore it or run the recipe into a new --out")
        if sha256_of(file) != expected:
            raise RunError(
                f"{file}: changed since the run finished (sha256 differs). Restore it or run the recipe anew"
            )
    _refuse_contradictions(run)
    return run


def _refuse_contradictions(run: RunDir) -> None:
    """Refuse outputs that can't be those of a trained model: hashes only show that files are of one hand."""
    outputs = run.outputs
    needed = {"multi_label": "thresholds", "regression": "deviations"}.get(outputs.task, "names")
    if not (outputs.names and getattr(outputs, needed)):
        raise RunError(f"{run.path / OUTPUTS}: {outputs.task} without {needed}. Restore it or run the recipe anew")
    if (run.path / LABELS).read_bytes() != "".join(f"{name}\n" for name in outputs.names).encode():
        raise RunError(f"{run.path / LABELS}: not the names of {OUTPUTS}. Restore it or run the recipe anew")


@contextlib.contextmanager
def writing(path: str | Path, recipe: str, config: Any) -> Iterator[RunDir]:
    """Hold a run directory for writing: make it, or take it up again with the same settings.

    Args:
        path: the directory; it may exist only empty or as a run of the same settings.
        recipe: name of the recipe.
        config: its frozen dataclass. Fields whose metadata says `affects_result: False` may differ on resume.

    Yields:
        The run; `finished` tells whether there is anything left to do.

    Raises:
        RunError: the directory holds something else, another experiment, or is being written by another process; or
            this machine's clock, which boards without a battery start in 1970, is before what Keras can save.
    """
    run = RunDir(Path(path).expanduser())
    if (year := time.localtime().tm_year) < _OLDEST_YEAR:
        raise RunError(f"the clock says {year}; Keras saves nothing before {_OLDEST_YEAR}. Set it, see man date")
    if run.path.exists() and not run.path.is_dir():
        raise RunError(f"{run.path}: is a file. Name a directory with --out")
    settings = {"recipe": recipe} | json.loads(to_json(config))
    stored = run.path / CONFIG
    if not stored.is_file() and run.path.is_dir() and not _bare(run.path):
        raise RunError(f"{run.path}: not empty and not a run directory. Choose another --out")
    made = not run.path.exists()
    run.path.mkdir(parents=True, exist_ok=True)
    with _locked(run.path / ".lock", run.path):
        _sweep_all(run)
        fresh = not stored.is_file()
        if fresh:
            run.write(CONFIG, json.dumps(settings, indent=2) + "\n")
        else:
            _refuse_other_settings(stored, settings, config)
        try:
            yield run
        except Exception:
            if fresh and _bare(run.path):
                stored.unlink(missing_ok=True)  # settings that can't work must not stand in the way of better ones
                if made:
                    shutil.rmtree(run.path, ignore_errors=True)
            raise


@contextlib.contextmanager
def held(run: RunDir) -> Iterator[RunDir]:
    """Hold a finished run for writing what is made of it: artifacts, measurements, reports.

    Raises:
        RunError: another process is writing it.
    """
    with _locked(run.path / ".lock", run.path):
        _sweep_all(run)
        yield run


def _sweep_all(run: RunDir) -> None:
    """Sweep a run and the folders in it: artifacts, trials, folds."""
    sweep(run.path)
    for folder in run.path.iterdir():
        sweep(folder)


def _bare(path: Path) -> bool:
    """Whether a directory holds nothing but settings, the lock, and what a kill while writing settings left."""
    return all(p.name in (CONFIG, ".lock") or p.name.startswith(f".{CONFIG}.") for p in path.iterdir())


def _refuse_other_settings(stored: Path, settings: dict[str, Any], config: Any) -> None:
    free = {f.name for f in dataclasses.fields(config) if not f.metadata.get("affects_result", True)}
    try:
        old = json.loads(stored.read_bytes())
    except (ValueError, RecursionError):
        old = None
    if not isinstance(old, dict):
        raise RunError(f"{stored}: damaged (no JSON object). Choose another --out or delete the directory")
    old = _younger(old, config) | old
    changed = [
        f"{name}: {old.get(name)} -> {settings.get(name)}"
        for name in sorted(set(old) | set(settings))
        if name not in free and old.get(name) != settings.get(name)
    ]
    if changed:
        raise RunError(
            f"{stored.parent}: holds a run with other settings ({'; '.join(changed)}). "
            "Choose another --out or use the same settings"
        )


def _younger(old: dict[str, Any], config: Any) -> dict[str, Any]:
    """Give the settings that a stored run is older than: their defaults stand for what it did without them."""
    fields = [f for f in dataclasses.fields(config) if f.name not in old and f.default is not dataclasses.MISSING]
    usual = json.loads(to_json(dataclasses.replace(config, **{f.name: f.default for f in fields})))
    return {f.name: usual[f.name] for f in fields}


@contextlib.contextmanager
def _locked(lock: Path, what: Path) -> Iterator[None]:
    mine = os.access(lock, os.W_OK) or not lock.exists()  # in a folder that people share it may be another's
    with lock.open("a" if mine else "r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{what}: another process is writing this run. Wait for it or use another run directory"
            ) from None
        except OSError as error:
            log.warning("%s: this file system has no locks (%s): let no other command write it", what, error.strerror)
        yield
