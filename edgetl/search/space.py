"""The search space: which settings vary, and between which values.

Knows dataclasses of settings and nothing of what they are for. A knob is written as it is in papers:
`backbone_lr=loguniform(1e-6,1e-3)`, `dropout=uniform(0,0.5)`, `epochs=int(4,16)`, `batch_size=choice(16,32,64)`.
"""

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_origin, get_type_hints

from edgetl.config import checked
from edgetl.errors import ConfigError, EdgetlError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

C = TypeVar("C")
Value = str | int | float
"""Of a knob, as a study stores it; categories are text."""
FORMS = "uniform(low,high), loguniform(low,high), int(low,high), logint(low,high) or choice(a,b,...)"
MOST_POINTS = 100_000
LARGEST = 1e30
"""Of bounds: what Optuna computes of them must stay a float32."""
_KNOB = re.compile(r"\s*([A-Za-z][\w-]*)\s*=\s*(.*?)\s*", re.DOTALL)
_CALL = re.compile(r"([a-z]+)\s*\(\s*(.*?)\s*\)", re.DOTALL)
_RANGES = {"uniform": (False, False), "loguniform": (False, True), "int": (True, False), "logint": (True, True)}
"""Form -> whether it is of whole numbers, whether it is drawn by its logarithm."""
_SUFFIXES = (".yaml", ".yml", ".json")
_MOST_CHARACTERS = 1 << 16
"""Of a file: a page or two; deep nesting in a larger one takes YAML seconds."""
_LIST = "|"
"""Between the values of a setting that is a list: hidden_units=choice(256,256|128)."""


@dataclass(frozen=True)
class Knob:
    """One setting that varies: a range, or a list of choices."""

    name: str
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    """Only whole numbers."""
    log: bool = False
    """Drawn evenly by its logarithm."""
    points: int = 0
    """Of a range, how many values a grid takes; 0: nobody said."""
    choices: tuple[str, ...] = ()
    """Not empty: one of these, and no range."""

    def distribution(self, *, grid: bool = False) -> "BaseDistribution":
        """What Optuna draws from; for a grid, the list of its points."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if grid:
            return CategoricalDistribution(self.grid())
        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def count(self) -> int:
        """How many points a grid has at most; of `logint` some may be one when rounded.

        Raises:
            ConfigError: a range of real numbers, and nobody said how many points.
        """
        if self.choices or self.points:
            return len(self.choices) or self.points
        if self.whole and not self.log:
            return int(self.high) - int(self.low) + 1
        form = next(name for name, kind in _RANGES.items() if kind == (self.whole, self.log))
        raise ConfigError(
            f"--space {self.name}: a grid needs to know how many points. For 5 of them write "
            f"{form}({self.low:g},{self.high:g},5)"
        )

    def grid(self) -> tuple[Value, ...]:
        """All points of a grid, from low to high.

        Raises:
            ConfigError: as `count`.
        """
        if self.choices:
            return self.choices
        count = self.count()
        steps = [i / (count - 1) if count > 1 else 0.0 for i in range(count)]
        if self.log:
            found = [self.low * (self.high / self.low) ** step for step in steps]
        else:
            found = [self.low + (self.high - self.low) * step for step in steps]
        return tuple(dict.fromkeys(round(value) for value in found)) if self.whole else tuple(found)

    def holds(self, value: object) -> bool:
        """Whether a setting's value is one that could be drawn."""
        if self.choices:
            return written(value) in self.choices
        try:
            number = float(str(value))
        except ValueError:
            return False
        return self.low <= number <= self.high and not (self.whole and number % 1)

    def ends(self) -> tuple[Value, ...]:
        """Values that tell whether all between them can work."""
        if self.choices:
            return self.choices
        between = self.low + (self.high - self.low) * 0.381966  # of a setting that takes whole numbers alone: none
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high, between)


def written(value: object) -> str:
    """A setting's value as a choice is written."""
    return _LIST.join(str(each) for each in value) if isinstance(value, tuple) else str(value)


def read(given: Sequence[str]) -> tuple[Knob, ...]:
    """Read a search space.

    Args:
        given: knobs, `name=form`; and names of YAML or JSON files that map names to forms, or to lists of choices.

    Raises:
        ConfigError: a knob that can't be read, or one that is there twice.
    """
    knobs: list[Knob] = []
    for text in given:
        if "=" not in text and text.endswith(_SUFFIXES):
            knobs += _from_file(Path(text).expanduser())
        elif match := _KNOB.fullmatch(text):
            knobs.append(knob(match[1].replace("-", "_"), match[2]))
        else:
            raise ConfigError(f"--space {text}: not understood. Write name=form, with {FORMS}; or name a .yaml file")
    names = [each.name for each in knobs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--space: {', '.join(twice)} is there twice. Keep one")
    return tuple(knobs)


def _from_file(path: Path) -> list[Knob]:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MOST_CHARACTERS + 1)
    except FileNotFoundError:
        raise ConfigError(f"--space {path}: no such file. Write name=form, or name a file that is there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--space {path}: can't be read ({error})") from None
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(f"--space {path}: more than {_MOST_CHARACTERS} characters. Is it a search space?")
    found = _parsed_json(path, text) if path.suffix == ".json" else _parsed_yaml(path, text)
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"--space {path}: a mapping from knobs to forms is needed, such as dropout: uniform(0,0.5)")
    knobs = []
    for name, form in found.items():
        choices = form if isinstance(form, list) else [form]
        parts = [part for each in choices for part in (each if isinstance(each, list) else [each])]
        if not isinstance(name, str) or not all(isinstance(part, (str, int, float)) for part in parts):
            raise ConfigError(f"--space {path}: {name}: a form or a list of choices is needed: {FORMS}")
        try:
            listed = ",".join(written(tuple(each) if isinstance(each, list) else each) for each in choices)
        except ValueError as error:  # a whole number of thousands of digits
            raise ConfigError(f"--space {path}: {name}: {error}") from None
        knobs.append(knob(name.replace("-", "_"), f"choice({listed})" if isinstance(form, list) else listed))
    return knobs


def _parsed_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--space {path}: no JSON ({error})") from None


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a knob is there twice. Keep one")
    return found


def _parsed_yaml(path: Path, text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Builds plain values alone, whatever a stranger's file asks for."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            _once([(key.value, value) for key, value in node.value if isinstance(key.value, str)])
            return super().construct_mapping(node, deep)  # type: ignore[no-any-return]

    try:
        return yaml.load(text, Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--space {path}: no YAML ({' '.join(str(error).split())})") from None


def knob(name: str, form: str) -> Knob:
    """Read one knob.

    Args:
        name: of the setting.
        form: see FORMS; or a list of choices without a word before it.

    Raises:
        ConfigError: no such form, numbers that are none, an empty range or list.
    """
    call = _CALL.fullmatch(form)
    kind, inside = (call[1], call[2]) if call else ("choice", form)
    parts = [part.strip() for part in inside.split(",")] if inside else []
    if kind == "choice":
        if not parts or "" in parts:
            raise ConfigError(f"--space {name}={form}: nothing to choose from. Write choice(a,b,...)")
        if len(set(parts)) < len(parts):
            raise ConfigError(f"--space {name}={form}: a choice is there twice. Keep one")
        return Knob(name, choices=tuple(parts))
    if kind not in _RANGES:
        raise ConfigError(f"--space {name}={form}: no such form. There are {FORMS}")
    whole, log = _RANGES[kind]
    try:
        low, high = (float(part) for part in parts[:2])
        (points,) = (int(part) for part in parts[2:] or ["0"])
    except ValueError:
        raise ConfigError(f"--space {name}={form}: needs two numbers, low and high, such as {kind}(1,10)") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (log and low <= 0) or points < 0:
        need = "above 0 and " if log else ""
        raise ConfigError(f"--space {name}={form}: low must be {need}less than high. Received: {low:g} and {high:g}")
    if max(-low, high) > LARGEST:
        raise ConfigError(f"--space {name}={form}: bounds must be within -{LARGEST:g} and {LARGEST:g}")
    if whole and (low % 1 or high % 1):
        raise ConfigError(f"--space {name}={form}: whole numbers are needed. Received: {low:g} and {high:g}")
    return Knob(name, low, high, whole, log, points)


def applied(settings: C, values: Mapping[str, object]) -> C:
    """Put drawn values into settings, each as its field's type.

    Args:
        settings: a frozen dataclass.
        values: by name of the field; text for categories, with `|` between the values of a list.

    Raises:
        ConfigError: a value that the field can't be.
    """
    hints = get_type_hints(type(settings))
    typed = {name: _typed(hints[name], value) for name, value in values.items()}
    return checked(dataclasses.replace(settings, **typed))  # type: ignore[type-var]


def _typed(hint: Any, value: object) -> object:
    if hint is str:
        return str(value)
    if get_origin(hint) is tuple and isinstance(value, (str, int)):
        return tuple(str(value).split(_LIST))
    return value


def check(
    knobs: Sequence[Knob], settings: C, refuse: Callable[[C], object], *, barred: Collection[str], why: str
) -> None:
    """Refuse knobs that the settings don't have, and values that can't work, before anything is computed.

    Args:
        knobs: the space.
        settings: those that the knobs vary.
        refuse: raises a ConfigError for settings that can't work.
        barred: fields that must not vary.
        why: they must not.

    Raises:
        ConfigError: names the knob.
    """
    free = [field.name for field in dataclasses.fields(settings) if field.name not in barred]  # type: ignore[arg-type]
    for each in knobs:
        if each.name in barred:
            raise ConfigError(f"--space {each.name}: can't be searched: {why}. Leave it out")
        if each.name not in free:
            near = difflib.get_close_matches(each.name, free, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(sorted(free))}"
            raise ConfigError(f"--space {each.name}: the recipe has no such setting. {hint}")
        for value in each.ends():
            try:
                refuse(applied(settings, {each.name: value}))
            except EdgetlError as error:
                raise ConfigError(f"--space {each.name}: {value} can't work: {error}") from None


def grid_size(knobs: Sequence[Knob]) -> int:
    """Number of points of the grid over all knobs.

    Raises:
        ConfigError: a knob has no points, or there are too many.
    """
    size = math.prod(each.count() for each in knobs)  # a grid beyond all bounds can't even be made
    if size > MOST_POINTS:
        raise ConfigError(
            f"--space: a grid of {size:,} points; {MOST_POINTS:,} are the most. Use --method random or tpe"
        )
    return math.prod(len(each.grid()) for each in knobs)
