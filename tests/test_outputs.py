"""The contracts check themselves: they are read from files of strangers, too."""

import math
from typing import Any

import pytest

from edgetl.config import from_json, to_json
from edgetl.errors import ConfigError
from edgetl.inputs import LARGEST_SIDE, ImageInput
from edgetl.outputs import OutputSpec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": ("a", "b\nc")}, r"output name 'b\\nc': must be one line of text"),
        ({"names": ("a", "\x1b[31m")}, "must be one line of text"),
        ({"names": ("a", "")}, "must be one line of text"),
        ({"names": ("a", "b", "a")}, "output name 'a': there twice"),
        ({"thresholds": (0.5,)}, "1 thresholds for 2 names"),
        ({"thresholds": (0.5, 1.5)}, "must be from 0 to 1"),
        ({"thresholds": (0.5, math.nan)}, "must be from 0 to 1"),
        ({"deviations": (1.0, 1.0, 1.0)}, "3 deviations for 2 names"),
        ({"deviations": (1.0, 0.0)}, "must be above 0 and finite"),
        ({"deviations": (1.0, math.inf)}, "must be above 0 and finite"),
    ],
)
def test_outputs_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OutputSpec(**{"task": "multi_label", "names": ("a", "b"), **fields})


def test_inputs_that_cannot_be() -> None:
    for side in (0, -1, LARGEST_SIDE + 1):
        for sides in ((side, 8), (8, side)):
            with pytest.raises(ConfigError, match=r"image size .*: both sides must be at (least|most)"):
                ImageInput(*sides)


def test_a_file_of_such_is_named() -> None:
    text = to_json(ImageInput(8, 8)).replace("8", "99999")
    with pytest.raises(ConfigError, match=r"^inputs\.json: image size 99999x99999"):
        from_json(ImageInput, text, source="inputs.json")
