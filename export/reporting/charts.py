"""Charts as inline SVG. Colours are classes that the page's style sheet fills, so they follow light and dark.

Each is drawn 360 units wide, the width of a phone, so that its text is read at its own size there; a wide screen puts
several side by side. Text goes through ElementTree, which escapes it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from xml.etree import ElementTree as Xml

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 40
LINE = 13
"""Distance of two labels, one above the other."""
LOG_FROM = 8.0
"""Positive values whose largest is so many times the smallest are put on a logarithmic axis."""

POINTED = 100
"""Up to so many classes the cells of a matrix tell of themselves under the pointer; smaller ones can't be hit, and are
drawn together, by shade: a thousand classes would take megabytes."""
SHADES = 10
LETTER = 6.4
"""Width of a letter of a name, on average."""

Range = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Chart:
    """One drawing and what stands around it."""

    title: str
    svg: Markup
    legend: tuple[tuple[str, str], ...] = ()
    """(class of the style sheet, name)."""
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One line of a chart, or one cloud of dots."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str
    """Class of the style sheet: `main` is the accent, `other` is grey and dashed."""


@dataclass(frozen=True)
class Dot:
    """A value with its interval and its name."""

    name: str
    x: float
    y: float
    low: float
    high: float
    radius: float
    style: str


@dataclass(frozen=True)
class Axis:
    """From values to places."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Place of a value, in units of the drawing."""
        turn: Callable[[float], float] = math.log if self.log else float
        share = (turn(value) - turn(self.low)) / (turn(self.high) - turn(self.low))
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> tuple[float, ...]:
        """Round values between the ends, three to eight."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            many = math.log10(self.high / self.low) > 2.5
            values = [factor * 10.0**decade for decade in decades for factor in ((1,) if many else (1, 2, 5))]
        else:
            rough = (self.high - self.low) / 5
            size = 10.0 ** math.floor(math.log10(rough))
            step = size * next(factor for factor in (1, 2, 5, 10) if factor * size >= rough * 0.999)
            values = [
                step * n for n in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
            ]
        return tuple(value for value in values if self.low * (1 - 1e-9) <= value <= self.high + abs(self.high) * 1e-9)


def wide(values: Iterable[float], *, margin: float = 0.06, log: bool = False) -> Range:
    """A range with some room around finite values; 0..1 where there are none."""
    found = [value for value in values if math.isfinite(value)]
    if not found:
        return 0.0, 1.0
    low, high = min(found), max(found)
    if log:
        room = (high / low) ** margin if high > low else 2.0
        return low / room, high * room
    room = margin * (high - low) or abs(high) * 0.1 or 1.0
    return low - room, high + room


def spread(values: Sequence[float]) -> bool:
    """Whether values belong on a logarithmic axis."""
    return min(values) > 0 and max(values) >= LOG_FROM * min(values)


class Drawing:
    """An SVG with two axes."""

    def __init__(self, title: str, x: Range, y: Range, *, log_x: bool = False, height: int = HEIGHT) -> None:
        """Begin with nothing but the frame.

        Args:
            title: what it shows, for those who can't see it.
            x: ends of the horizontal axis.
            y: ends of the vertical axis.
            log_x: whether the horizontal one is logarithmic.
            height: of the whole, in units.
        """
        self.root = Xml.Element("svg", {"viewBox": f"0 0 {WIDTH} {height}", "role": "img", "class": "chart"})
        Xml.SubElement(self.root, "title").text = title
        self.x = Axis(*x, LEFT, WIDTH - RIGHT, log_x)
        self.y = Axis(*y, height - BOTTOM, TOP)
        self.height = height

    def add(self, name: str, style: str, text: str = "", tip: str = "", **place: float | str) -> Xml.Element:
        """Add an element; attributes' underscores become dashes, `tip` is shown under the pointer."""
        attributes = {
            key.replace("_", "-"): f"{value:.1f}".removesuffix(".0") if isinstance(value, float | int) else value
            for key, value in place.items()
        }
        element = Xml.SubElement(self.root, name, {"class": style, **attributes})
        if text:
            element.text = text
        if tip:
            Xml.SubElement(element, "title").text = tip
        return element

    def axes(self, x_title: str, y_title: str, *, percent: bool = False, x_percent: bool = False) -> None:
        """Draw grid, ticks and titles."""
        foot = self.y.start
        for value in self.y.ticks:
            place = self.y.at(value)
            self.add("line", "grid", x1=LEFT, x2=WIDTH - RIGHT, y1=place, y2=place)
            self.add("text", "tick end", number(100 * value if percent else value), x=LEFT - 6, y=place + 4)
        for value in self.x.ticks:
            place = self.x.at(value)
            self.add("line", "axis", x1=place, x2=place, y1=foot, y2=foot + 4)
            self.add("text", "tick middle", number(100 * value if x_percent else value), x=place, y=foot + 16)
        self.add("line", "axis", x1=LEFT, x2=WIDTH - RIGHT, y1=foot, y2=foot)
        self.add("text", "tick middle", x_title, x=(LEFT + WIDTH - RIGHT) / 2, y=self.height - 6)
        middle = (TOP + foot) / 2
        self.add("text", "tick middle", y_title, x=11, y=middle, transform=f"rotate(-90 11 {middle:.0f})")

    def path(self, style: str, x: Sequence[float], y: Sequence[float]) -> None:
        """Draw a line; it is broken where a value is not finite."""
        words, pen = [], "M"
        for across, up in zip(x, y, strict=True):
            if not math.isfinite(up):
                pen = "M"
                continue
            words.append(f"{pen}{self.x.at(across):.1f} {self.y.at(up):.1f}")
            pen = "L"
        self.add("path", style, d="".join(words))

    def done(self) -> Markup:
        """The finished text, safe in a page."""
        return Markup(Xml.tostring(self.root, encoding="unicode"))  # noqa: S704 - ElementTree has escaped all text


def number(value: float) -> str:
    """A number as short as it can be told: three digits, no useless zero."""
    if not math.isfinite(value):
        return "-"
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "0" if text in ("-0", "0") else text.replace("e+0", "e").replace("e-0", "e-").replace("-", "\u2212", 1)


def dots(title: str, values: Sequence[Dot], x_title: str, y_title: str, note: str = "") -> Chart:
    """Named values with intervals: what something is worth against what it costs."""
    log = spread([dot.x for dot in values])
    across = [dot.x for dot in values]
    low, high = wide(across, margin=0.12, log=log)
    ends = wide([end for dot in values for end in (dot.low, dot.high)])
    drawing = Drawing(title, (low if log else min(low, 0.0), high), ends, log_x=log)
    drawing.axes(x_title, y_title, percent=True)
    for dot in values:
        x = drawing.x.at(dot.x)
        drawing.add("line", f"whisker {dot.style}", x1=x, x2=x, y1=drawing.y.at(dot.low), y2=drawing.y.at(dot.high))
        drawing.add("circle", f"dot {dot.style}", cx=x, cy=drawing.y.at(dot.y), r=dot.radius, tip=dot.name)
    for dot, (x, y, anchor) in zip(values, _labels(drawing, values), strict=True):
        drawing.add("text", f"label {anchor} {dot.style}", dot.name, x=x, y=y)
    return Chart(title, drawing.done(), note=note)


def _labels(drawing: Drawing, values: Sequence[Dot]) -> list[tuple[float, float, str]]:
    """Place each name beside its dot, where it covers least of other names, dots and intervals."""
    centres = [(drawing.x.at(dot.x), drawing.y.at(dot.y)) for dot in values]
    taken: list[Box] = [
        (x - d.radius, y - d.radius, x + d.radius, y + d.radius) for d, (x, y) in zip(values, centres, strict=True)
    ]
    lines = [
        (x - 1, drawing.y.at(d.high), x + 1, drawing.y.at(d.low)) for d, (x, _) in zip(values, centres, strict=True)
    ]
    places: dict[int, tuple[float, float, str]] = {}
    for index in sorted(range(len(values)), key=lambda i: (values[i].style != "main", -values[i].y)):
        (x, y), dot = centres[index], values[index]
        width, gap = LETTER * len(dot.name), dot.radius + 4
        best = math.inf
        for anchor, move in product(("start", "end", "middle"), range(-9, 10)):
            start = {"start": x + gap, "end": x - gap - width, "middle": x - width / 2}[anchor]
            middle = y + move * LINE / 2
            box = (start, middle - LINE / 2, start + width, middle + LINE / 2)
            outside = start < LEFT - 8 or start + width > WIDTH or box[1] < 0 or box[3] > drawing.y.start
            cost = abs(move) + (anchor != "start") + 20 * sum(_overlap(box, other) for other in taken) + 1000 * outside
            cost += 4 * sum(_overlap(box, other) for place, other in enumerate(lines) if place != index)
            if cost < best:
                best, chosen = cost, box
                place_of = {"start": start, "end": start + width, "middle": x}
                places[index] = (place_of[anchor], middle + 4, anchor)
        taken.append(chosen)
    return [places[index] for index in range(len(values))]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def lines(
    title: str,
    series: Sequence[Series],
    x_title: str,
    y_title: str,
    *,
    percent: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    y_ends: Range | None = None,
    note: str = "",
) -> Chart:
    """Values over a common axis; `marks` are upright lines with what begins there. Few values have dots."""
    points = [(x, y) for each in series for x, y in zip(each.x, each.y, strict=True)]
    xs = [x for x, _ in points]
    ends = (min(xs) - 0.5, max(xs) + 0.5) if len(set(xs)) == 1 else (min(xs), max(xs))
    drawing = Drawing(title, ends, y_ends or wide([y for _, y in points]))
    drawing.axes(x_title, y_title, percent=percent)
    for place, name in marks:
        x = drawing.x.at(place)
        drawing.add("line", "mark", x1=x, x2=x, y1=TOP, y2=drawing.y.start, tip=name)
    for each in series:
        drawing.path(f"line {each.style}", each.x, each.y)
        for x, y in zip(each.x, each.y, strict=True):
            if math.isfinite(y) and len(each.x) <= 40:
                tip = f"{each.name}: {number(100 * y if percent else y)} at {number(x)}"
                drawing.add("circle", f"dot {each.style}", cx=drawing.x.at(x), cy=drawing.y.at(y), r=3, tip=tip)
    return Chart(title, drawing.done(), tuple((each.style, each.name) for each in series), note)


def cloud(title: str, series: Sequence[Series], x_title: str, y_title: str, *, equal: bool, note: str = "") -> Chart:
    """Dots without names; `equal` draws the line on which both are the same, else the one at 0."""
    xs = [x for each in series for x in each.x]
    ys = [y for each in series for y in each.y]
    x_ends, y_ends = (wide(xs + ys), wide(xs + ys)) if equal else (wide(xs), wide([*ys, 0.0]))
    drawing = Drawing(title, x_ends, y_ends)
    drawing.axes(x_title, y_title)
    drawing.path("line rule", x_ends, x_ends if equal else (0.0, 0.0))
    for each in series:
        for x, y in zip(each.x, each.y, strict=True):
            drawing.add("circle", f"speck {each.style}", cx=drawing.x.at(x), cy=drawing.y.at(y), r=2.2)
    return Chart(title, drawing.done(), tuple((each.style, each.name) for each in series), note)


def reliability(title: str, series: Sequence[Series], note: str = "") -> Chart:
    """Share that is right over the score given: on the diagonal, scores are probabilities."""
    lowest = min((value for each in series for value in (*each.x, *each.y)), default=0.0)
    ends = (max(math.floor(10 * lowest - 0.2), 0) / 10, 1.0)
    drawing = Drawing(title, ends, ends)
    drawing.axes("score given, %", "share that is right, %", percent=True, x_percent=True)
    drawing.path("line rule", ends, ends)
    for each in series:
        drawing.path(f"line {each.style}", each.x, each.y)
        for x, y in zip(each.x, each.y, strict=True):
            tip = f"{each.name}: {100 * y:.0f} % right at a score of {100 * x:.0f} %"
            drawing.add("circle", f"dot {each.style}", cx=drawing.x.at(x), cy=drawing.y.at(y), r=3, tip=tip)
    return Chart(title, drawing.done(), tuple((each.style, each.name) for each in series), note)


def bars(
    title: str,
    values: Sequence[float],
    names: Sequence[str],
    x_title: str,
    y_title: str,
    *,
    ends: Range | None = None,
    note: str = "",
) -> Chart:
    """One bar after the other, in their order.

    Args:
        title: stands above.
        values: their heights, from 0.
        names: shown under the pointer.
        x_title: of the horizontal axis.
        y_title: of the vertical axis.
        ends: what the left side of the first bar and the right side of the last stand for; None: they are counted.
        note: stands below.
    """
    low, high = ends or (-0.5, max(len(values), 1) - 0.5)
    drawing = Drawing(title, (low, high), (0.0, (max(values, default=0.0) or 1.0) * 1.06))
    drawing.axes(x_title, y_title)
    step = (drawing.x.end - drawing.x.start) / max(len(values), 1)
    for index, (value, name) in enumerate(zip(values, names, strict=True)):
        top = drawing.y.at(value)
        if drawing.y.start - top >= 0.05:
            x, width = drawing.x.start + (index + 0.1) * step, max(0.8 * step, 0.3)
            drawing.add("rect", "bar", x=x, y=top, width=width, height=drawing.y.start - top, tip=name)
    return Chart(title, drawing.done(), note=note)


def matrix(title: str, counts: Sequence[Sequence[int]], names: Sequence[str], note: str = "") -> Chart:
    """A confusion matrix of many classes: the darker, the larger the share of the true class (row)."""
    array = np.asarray(counts, np.float64)
    shares = array / np.maximum(array.sum(axis=1, keepdims=True), 1)
    side, edge = len(array), 22
    cell = (WIDTH - edge - 2) / side
    root = Xml.Element("svg", {"viewBox": f"0 0 {WIDTH} {WIDTH}", "role": "img", "class": "chart matrix"})
    Xml.SubElement(root, "title").text = title
    frame = {"x": f"{edge}", "y": "2", "width": f"{cell * side:.1f}", "height": f"{cell * side:.1f}", "class": "frame"}
    Xml.SubElement(root, "rect", frame)
    if side > POINTED:
        _shaded(root, shares, edge, cell)
    for row, column in np.argwhere(array > 0) if side <= POINTED else ():
        place = {"x": f"{edge + column * cell:.1f}", "y": f"{2 + row * cell:.1f}"}
        size = {"width": f"{max(cell - 0.2, 0.5):.2f}", "height": f"{max(cell - 0.2, 0.5):.2f}"}
        shade = {"class": "cell", "fill-opacity": f"{0.12 + 0.88 * shares[row, column]:.2f}"}
        element = Xml.SubElement(root, "rect", {**place, **size, **shade})
        if row != column:
            told = f"{names[row]} taken for {names[column]}: {array[row, column]:.0f}"
            Xml.SubElement(element, "title").text = told
    for text, x, y, turn in (("said", WIDTH / 2, WIDTH - 4, 0), ("true", 12, WIDTH / 2, -90)):
        attributes = {"class": "tick middle", "x": f"{x}", "y": f"{y}", "transform": f"rotate({turn} {x} {y})"}
        Xml.SubElement(root, "text", attributes).text = text
    return Chart(title, Markup(Xml.tostring(root, encoding="unicode")), note=note)  # noqa: S704 - escaped as above


def _shaded(root: Xml.Element, shares: NDArray[np.float64], edge: float, cell: float) -> None:
    """Draw the cells of a matrix that are above 0, in one path for each shade."""
    levels, size = np.ceil(SHADES * shares).astype(int), f"{max(cell - 0.02, 0.5):.2f}"
    for level in range(1, SHADES + 1):
        squares = (
            f"M{edge + column * cell:.1f} {2 + row * cell:.1f}h{size}v{size}h-{size}z"
            for row, column in np.argwhere(levels == level)
        )
        shade = {"class": "cell", "fill-opacity": f"{0.12 + 0.88 * level / SHADES:.2f}", "d": "".join(squares)}
        Xml.SubElement(root, "path", shade)
