"""What is trained when: phases as data, planned and shown before anything is computed.

Imports no Keras: blocks come from `edgetl.backbones.blocks`, which knows the model.
"""

import contextlib
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from edgetl.errors import ConfigError

if TYPE_CHECKING:
    from edgetl.backbones.blocks import Block

ALL = "all"


@dataclass(frozen=True)
class Phase:
    """A number of epochs during which the same layers learn at the same rates."""

    name: str
    thawed: tuple[str, ...]
    """Names of the blocks that learn besides the head, from input to output."""
    epochs: int
    head_learning_rate: float
    backbone_learning_rate: float
    """Of the last block of the backbone."""
    layer_decay: float
    """A block learns at this share of the rate of the block after it, 0..1."""

    def learning_rate(self, block: str) -> float:
        """Rate of one thawed block: discriminative rates (Howard and Ruder 2018), falling towards the input."""
        return self.backbone_learning_rate * self.layer_decay ** (len(self.thawed) - 1 - self.thawed.index(block))


def thawed_blocks(thaw: str, blocks: "Sequence[Block]") -> tuple[str, ...]:
    """Resolve what the user wants thawed.

    Args:
        thaw: `all`; `0`; a number of blocks counted from the output, `6`; a share of the blocks, written with a point
            or an exponent, `0.5` (rounded up); the name of a block, or of a layer: that block and all after it.
        blocks: of the backbone, from input to output.

    Returns:
        Names of the blocks, from input to output; always the last ones.

    Raises:
        ConfigError: more blocks than there are, or a name that matches nothing.
    """
    names, thaw = [block.name for block in blocks], thaw.strip()
    if thaw == ALL:
        return tuple(names)
    if (number := _number(thaw)) is not None:
        if not 0 <= number <= (len(names) if isinstance(number, int) else 1):
            raise ConfigError(
                f"--thaw {thaw}: must be a number of blocks, 0 to {len(names)}, a share of them, 0.0 to 1.0, or all"
            )
        # Less rounding error before rounding up: 0.07 * 100 is a little more than 7.
        count = number if isinstance(number, int) else math.ceil(number * len(names) - 1e-9)
        return tuple(names[len(names) - count :])
    for index, block in enumerate(blocks):
        if thaw == block.name or thaw in block.layers:
            return tuple(names[index:])
    known = [*names, *chain.from_iterable(block.layers for block in blocks)]
    near = difflib.get_close_matches(thaw, known, n=3, cutoff=0.5) or [name for name in known if thaw in name][:3]
    hint = f"Did you mean {', '.join(near)}? " if near and thaw else ""
    raise ConfigError(
        f"--thaw {thaw!r}: no block or layer of that name. {hint}Blocks, from input to output: {', '.join(names)}"
    )


def _number(text: str) -> int | float | None:
    """Read a whole number or a share; `nan`, `inf` and the like are numbers too, and refused as such."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return None


def plan(
    thawed: Sequence[str],
    *,
    epochs: int,
    groups: int,
    epochs_per_group: int,
    head_learning_rate: float,
    backbone_learning_rate: float,
    layer_decay: float,
) -> tuple[Phase, ...]:
    """Plan the phases after the head's: thaw from the output to the input, one group of blocks after another.

    Args:
        thawed: blocks that learn in the end, from input to output.
        epochs: of the last phase, in which all of them learn.
        groups: number of phases; 1 thaws all at once.
        epochs_per_group: of each phase before the last.
        head_learning_rate: in all phases.
        backbone_learning_rate: of the last block, in all phases.
        layer_decay: from one block to the one before it.

    Raises:
        ConfigError: no group, or more groups than blocks.
    """
    if not 1 <= groups <= max(1, len(thawed)):
        raise ConfigError(
            f"--gradual {groups}: must be at least 1 and at most one phase per block; {len(thawed)} blocks are thawed"
        )
    phases = []
    for number in range(1, groups + 1):
        count = math.ceil(len(thawed) * number / groups)
        part = tuple(thawed[len(thawed) - count :])
        phases.append(
            Phase(
                _name(part),
                part,
                epochs if number == groups else epochs_per_group,
                head_learning_rate,
                backbone_learning_rate,
                layer_decay,
            )
        )
    return tuple(phases)


def _name(part: Sequence[str]) -> str:
    if not part:
        return "head"
    return part[0] if len(part) == 1 else f"{part[0]}..{part[-1]}"


def describe(
    phases: Sequence[Phase], blocks: "Sequence[Block]", parameters: Mapping[str, int], head: int, probe: str = "L-BFGS"
) -> str:
    """Lay the plan out for people: what is frozen, what learns, how fast, for how long.

    Args:
        phases: as planned.
        blocks: of the backbone.
        parameters: number of parameters that can learn, by layer name (frozen BatchNorm counts none).
        head: number of parameters of the head.
        probe: how the linear probe is fitted.

    Returns:
        A table in plain text, one line per phase.
    """
    rows = [("phase", "frozen", "learning", "layers", "parameters", "epochs", "head rate", "backbone rates")]
    rows.append(("0 linear probe", f"all {len(blocks)} blocks", "head", "1", f"{head:,}", "-", probe, "-"))
    by_name = {block.name: block for block in blocks}
    for number, phase in enumerate(phases, start=1):
        layers = [layer for name in phase.thawed for layer in by_name[name].layers if parameters.get(layer)]
        frozen = len(blocks) - len(phase.thawed)
        ends = (phase.learning_rate(phase.thawed[0]), phase.learning_rate(phase.thawed[-1])) if phase.thawed else ()
        rows.append(
            (
                f"{number} {phase.name}",
                f"{blocks[0].name}..{blocks[frozen - 1].name}"
                if frozen > 1
                else blocks[0].name
                if frozen
                else "nothing",
                f"{len(phase.thawed)} of {len(blocks)} blocks, head" if phase.thawed else "head",
                str(len(layers) + 1),
                f"{sum(parameters[layer] for layer in layers) + head:,}",
                str(phase.epochs),
                f"{phase.head_learning_rate:.2g}",
                "..".join(f"{rate:.2g}" for rate in dict.fromkeys(ends)) or "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)
