"""What fine-tuning reads: border activations that were stored once, or photos that are decoded anew in each epoch."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from typing import TYPE_CHECKING

from edgetl import data, features
from edgetl.backbones.backbone import Backbone
from edgetl.balance import relative_weights
from edgetl.console import log
from edgetl.inputs import ImageInput
from edgetl.phases import Phase
from edgetl.tasks import training_outputs
from recipes import experiment

if TYPE_CHECKING:
    import keras

    from edgetl.activations import Activations
    from edgetl.batches import Batches, Source
    from edgetl.fine_tuning import Validation
    from recipes.fine_tune import Config
    from recipes.lessons import Lessons

DEFAULT_VIEWS = 8
"""Stored views where nobody says otherwise and the preset does not have a number of its own."""


@contextmanager
def sources(
    config: "Config",
    row: Backbone,
    spec: ImageInput,
    model: "keras.Model",
    plan: tuple[Phase, ...],
    splits: data.Splits,
    lessons: "Lessons | None" = None,
) -> Iterator[tuple["keras.Model", "Batches", "Validation"]]:
    """Store the activations at the border below all that will be thawed, or stream the photos if there is none.

    With `lessons`, photos without a label are among those to train on, and what the teacher says is stored, too.

    Yields:
        What is trained, the batches for it, and what it is judged on.
    """
    from edgetl.backbones.blocks import HEAD, split_before
    from edgetl.batches import Batches, StoredSource, StreamedSource
    from edgetl.fine_tuning import Validation

    front, tail = split_before(model, row, plan[-1].thawed[0] if plan[-1].thawed else HEAD)

    @cache
    def forward() -> features.Forward:
        return experiment.converted(config, one_output(front), f"convert the frozen part of {row.name}")

    with ExitStack() as stack:

        def source(part: data.Examples, views: int, reserved: int = 0) -> "Source":
            if front is None or config.views == 0:
                return stack.enter_context(closing(StreamedSource(part, spec, config.workers or None)))
            shapes = tuple(tuple(tensor.shape[1:]) for tensor in front.outputs)
            activations = stored(config, row, spec, front, forward, part, views, reserved, streams=lessons is None)
            return stack.enter_context(closing(StoredSource(activations, shapes)))

        if front is None or config.views == 0:
            why = "everything is thawed, so there is nothing to store" if front is None else "--views 0"
            log.info("%s: photos are decoded and augmented anew in each epoch", why)
        # Room for both parts is asked for at once: what does not fit is said before anything is computed.
        views, outputs = number_of_views(config), training_outputs(splits.train)
        photos = lessons.photos(splits.train) if lessons else splits.train
        stored_photos = source(photos, views, reserved=len(splits.validation))
        teaching = stack.enter_context(lessons.teaching(photos, views, outputs)) if lessons else None
        train = Batches(
            stored_photos,
            splits.train.labels,
            outputs,
            config.batch_size,
            config.seed,
            "balanced" if config.class_balance == "sampling" else "natural",
            relative_weights(photos.weights),
            teaching,
        )
        validation = Validation(source(splits.validation, 1), splits.validation.labels)
        yield (model if isinstance(train.source, StreamedSource) else tail), train, validation


def number_of_views(config: "Config") -> int:
    """Stored versions of each training photo."""
    if config.views >= 0:
        return config.views
    from edgetl.augment import PRESETS

    return PRESETS[config.augment].exact_views or DEFAULT_VIEWS


def augmentation(config: "Config", *, streamed: bool) -> str:
    """Say what changes photos: one stored view is the photo itself, whatever the preset."""
    if config.augment == "none":
        return "none"
    if streamed:
        return f"{config.augment}, anew in each epoch"
    views = number_of_views(config)
    return f"{config.augment}, {views} stored views" if views > 1 else "none, for --views 1 is the photo itself"


def stored(
    config: "Config",
    row: Backbone,
    spec: ImageInput,
    front: "keras.Model",
    make_forward: "Callable[[], features.Forward]",
    part: data.Examples,
    views: int,
    reserved: int,
    *,
    streams: bool,
) -> "Activations":
    """Run photos through the frozen part once, or find what an earlier run has stored.

    `reserved` is the number of further photos, one view each, that the disk budget must hold as well; `streams` tells
    whether the recipe can do without what is stored.
    """
    from edgetl import activations
    from edgetl.backbones.weights import weights_sha256

    shapes = tuple(tuple(tensor.shape[1:]) for tensor in front.outputs)
    room = int(config.disk_budget_gb * 1e9) - activations.size_bytes(reserved, 1, shapes)

    return activations.store(
        part,
        spec,
        make_forward,
        shapes=shapes,
        preset=config.augment if views > 1 else "none",
        views=views,
        seed=config.seed,
        key={
            "backbone": row.name,
            "normalization": str(row.normalization),
            "front": front.name,
            "weights": weights_sha256(front),
        },
        cache=config.cache,
        budget_bytes=max(0, room),
        workers=config.workers or None,
        streams=streams,
    )


def one_output(front: "keras.Model") -> "keras.Model":
    """Join border tensors to one vector per photo: the interpreter's wrapper knows models with one output."""
    import keras

    if len(front.outputs) == 1:
        return keras.Model(front.input, front.outputs[0])
    flat = [keras.layers.Flatten()(tensor) for tensor in front.outputs]
    return keras.Model(front.input, keras.layers.Concatenate()(flat))
