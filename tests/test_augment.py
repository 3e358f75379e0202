"""Augmentation: pixels stay pixels, views are what they claim, draws follow numbers."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import make_photo

from edgetl.augment import PRESETS, layers_of, reseed, seed_generators, view
from edgetl.errors import ConfigError
from edgetl.inputs import ImageInput
from edgetl.mixing import Mixing

SPEC = ImageInput(24, 24)
RANDOM = [name for name, preset in PRESETS.items() if preset.exact_views is None]
EXACT = [name for name, preset in PRESETS.items() if preset.exact_views is not None]


def photos(n: int = 6, side: int = 24) -> np.ndarray:
    return np.stack([make_photo(i % 3, i, (side, side)) for i in range(n)])


def in_graph(layers: list[Any]) -> Any:
    """The layers as a train step calls them: traced once."""

    @tf.function(autograph=False)
    def run(images: Any) -> Any:
        for layer in layers:
            images = layer(images, training=True)
        return images

    return lambda pixels: run(tf.constant(pixels, tf.float32)).numpy()


@pytest.mark.parametrize("name", PRESETS)
def test_online_pixels_stay_in_range_and_shape(name: str) -> None:
    run = in_graph(layers_of(name, SPEC, seed=1))
    extremes = np.stack([np.zeros((24, 24, 3)), np.full((24, 24, 3), 255.0), *photos(4)])
    for _ in range(5):
        changed = run(extremes)
        assert changed.shape == extremes.shape and changed.dtype == np.float32
        assert changed.min() >= 0 and changed.max() <= 255  # exactly: the layers of colour clip
    assert name == "none" or (changed[2:] != extremes[2:]).any()


@pytest.mark.parametrize("name", PRESETS)
def test_layers_do_nothing_outside_training(name: str) -> None:
    images = photos().astype(np.float32)
    for layer in layers_of(name, SPEC, seed=1):
        np.testing.assert_array_equal(layer(images, training=False), images)


@pytest.mark.parametrize("name", [*PRESETS, "dropout", "mixing"])
def test_same_numbers_same_draws(name: str) -> None:
    layers: list[Any] = {
        "dropout": lambda: [
            keras.Sequential([keras.Input((24, 24, 3)), keras.Sequential([keras.layers.Dropout(0.5)])])
        ],
        "mixing": lambda: [keras.layers.Lambda(lambda x: x)],
    }.get(name, lambda: layers_of(name, SPEC, seed=1))()
    run = in_graph(layers)
    if name == "mixing":
        layers = [Mixing(0.4, 1.0, seed=0)]
        mixed = tf.function(lambda x: layers[0]((x,), tf.eye(6))[0][0], autograph=False)
        run = lambda pixels: mixed(tf.constant(pixels, tf.float32)).numpy()  # noqa: E731
    generators = seed_generators(layers)
    states = [v for layer in layers for v in layer.variables if "seed_generator_state" in v.path]
    assert {id(g.state) for g in generators} == {id(v) for v in states}  # none is missed
    assert (len(generators) > 0) == (name != "none")
    drawn = {}
    for numbers in [(7, 1, 2), (7, 1, 3), (7, 2, 2), (8, 1, 2), (7, 1, 2)]:
        reseed(generators, *numbers)
        two = run(photos()), run(photos())  # the second batch of an epoch is a function of the numbers as well
        if numbers in drawn:
            np.testing.assert_array_equal(two, drawn[numbers])
        drawn[numbers] = np.stack(two)
    if name != "none":
        for one, other in itertools.combinations(drawn.values(), 2):
            assert (one != other).any()


def test_generators_of_one_list_draw_differently() -> None:
    generators = seed_generators([keras.layers.Dropout(0.5), keras.layers.Dropout(0.5)])
    reseed(generators, 1)
    first, second = (np.array(keras.random.uniform((8,), seed=g)) for g in generators)
    assert (first != second).all()


def test_strong_chooses_for_each_photo() -> None:
    """One choice for the whole batch, as in keras.layers.RandAugment, would change equal photos in few ways."""
    same = np.repeat(photos(1), 24, axis=0)
    layers = layers_of("strong", SPEC, seed=1)
    layers[1] = keras.layers.Identity()  # without the crop
    changed = in_graph(layers)(same)
    assert len({np.sign(one - same[0]).sum() for one in changed}) > 10


@pytest.mark.parametrize("name", PRESETS)
def test_the_first_view_is_the_photo(name: str) -> None:
    pixels = photos()
    first = view(name, pixels, 0, photos=range(6), seed=1)
    np.testing.assert_array_equal(first, pixels)
    assert first is not pixels


@pytest.mark.parametrize("name", EXACT)
def test_exact_views_are_distinct_permutations(name: str) -> None:
    count = PRESETS[name].exact_views
    assert count is not None
    numbered = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(1, 5, 5, 3)
    views = [view(name, numbered, k, photos=[0], seed=k) for k in range(count)]
    assert len({v.tobytes() for v in views}) == count
    for one in views:
        pixels = {tuple(p) for p in one.reshape(-1, 3)}
        assert pixels == {tuple(p) for p in numbered.reshape(-1, 3)}  # each pixel once, channels together
    for number in (-1, count):
        with pytest.raises(ConfigError, match="has views 0 to"):
            view(name, numbered, number, photos=[0], seed=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
def test_flipping_twice_is_identity(height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), np.uint8)
    once = view("flips", pixels, 1, photos=[0, 1], seed=0)
    np.testing.assert_array_equal(once, pixels[:, :, ::-1])
    np.testing.assert_array_equal(view("flips", once, 1, photos=[0, 1], seed=0), pixels)


def test_online_symmetries_are_the_stored_ones() -> None:
    pixels = np.repeat(photos(1), 64, axis=0)
    stored = {view("symmetries", pixels[:1], k, photos=[0], seed=0).tobytes() for k in range(8)}
    online = {one.astype(np.uint8).tobytes() for one in in_graph(layers_of("symmetries", SPEC, 0))(pixels)}
    assert online == stored  # 64 draws miss one of eight with probability 8 * (7/8)^64 = 0.0016, and the seed is fixed


@pytest.mark.parametrize("name", RANDOM)
def test_random_views_depend_on_photo_number_and_seed_alone(name: str) -> None:
    pixels = photos()
    made = view(name, pixels, 3, photos=range(6), seed=1)
    assert made.dtype == np.uint8 and made.shape == pixels.shape
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda i: view(name, pixels[i : i + 1], 3, photos=[i], seed=1), range(6)))
    np.testing.assert_array_equal(np.concatenate(alone), made)
    for other in (
        view(name, pixels, 4, photos=range(6), seed=1),
        view(name, pixels, 3, photos=range(6), seed=2),
        view(name, pixels, 3, photos=range(6, 12), seed=1),
    ):
        assert all((a != b).any() for a, b in zip(other, made, strict=True))
    assert view(name, pixels[:0], 3, photos=[], seed=1).shape == (0, 24, 24, 3)


@pytest.mark.parametrize("name", RANDOM)
def test_views_of_any_size(name: str) -> None:
    assert view(name, photos(1)[:, :16], 1, photos=[0], seed=0).shape == (1, 16, 24, 3)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"'symmetries': photos are 20x24.*square"):
        layers_of("symmetries", ImageInput(20, 24), 0)
    with pytest.raises(ConfigError, match="needs square"):
        view("symmetries", photos()[:, :20], 1, photos=range(6), seed=0)
    with pytest.raises(ConfigError, match=r"'flip': unknown\. Choose one of none, flips"):
        layers_of("flip", SPEC, 0)
