"""What there is to know about a backbone before it is built."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Normalization:
    """From raw pixels to what the weights expect: y = scale * x + offset per channel.

    With `bgr`, red and blue are swapped first and scale and offset count in that order.
    """

    scale: tuple[float, float, float]
    offset: tuple[float, float, float]
    bgr: bool = False

    @property
    def uniform(self) -> bool:
        """One scale and one offset for all channels, no swap: an integer input tensor can carry it for free."""
        return not self.bgr and len(set(self.scale)) == 1 and len(set(self.offset)) == 1

    @property
    def integer_form(self) -> Literal["input tensor", "input tensor and first convolution"]:
        """Where an integer network has it, at no cost and exactly (`export.normalization`).

        One scale and offset for all channels are the input tensor's own scale and zero point. Of others these take
        what all channels have in common; the rest, and a swap of colours, is in the kernel and bias of the first
        convolution, whose padding, if it has any, is then written out in the mean colour: two copies (CONCATENATION).
        """
        return "input tensor" if self.uniform else "input tensor and first convolution"

    @property
    def label(self) -> str:
        """The result in a few characters, for tables."""
        if self.uniform:
            low, high = self.offset[0], 255 * self.scale[0] + self.offset[0]
            return f"{low:.2g}..{high:.2g}"
        return "mean 0 BGR" if self.bgr else "mean 0"


@dataclass(frozen=True)
class KerasFile:
    """A legacy .h5 file without classifier, as Keras Applications downloads it into its cache."""

    url: str
    """May hold `{size}`, see `sizes`."""
    digest: str | None
    """md5 or sha256; None where Keras publishes none."""
    cache_name: str
    """Name of the file in Keras' cache; may hold `{size}`."""
    sizes: tuple[int, ...] = ()
    """There is a file for each of these square input sizes, pixels; 224 serves any other."""

    def for_size(self, height: int, width: int) -> "KerasFile":
        """Choose the file for an input of this many pixels."""
        size = str(height if height == width and height in self.sizes else 224)
        url, cache_name = self.url.replace("{size}", size), self.cache_name.replace("{size}", size)
        return KerasFile(url, self.digest, cache_name)


@dataclass(frozen=True)
class PackagedFile:
    """A PyTorch checkpoint that a Python package carries."""

    distribution: str
    file: str
    """Inside the package's folder."""
    sha256: str


@dataclass(frozen=True)
class BlockEnd:
    """Where blocks end, in terms of the names of a model's operations; `edgetl.backbones.blocks` says what they hold.

    The last operation in the model's order of those that match and give one name is that block's end.
    """

    pattern: str
    """Regular expression for the whole name of an operation."""
    name: str
    """Name of the block, with the pattern's groups: `stage\\1_block\\2`."""


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier, ending in the global average of its last activations."""

    name: str
    constructor: str
    """`module:function`, called with `input_shape`, with `width` as `alpha` where it takes that, and with what else of
    Keras' usual arguments it takes."""
    normalization: Normalization
    default_size: int
    """Side of the square photos that it was trained on, pixels."""
    min_size: int
    """Smallest side that it accepts, pixels."""
    parameters: int
    features: int
    """Length of the vector that it gives."""
    top1: float
    """Published ImageNet accuracy, a fraction."""
    licence: str
    """Of the pretrained weights, as Keras' documentation or the package states it; `see OWNER/REPOSITORY` where only
    the repository that they were converted from has one."""
    imagenet: KerasFile | PackagedFile | None = field(default=None, repr=False)
    blocks: tuple[BlockEnd, ...] = field(default=(), repr=False)
    """What comes after the last of these, if it has weights, is the block `top`."""
    output: str = field(default="avg_pool", repr=False)
    """Name of the operation that gives the features."""
    width: float = 1.0
    """Multiplier of the channels of each layer, `alpha` in the papers."""

    @property
    def family(self) -> str:
        """Name of the member of width 1; members differ in width alone."""
        return self.constructor.partition(":")[2]

    @property
    def weight_source(self) -> str:
        """Where `--weights imagenet` takes them from, in a word."""
        match self.imagenet:
            case KerasFile():
                return "download"
            case PackagedFile():
                return "pip"
            case None:
                return "-"
