"""Where labelled examples come from, how they are divided, and how their bytes become pixels.

Everything here works without TensorFlow; importing it costs numpy and Pillow.
"""

from edgetl.data.examples import Example, Examples, SplitName
from edgetl.data.images import Pixels, read_image
from edgetl.data.pipeline import Batch, Unreadable, check_unreadable, decoded, default_workers, load_pixels
from edgetl.data.sources import NAMED, load, locate, refuse_inside, relocate
from edgetl.data.splits import Splits, read_csv, read_rows, split, stratified_subset, write_csv, written

__all__ = [
    "NAMED",
    "Batch",
    "Example",
    "Examples",
    "Pixels",
    "SplitName",
    "Splits",
    "Unreadable",
    "check_unreadable",
    "decoded",
    "default_workers",
    "load",
    "load_pixels",
    "locate",
    "read_csv",
    "read_image",
    "read_rows",
    "refuse_inside",
    "relocate",
    "split",
    "stratified_subset",
    "write_csv",
    "written",
]
