"""What a student has of its teacher: the split, the photos without labels, and what it says of every view, once."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgetl import data, features, rundir
from edgetl.backbones.backbone import Backbone
from edgetl.console import log
from edgetl.data.scan import scan
from edgetl.errors import ConfigError, DatasetError, RunError
from edgetl.inputs import ImageInput
from edgetl.metrics import score
from edgetl.outputs import OutputSpec
from edgetl.phases import Phase
from edgetl.rundir import RunDir
from edgetl.scores import Scores
from recipes import experiment
from recipes.cross_validate import marked

if TYPE_CHECKING:
    import keras
    from numpy.typing import NDArray

    from edgetl.backbones.blocks import Block
    from edgetl.teaching import Teaching
    from recipes.distill import Config

RECORD = "teacher.json"
"""What a run of the recipe has besides the files of every run."""
FORM = 1
"""Part of the key of what is stored of a teacher: raise it when the same model would be stored otherwise."""
UNLABELLED = "unlabelled:"
"""What ids of photos without labels begin with: their folder may have the same names in it as the one with labels."""


@dataclass(frozen=True)
class Record:
    """What `teacher.json` holds: what a distillation began with, and must go on with."""

    model_sha256: str
    """Of the teacher's Keras model."""
    unlabelled: dict[str, str]
    """Photos that have the teacher's word alone: path below their folder -> sha256 of the bytes."""
    schema_version: int = 1


@dataclass(frozen=True)
class Teacher:
    """A finished run that a student is to learn from."""

    config: "Config"
    """Of the student."""
    run: RunDir
    examples: data.Examples
    """The photos of the run, each with the split that it had there."""
    unlabelled: data.Examples | None
    """Found, not read yet."""

    def refuse_plan(self, plan: tuple[Phase, ...], blocks: "Sequence[Block]") -> None:
        """Insist on views that are stored, for which there must be a frozen part, and on something that hints can move.

        Raises:
            ConfigError: everything is thawed; or nothing is, with hints.
        """
        if self.config.hint_weight and not plan[-1].thawed:
            raise ConfigError(
                f"--hint-weight {self.config.hint_weight:g}: works on blocks; --thaw {self.config.thaw} thaws none. "
                "Set it to 0"
            )
        if len(plan[-1].thawed) == len(blocks):
            raise ConfigError(
                f"--thaw: all {len(blocks)} blocks are thawed, so that photos would be augmented anew in each epoch, "
                f"and what the teacher says is stored once for each view. Thaw {len(blocks) - 1} at most"
            )

    def prepare(
        self,
        row: Backbone,
        spec: ImageInput,
        table: features.Features,
        splits: data.Splits,
        backbone: "keras.Model",
        run: RunDir,
    ) -> "Lessons":
        """Look at all photos, and ask the teacher about those of validation.

        Args:
            row: the student's backbone.
            spec: what the student takes.
            table: of the photos with labels.
            splits: of the same.
            backbone: as built; it reads the photos without labels for the first time.
            run: of the student.

        Raises:
            DatasetError: a photo has changed since the teacher saw it, or too many can't be read.
            RunError: the run began with another teacher or other photos.
        """
        if table.unreadable:
            lost = table.unreadable[0]
            raise DatasetError(
                f"{lost.id}: the teacher has seen it, and it can't be read now ({lost.reason}). Restore it"
            )
        self.run.refuse_changed(table.examples, table.sha256)
        if spec.resize != self.run.inputs.resize:
            log.warning(
                "--resize %s: the teacher takes photos by %s, and so sees other parts of them than the student",
                spec.resize,
                self.run.inputs.resize,
            )
        unlabelled: data.Examples | None = None
        hashes: dict[str, str] = {}
        if self.unlabelled is not None:
            found = experiment.extract(self.config, row, spec, self.unlabelled, backbone)
            unlabelled, hashes = unseen(found, table)
        record = Record(self.run.model_sha256, hashes)
        refuse_other_record(run, record)
        return Lessons(self, splits, unlabelled, record)


@dataclass(frozen=True)
class Lessons:
    """A teacher in front of the photos of one training."""

    teacher: Teacher
    splits: data.Splits
    unlabelled: data.Examples | None
    """Those that can be read and are in no split; None if none were asked for."""
    record: Record

    @property
    def config(self) -> "Config":
        """Of the student."""
        return self.teacher.config

    @cached_property
    def model(self) -> "keras.Model":
        """The teacher."""
        return self.teacher.run.load_model()

    @cached_property
    def said(self) -> "NDArray[np.float32]":
        """What the teacher says of the validation photos, [n, k]."""
        run, config = self.teacher.run, self.config
        return features.extract(
            self.splits.validation,
            run.inputs,
            lambda: experiment.converted(config, self.model, "convert the teacher"),
            key={"model": run.model_sha256},
            cache=config.cache,
            workers=config.workers or None,
            max_unreadable=0.0,
        ).rows.array()

    @property
    def validation(self) -> Scores:
        """How good the teacher is on the photos that choices are made on."""
        return score(self.splits.validation.labels, self.said, self.teacher.run.outputs)

    def photos(self, train: data.Examples) -> data.Examples:
        """All photos to train on: first those with labels."""
        if not self.unlabelled:
            return train
        usual = float(train.weights.mean())  # only ratios of weights mean anything
        return train.with_items([*train, *(replace(item, weight=usual) for item in self.unlabelled)])

    def hinted(self, model: "keras.Model", backbone: "keras.Model") -> "keras.Model":
        """The model that is trained: it also guesses the teacher's features, if they count."""
        from edgetl import teaching

        if not self.config.hint_weight:
            return model
        return teaching.hinted(model, backbone.output, teaching.features_width(self.model))

    @contextmanager
    def teaching(self, photos: data.Examples, views: int, outputs: OutputSpec) -> "Iterator[Teaching]":
        """Ask the teacher about every view of photos once, or find what an earlier run has stored.

        Args:
            photos: as `photos` gives them.
            views: of each; the same that the student's activations are stored of.
            outputs: what the student says while it learns.
        """
        from edgetl import activations
        from edgetl.batches import StoredSource
        from edgetl.teaching import Teaching, features_width, scaling_of, spoken

        config, run, hints = self.config, self.teacher.run, bool(self.config.hint_weight)
        names, labels = len(outputs.names), self.splits.train.labels
        means = labels.mean(axis=0).astype(np.float32) if outputs.task == "regression" else np.zeros(names, np.float32)
        shapes = ((names,), (features_width(self.model),)) if hints else ((names,),)
        stored = activations.store(
            photos,
            run.inputs,
            lambda: experiment.converted(
                config, spoken(self.model, outputs, means, features=hints), "convert the teacher for the stored views"
            ),
            shapes=shapes,
            preset=config.augment if views > 1 else "none",
            views=views,
            seed=config.seed,
            key={
                "form": str(FORM),
                "teacher": run.model_sha256,
                "means": str(means.tolist()),
                "deviations": str(outputs.deviations),
            },
            cache=config.cache,
            budget_bytes=int(config.disk_budget_gb * 1e9),
            workers=config.workers or None,
            title="what the teacher says",
            streams=False,
        )
        with closing(StoredSource(stored, shapes)) as source:
            scaling = scaling_of(source, len(labels)) if hints else None
            weights = config.label_weight, config.hint_weight
            yield Teaching(source, outputs, means, config.temperature, *weights, scaling)


def find_teacher(config: "Config") -> Teacher:
    """Open the teacher's run and find its photos, and those without labels.

    Raises:
        RunError: the run is missing, unfinished or damaged.
        DatasetError: photos are missing.
        ConfigError: the student would be written over the teacher, or among photos.
    """
    if config.out.expanduser().resolve() == config.teacher.expanduser().resolve():
        raise ConfigError(f"--out {config.out}: is the teacher. Choose another --out for the student")
    run = rundir.open_run(config.teacher)
    source = config.data or run.manifest.data
    examples = replace(marked(run.splits(config.data)), source=source)
    examples = examples.absolute() if config.ray else examples
    data.refuse_inside(config.out, source, examples)
    unlabelled = find_unlabelled(config, examples) if config.unlabelled else None
    return Teacher(replace(config, data=source), run, examples, unlabelled)


def find_unlabelled(config: "Config", examples: data.Examples) -> data.Examples:
    """Find the photos without labels, in folders however deep.

    Args:
        config: the settings.
        examples: what they are joined to.

    Raises:
        DatasetError: no such folder, no photo in it, or a link that leads elsewhere.
        ConfigError: the student would be written into it.
    """
    root = Path(config.unlabelled).expanduser().absolute()
    if not root.is_dir():
        raise DatasetError(f"--unlabelled {config.unlabelled}: no such folder. Name one with photos, or leave it out")
    found = scan(root, root)
    if found.escapes:
        raise DatasetError(f"{root}: symbolic link {found.escapes[0]} leads out of it or to a folder. Copy the photos")
    if not found.photos:
        raise DatasetError(
            f"--unlabelled {config.unlabelled}: no photo in it. Name a folder with photos, or leave it out"
        )
    if config.out.expanduser().resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"--out {config.out}: lies among the unlabelled photos. Choose another run directory")
    # The label is that of a photo of several labels that has none: to take it for a class is an error, not a zero.
    items = [data.Example(f"{UNLABELLED}{name}", root / name, ()) for name in sorted(found.photos)]
    return examples.with_items(items)


def unseen(found: features.Features, table: features.Features) -> tuple[data.Examples, dict[str, str]]:
    """Leave out what is among the photos with labels, byte for byte: as a copy of a test photo it would be a leak.

    Returns:
        The others, and their hashes by path below their folder.

    Raises:
        DatasetError: none are left.
    """
    split_of = {hash: item.split for item, hash in zip(table.examples, table.sha256, strict=True)}
    pairs = list(zip(found.examples, found.sha256, strict=True))
    known = [split_of[hash] for _, hash in pairs if hash in split_of]
    kept = [(item, hash) for item, hash in pairs if hash not in split_of]
    if known:
        log.warning(
            "%d of %d unlabelled photos are left out: byte for byte among those with labels, %d of validation or test",
            len(known),
            len(pairs),
            len(known) - known.count("train"),
        )
    if not kept:
        raise DatasetError(f"--unlabelled: none of {len(pairs)} photos is new. Leave it out, or name other photos")
    hashes = {item.id.removeprefix(UNLABELLED): hash for item, hash in kept}
    return found.examples.with_items([item for item, _ in kept]), hashes


def refuse_other_record(run: RunDir, record: Record) -> None:
    """Insist that a run that has begun goes on with the teacher and the unlabelled photos that it began with.

    Raises:
        RunError: names what is other now.
    """
    if not (run.path / RECORD).is_file():
        return
    refuse_other_teacher(run, record.model_sha256)
    before = rundir.read_json(Record, run.path / RECORD)
    if before.unlabelled != record.unlabelled:
        other = sorted(dict(before.unlabelled.items() ^ record.unlabelled.items()))
        raise RunError(
            f"{run.path}: began with other unlabelled photos ({other[0]}). Restore them, or choose another --out"
        )


def refuse_other_teacher(run: RunDir, model_sha256: str) -> None:
    """Insist on the teacher that a run began with.

    Raises:
        RunError: at its place is another model now.
    """
    if rundir.read_json(Record, run.path / RECORD).model_sha256 != model_sha256:
        raise RunError(f"{run.path}: began with another teacher. Restore it, or choose another --out")
