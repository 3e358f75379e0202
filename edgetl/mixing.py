"""Train-only mixing of examples and their labels: mixup and CutMix, of photos or of activations at a border."""

from typing import Any

import numpy as np

from edgetl.console import quiet_tensorflow
from edgetl.errors import ConfigError

quiet_tensorflow()

import keras  # noqa: E402
from keras import ops  # noqa: E402


class Mixing(keras.layers.Layer):  # type: ignore[misc]
    """Mix each photo of a batch with another one, and their labels alike.

    mixup (Zhang et al. 2018, arXiv 1710.09412) blends; on activations it is manifold mixup (Verma et al. 2019,
    arXiv 1806.05236). CutMix (Yun et al. 2019, arXiv 1905.04899) pastes a box. The Keras layers of these names take
    one image tensor of rank 4, and their CutMix labels are not those of the pixels that were pasted.
    """

    def __init__(self, mixup: float, cutmix: float, seed: int) -> None:
        """Choose what to do.

        Args:
            mixup: alpha of mixup's Beta distribution; 0 is off.
            cutmix: alpha of CutMix's; 0 is off. With both on, each batch gets one of them, at random.
            seed: of the first draws.

        Raises:
            ConfigError: an alpha is negative.
        """
        super().__init__(autocast=False)
        if min(mixup, cutmix) < 0:
            raise ConfigError(f"mixup={mixup}, cutmix={cutmix}: alpha must be 0 (off) or positive, 0.2 to 1 is usual")
        self.mixup, self.cutmix = mixup, cutmix
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: tuple[Any, ...], labels: Any) -> tuple[tuple[Any, ...], Any]:
        """Mix a batch.

        Args:
            inputs: float tensors [n, h, w, c] or [n, d], all of the same n examples: pixels, or activations at a
                border. All get the same partners and weights.
            labels: float [n, k].

        Returns:
            The same shapes. A label's weight is the share of its example; with CutMix on tensors of several sizes
            that of the coarsest, on whose grid the box is drawn.

        Raises:
            ConfigError: CutMix on [n, d], which has no places.
        """
        if not self.mixup and not self.cutmix:
            return tuple(inputs), labels
        n = ops.shape(labels)[0]
        order = keras.random.shuffle(ops.arange(n), seed=self.generator)
        weight = self._beta(n, self.mixup or self.cutmix)
        shares = [ops.reshape(weight, (-1, *(1 for _ in x.shape[1:]))) for x in inputs]
        if self.cutmix:
            box, boxes = self._boxes(inputs, n)
            use_box = keras.random.uniform((), seed=self.generator) < (0.5 if self.mixup else 2.0)
            shares = [ops.where(use_box, b, share) for b, share in zip(boxes, shares, strict=True)]
            weight = ops.where(use_box, box, weight)
        mixed = tuple(_blend(x, share, order) for x, share in zip(inputs, shares, strict=True))
        return mixed, _blend(labels, ops.reshape(weight, (-1, 1)), order)

    def _beta(self, n: Any, alpha: float) -> Any:
        drawn = keras.random.beta((n,), alpha, alpha, seed=self.generator)
        return ops.where(ops.isnan(drawn), 1.0, drawn)  # 0/0 when both gammas underflow, at small alpha

    def _boxes(self, inputs: tuple[Any, ...], n: Any) -> tuple[Any, list[Any]]:
        """Draw the own share of each example, [n], and of each of its places: 0 in the box, 1 outside."""
        if flat := [x.shape for x in inputs if len(x.shape) != 4]:
            raise ConfigError(f"CutMix needs tensors [n, h, w, c], received {flat[0]}. Use mixup, or thaw more blocks")
        height, width = (min(x.shape[axis] for x in inputs) for axis in (1, 2))
        side = ops.sqrt(1.0 - self._beta(n, self.cutmix))
        place = keras.random.uniform((2, n), seed=self.generator)
        inside, area = [], 1.0
        for axis, length in enumerate((height, width)):
            size = ops.round(side * length)
            start = ops.floor(place[axis] * (length - size + 1.0))
            at = ops.arange(length, dtype="float32")[None]
            inside.append((at >= start[:, None]) & (at < (start + size)[:, None]))  # [n, length]
            area = area * size / length
        masks = []
        for x in inputs:
            rows, columns = (np.arange(x.shape[1 + i]) * g // x.shape[1 + i] for i, g in enumerate((height, width)))
            box = ops.take(inside[0], rows, axis=1)[:, :, None] & ops.take(inside[1], columns, axis=1)[:, None, :]
            masks.append(ops.cast(~box, "float32")[..., None])
        return 1.0 - area, masks


def _blend(own: Any, share: Any, order: Any) -> Any:
    share = ops.cast(share, own.dtype)
    return share * own + (1 - share) * ops.take(own, order, axis=0)
