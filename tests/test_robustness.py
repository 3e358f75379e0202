"""Spoilt photos: the strengths are what they say, and nothing but the photo's id decides."""

import numpy as np
import pytest

from edgetl.config import from_json, to_json
from edgetl.robustness import CORRUPTIONS, Robustness, corrupt, robustness

STRENGTHS = (1, 2, 3)


def photo(side: int = 128) -> np.ndarray:
    """Smooth shapes and a sharp edge, no value near the ends of the range."""
    y, x = np.mgrid[:side, :side] / side
    grey = 80 + 40 * np.sin(6 * x) + 60 * (x > 0.5)
    return np.stack([grey, grey + 10 * y, grey - 10], axis=2).astype(np.uint8)


def deviation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a.astype(float) - b) ** 2).mean()))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_more_strength_is_more_damage_and_the_photo_itself_stays(kind: str) -> None:
    pixels = photo()
    kept = pixels.copy()
    spoilt = [corrupt(pixels, kind, strength, "a/1.jpg") for strength in STRENGTHS]
    assert all(each.shape == pixels.shape and each.dtype == np.uint8 for each in spoilt)
    damage = [deviation(each, pixels) for each in spoilt]
    assert 0 < damage[0] < damage[1] < damage[2]
    np.testing.assert_array_equal(pixels, kept)
    pixels.setflags(write=False)
    np.testing.assert_array_equal(corrupt(pixels, kind, 2, "a/1.jpg"), spoilt[1])


def test_noise_has_the_deviation_it_says_and_follows_from_the_id() -> None:
    flat = np.full((224, 224, 3), 128, np.uint8)
    for strength, expected in zip(STRENGTHS, CORRUPTIONS["noise"].strengths, strict=True):
        noisy = corrupt(flat, "noise", strength, "a")
        # 150,000 values: known to 0.2 %; at the largest strength a fifth is cut off at 0 and 255.
        inside = (noisy > 0) & (noisy < 255)
        expected_share = {1: 1.0, 2: 0.995, 3: 0.81}[strength]
        assert inside.mean() == pytest.approx(expected_share, abs=0.01)
        if strength < 3:
            assert deviation(noisy, flat) == pytest.approx(255 * expected, rel=0.02)
    one, other = corrupt(flat, "noise", 1, "a"), corrupt(flat, "noise", 1, "b")
    assert (one != other).mean() > 0.9
    # The same pattern at all strengths, so that what grows is the strength alone.
    correlation = np.corrcoef(one.ravel(), corrupt(flat, "noise", 2, "a").ravel())[0, 1]
    assert correlation > 0.99


def test_brightness_goes_both_ways_in_stops() -> None:
    flat = np.full((2, 2, 3), 80, np.uint8)
    found = {tuple(int(corrupt(flat, "brightness", s, str(i))[0, 0, 0]) for s in STRENGTHS) for i in range(40)}
    # Twice the light is 2 ** (1 / 2.2) times the pixel.
    lighter, darker = (tuple(round(80 * 2 ** (sign * stops / 2.2)) for stops in (0.5, 1, 2)) for sign in (1, -1))
    assert found == {lighter, darker}
    assert corrupt(np.full((2, 2, 3), 250, np.uint8), "brightness", 3, "0").max() <= 255


def test_blur_grows_with_the_frame() -> None:
    def width(side: int) -> float:
        line = np.zeros((side, side, 3), np.uint8)
        line[:, side // 2] = 255
        row = corrupt(line, "blur", 3, "a")[0, :, 0].astype(float)
        place = np.arange(side) - side // 2
        return float(np.sqrt((row * place**2).sum() / row.sum()))

    assert width(224) == pytest.approx(4, rel=0.1)  # Pillow adds boxes up to a Gaussian
    assert width(112) == pytest.approx(2, rel=0.1)


def test_mean_drop_is_over_all_kinds_and_strengths() -> None:
    found = robustness(0.9, {"blur": (0.9, 0.8, 0.7), "noise": (0.6, 0.5, 0.4)})
    assert found.mean_drop == pytest.approx(0.9 - 3.9 / 6)
    assert found.corrupted[1].primary == (0.6, 0.5, 0.4)
    assert from_json(Robustness, to_json(found)) == found
