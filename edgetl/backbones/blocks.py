"""The blocks of a backbone by name, and the cut between two of them.

A block ends at an operation that its row of the registry names. It holds every operation that its end depends on and
that no earlier block's end depends on. What is left up to the features is the block `top` if it has weights, and part
of the last block if not. The input and the normalization are in no block, nor is a head on top of the features.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgetl.backbones.backbone import Backbone
from edgetl.backbones.build import IMAGES, NORMALIZE_LAYER
from edgetl.console import quiet_tensorflow
from edgetl.errors import BackboneError

quiet_tensorflow()

import keras  # noqa: E402

HEAD = "head"
"""Stands for everything after the features where a model is cut."""
TOP = "top"


@dataclass(frozen=True)
class Block:
    """A part of a backbone that is thawed as a whole."""

    name: str
    layers: tuple[str, ...]
    """Names of its layers that have weights, from input to output."""


def blocks_of(model: keras.Model, backbone: Backbone) -> tuple[Block, ...]:
    """List the blocks from input to output.

    Args:
        model: the backbone as `build` makes it, also with a head attached, also loaded from a file.
        backbone: its row of the registry.

    Raises:
        BackboneError: the model is of another backbone.
    """
    graph = _Graph(model)
    blocks = _members(graph, backbone)
    return tuple(Block(name, tuple(filter(graph.weighted.__contains__, parts))) for name, parts in blocks.items())


def split_before(model: keras.Model, backbone: Backbone, block: str) -> tuple[keras.Model | None, keras.Model]:
    """Cut a model in two that share its layers; nothing is copied.

    Args:
        model: as for `blocks_of`.
        backbone: its row of the registry.
        block: the first block of the second part, or `head` for the features as border.

    Returns:
        front: raw pixels -> the tensors that cross the border, in the model's order: `front.outputs`. A call gives a
            list of them, or the tensor itself where it is the only one, as it is for all but NASNet. None where
            `block` is the first, so that nothing but the normalization would be left.
        tail: what a call of `front` gives -> what the model gives; the model itself where front is None.

    Raises:
        BackboneError: there is no such block, no head, or the model is of another backbone.
    """
    graph = _Graph(model)
    blocks = _members(graph, backbone)
    has_head = graph.names[-1] != backbone.output
    names = [*blocks, HEAD] if has_head else [*blocks]
    if block not in names:
        near = difflib.get_close_matches(block, names, n=3) or [name for name in names if block in name][:3]
        hint = f"Did you mean {', '.join(near)}?" if near else f"Choose from {', '.join(names)}"
        raise BackboneError(f"{backbone.name} has no block {block!r}. {hint}")
    earlier = names[: names.index(block)]
    if not earlier:
        return None, model
    front = {IMAGES, NORMALIZE_LAYER}.union(*(blocks[name] for name in earlier))
    border = graph.border(front)
    return (
        keras.Model(model.input, border, name=f"{model.name}_before_{block}"),
        keras.Model(border, model.output, name=f"{model.name}_from_{block}"),
    )


class _Graph:
    """What makes what in a functional model; operations by name, each of them called once in this model."""

    def __init__(self, model: keras.Model) -> None:
        self.names: list[str] = [operation.name for operation in model.operations]
        """From input to output."""
        self.weighted: set[str] = {layer.name for layer in model.layers if layer.weights}
        self._takes: dict[str, list[Any]] = {}
        waiting = list(model.outputs)
        while waiting:  # from the outputs: a layer's own `input` may be that of an earlier model that it was part of
            operation, node, _ = waiting.pop()._keras_history
            if operation.name not in self._takes:
                self._takes[operation.name] = operation._inbound_nodes[node].input_tensors
                waiting += self._takes[operation.name]

    def needed_for(self, end: str) -> set[str]:
        """Names of all operations that one depends on, itself included."""
        found, waiting = set(), [end]
        while waiting:
            if (name := waiting.pop()) not in found:
                found.add(name)
                waiting += [_maker(tensor) for tensor in self._takes[name]]
        return found

    def border(self, front: Iterable[str]) -> list[Any]:
        """Tensors made by these operations that others take, each once, in the model's order."""
        front = set(front)
        crossing = {
            id(tensor): tensor
            for name in self.names
            if name not in front
            for tensor in self._takes[name]
            if _maker(tensor) in front
        }
        return sorted(crossing.values(), key=lambda tensor: self.names.index(_maker(tensor)))


def _maker(tensor: Any) -> str:
    name: str = tensor._keras_history.operation.name
    return name


def _members(graph: _Graph, backbone: Backbone) -> dict[str, list[str]]:
    """Map each block to the names of its operations, weights or none, all from input to output."""
    ends = _ends(graph.names, backbone)
    patterns = [*(end.pattern for end in backbone.blocks), re.escape(backbone.output)]
    found = [*ends.values(), *({backbone.output} & {*graph.names})]
    if missing := [pattern for pattern in patterns if not any(re.fullmatch(pattern, name) for name in found)]:
        raise BackboneError(
            f"{backbone.name}: the model given is of another backbone or of an earlier version of edgetl: none of its "
            f"operations is called {missing[0]}. Build it again"
        )
    taken = {IMAGES, NORMALIZE_LAYER}
    blocks: dict[str, list[str]] = {}
    for name, end in [*ends.items(), (TOP, backbone.output)]:
        needed = graph.needed_for(end) - taken
        taken |= needed
        blocks[name] = [each for each in graph.names if each in needed]
    if not graph.weighted.intersection(blocks[TOP]):
        rest = blocks.pop(TOP)
        blocks[next(reversed(blocks))] += rest
    return blocks


def _ends(names: Iterable[str], backbone: Backbone) -> dict[str, str]:
    """Map each block to the name of its last operation, from input to output."""
    ends: dict[str, str] = {}
    for name in names:
        for end in backbone.blocks:
            if match := re.fullmatch(end.pattern, name):
                block = match.expand(end.name)
                ends.pop(block, None)  # the last one counts, also for the order
                ends[block] = name
    return ends
