"""Thumbnails: the worst mistakes, where float and quantized disagree, and where the network looks."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from edgetl import data
from edgetl.attention import grad_cam
from edgetl.console import progress
from edgetl.data.scan import Home
from edgetl.errors import BackboneError, DatasetError
from export.evaluate import Stored
from export.reporting.blocks import Card
from export.reporting.material import Material
from export.reporting.views import VIEWS

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 200
"""Longest side of a thumbnail, pixels; on a page it takes 150 to 180, on a fine screen twice that."""
QUALITY = 82
"""Of JPEG: 4 to 9 kB each."""


@dataclass(frozen=True)
class Pictures:
    """Cards of each kind, and why there are none or fewer."""

    mistakes: tuple[Card, ...] = ()
    wrong: int = 0
    """Photos that the artifact to ship gets wrong; of numbers 0."""
    disagreements: tuple[Card, ...] = ()
    differing: int = 0
    """Photos of which the quantized artifact says something else than Keras."""
    looks: tuple[Card, ...] = ()
    missing: str = ""
    """What stood in the way of photos; empty when nothing did."""
    unmapped: str = ""
    """What stood in the way of maps."""


def pictures(material: Material, photos: int, maps: int) -> Pictures:
    """Choose photos, read them once, and make cards.

    Args:
        material: the run.
        photos: of each kind, at most; 0 reads none.
        maps: on which is shown where the network looks; 0 leaves Keras alone.
    """
    said = material.said
    view, spec = VIEWS[material.spec.task], material.spec
    badness = view.wrong(said.labels, said.schemes[material.shipped], spec)
    distance = view.apart(said.keras, said.schemes[material.quantized], spec)
    worst, differing = _first(badness, photos), _first(distance, photos)
    looked = _to_look_at(badness, said.keras, view.told(said.keras), maps if photos else 0)
    counts = {
        "wrong": int((badness > 0).sum()) if spec.task != "regression" else 0,
        "differing": int((distance > 0).sum()),
    }
    wanted = sorted({*worst, *differing, *looked})
    pixels, missing = _pixels(material, said, wanted)
    there = [index for index in looked if index in pixels]
    heat, unmapped = _maps(material, said, np.array(there, np.int64), pixels)
    return Pictures(
        mistakes=_cards(material, said, worst, pixels, (material.shipped,)),
        disagreements=_cards(material, said, differing, pixels, ("Keras", material.quantized)),
        looks=_cards(material, said, there if heat else (), pixels, ("Keras",), heat),
        missing=missing,
        unmapped=unmapped,
        **counts,
    )


def _first(badness: NDArray[np.float64], most: int) -> list[int]:
    """Positions with the largest values above 0, the largest first."""
    order = np.argsort(-badness, kind="stable")
    return [int(index) for index in order[:most] if badness[index] > 0]


def _to_look_at(
    badness: NDArray[np.float64], outputs: NDArray[np.float32], told: NDArray[np.int64], most: int
) -> list[int]:
    """Half of the photos from the worst mistakes, the others from what was said best, each output in its turn."""
    worst = _first(badness, most // 2)
    surest = np.lexsort((np.arange(len(badness)), -outputs[np.arange(len(told)), told], badness))
    turns: dict[int, int] = {}
    best: list[tuple[int, int, int]] = []
    for place, index in enumerate(index for index in surest.tolist() if index not in worst):
        turn = turns[int(told[index])] = turns.get(int(told[index]), -1) + 1
        best.append((turn, place, index))
    return worst + [index for _, _, index in sorted(best)[: most - len(worst)]]


def _pixels(material: Material, said: Stored, wanted: Sequence[int]) -> tuple[dict[int, data.Pixels], str]:
    """Read photos as the network sees them; one that is gone or was changed is left out, and told."""
    if not wanted:
        return {}, ""
    run = material.run
    try:
        root = run.root(material.data)
    except DatasetError as error:
        return {}, str(error)
    home, paths = Home(root), {index: root / said.ids[index] for index in wanted}
    inside = [index for index, path in paths.items() if home.holds(path, link=path.is_symlink())]
    items = tuple(data.Example(said.ids[index], paths[index], 0) for index in inside)
    examples = data.Examples(run.manifest.data, root, run.output_names, items)  # labels are known already
    found: dict[int, data.Pixels] = {}
    with progress("photos for the page", len(items)) as bar:
        for batch in data.decoded(examples, run.inputs):
            bar.advance(len(batch.pixels) + len(batch.unreadable))
            for position, photo, sha256 in zip(batch.indices, batch.pixels, batch.sha256, strict=True):
                if sha256 == run.photo_sha256.get(examples.items[position].id):
                    found[inside[position]] = photo
    lost = len(wanted) - len(found)
    return found, f"{lost} of {len(wanted)} photos are gone or were changed since the run." if lost else ""


def _maps(
    material: Material, said: Stored, chosen: NDArray[np.int64], pixels: dict[int, data.Pixels]
) -> tuple[dict[int, NDArray[np.float32]], str]:
    """Ask the Keras model where it looks."""
    if not len(chosen):
        return {}, ""
    with progress("where the network looks"):
        model = material.run.load_model()
        told = VIEWS[material.spec.task].told(said.keras[chosen])
        try:
            heat = grad_cam(model, np.stack([pixels[int(index)] for index in chosen]), told, material.spec)
        except BackboneError as error:
            return {}, str(error)
    return {int(index): each for index, each in zip(chosen, heat, strict=True)}, ""


def _cards(
    material: Material,
    said: Stored,
    chosen: Sequence[int],
    pixels: dict[int, data.Pixels],
    models: Sequence[str],
    heat: dict[int, NDArray[np.float32]] | None = None,
) -> tuple[Card, ...]:
    view, spec = VIEWS[material.spec.task], material.spec
    outputs = {"Keras": said.keras, **said.schemes}
    cards = []
    for index in chosen:
        shown = [(_address(_thumbnail(pixels[index])), "the photo")] if index in pixels else []
        if heat is not None and index in pixels:
            shown.append((_address(_overlaid(pixels[index], heat[index])), "where the network looks, in colour"))
        lines = [(model, view.said(outputs[model][index], spec)) for model in models]
        if heat is not None and not heat[index].any():
            lines.append(("map", "no place speaks for it"))
        cards.append(Card(tuple(shown), said.ids[index], (("true", view.truth(said.labels[index], spec)), *lines)))
    return tuple(cards)


def _thumbnail(pixels: data.Pixels) -> "Image":
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image


def _overlaid(pixels: data.Pixels, heat: NDArray[np.float32]) -> "Image":
    """Lay heat over a photo in grey: blue where there is little, through red to yellow where there is most."""
    from matplotlib import colormaps
    from PIL import Image

    image = _thumbnail(pixels).convert("L").convert("RGB")
    spread = Image.fromarray((255 * heat).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    strength = np.asarray(spread, np.float32)[..., None] / 255
    colours = (255 * colormaps["inferno"](strength[..., 0])[..., :3]).astype(np.float32)
    blend = 0.65 * np.minimum(1.5 * strength, 1)
    return Image.fromarray((np.asarray(image) * (1 - blend) + colours * blend).astype(np.uint8))


def _address(image: "Image") -> Markup:
    """The picture itself as an address: the page needs no other file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return Markup(f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}")  # noqa: S704 - base64
