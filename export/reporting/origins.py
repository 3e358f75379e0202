"""Where a model comes from: its data, and the commands, settings, hashes and versions that make it again."""

import shlex
from collections.abc import Sequence
from typing import Any

from edgetl.audit.findings import Audit
from export.adopt import RECIPE as ADOPTED
from export.artifacts import Artifact
from export.reporting.blocks import Block, Commands, Missing, Row, Section, Table, count, percent
from export.reporting.material import Material
from export.reporting.verdict import licence_of

OF_THE_MACHINE = ("recipe", "cache", "workers", "ray", "resume", "disk_budget_gb", "tensorboard")
"""What config.json holds besides the settings of the experiment: where and how it ran; paths may tell who ran it."""
NO_OPTIONS = {
    "distill": ("validation_fraction", "test_fraction", "task", "label", "targets", "class_order", "group", "exclude")
}
"""What a recipe takes over from the one that it is made of, and gives no option for."""
COMMAND_WIDTH = 92


def data_section(material: Material) -> Section:
    """Photos in each split, and what an audit found."""
    blocks: list[Block] = [_counts(material)]
    if material.audit is None:
        command = f"{audit_command(material.settings, material.run.manifest.data)} --out {material.where}/audit"
        blocks.append(Missing("Not audited: copies, odd photos, doubtful labels.", command))
    else:
        blocks.append(_audit(material.audit))
    return Section("data", "Data", tuple(blocks))


def audit_command(settings: dict[str, Any], source: str) -> str:
    """The command that audits the data of a run, with the labels that the run has, as its config.json names them."""
    words = ["python", "-m", "recipes.audit", "--data", source]
    for name in ("task", "label", "targets", "class_order", "group"):
        value = settings.get(name) or ()
        if value != "auto":
            values = [value] if isinstance(value, str) else [str(each) for each in value]
            words += [f"--{name.replace('_', '-')}", *values] if values else []
    return shlex.join(words)


def _counts(material: Material) -> Block:
    splits = material.splits
    photos = {name: sum(counted.values()) for name, counted in splits.items()}
    columns = ("", *splits, "all")
    whole = Row(("photos", *(f"{n:,}" for n in photos.values()), f"{sum(photos.values()):,}"))
    if not material.spec.exclusive:
        return Table(f"{material.report.data}: photos in each split", columns, (whole,))
    rows = [
        Row(
            (name, *(f"{counted[name]:,}" for counted in splits.values()), f"{sum(c[name] for c in splits.values()):,}")
        )
        for name in material.spec.names
    ]
    folded = count(len(rows), "class", "classes") if len(rows) > 24 else ""
    return Table(f"{material.report.data}: photos in each split", columns, (*rows, whole), folded=folded)


def _audit(audit: Audit) -> Block:
    kinds: dict[str, int] = {}
    for finding in audit.findings:
        kinds[finding.kind.replace("_", " ")] = kinds.get(finding.kind.replace("_", " "), 0) + 1
    found = {
        "photos": audit.photos,
        "groups of copies": len(audit.copies),
        "groups of copies across splits": sum(group.leaks for group in audit.copies),
        "groups of copies with different labels": sum(group.contradicts for group in audit.copies),
        "labels in doubt": len(audit.labels),
        **dict(sorted(kinds.items())),
    }
    rows = [Row((name, f"{number:,}")) for name, number in found.items()]
    rows += [
        Row((f"{shift.first} against {shift.second}: told apart", f"{percent(shift.accuracy)} (50 % is chance)"))
        for shift in audit.shifts
    ]
    return Table("Audit", ("", "found"), tuple(rows), note="; ".join(audit.skipped))


def reproduce_section(material: Material) -> Section:
    """Commands with their settings, hashes and versions."""
    manifest = material.run.manifest
    schemes = f"--schemes {' '.join(row.scheme for row in material.report.artifacts)}"
    converted = origin(material) if material.report.recipe == ADOPTED else f"python -m export.convert {material.where}"
    export = [f"{converted} {schemes}"]
    export += [f"python -m export.{name} {material.where}" for name in ("evaluate", "benchmark", "report")]
    facts = {
        "seed": str(manifest.seed),
        "data": f"{manifest.data} (sha256 {manifest.data_sha256})",
        "licence of the pretrained weights": licence_of(material) or "not known",
        "model.keras, sha256": material.report.run_sha256,
        **{f"{row.path}, sha256": row.sha256 for row in material.report.artifacts},
        **{f"{each.scheme}, made with": _made_with(each) for each in material.artifacts},
        **manifest.versions,
    }
    table = Table(
        "Hashes and versions",
        ("", "value"),
        tuple(Row((name, value)) for name, value in facts.items()),
        words=(1,),
        folded="Hashes and versions",
    )
    lead = "The same data, settings and versions give the same splits and, but for the order of sums, the same figures."
    adopted = material.report.recipe == ADOPTED  # the first of `export` has made the run
    commands = (*(() if adopted else (origin(material),)), *export)
    return Section("reproduce", "How to reproduce", (Commands("\n".join(commands)), table), lead)


def _made_with(artifact: Artifact) -> str:
    settings = [f"{name} {value}" for name, value in artifact.settings.items()]
    photos = [f"ranges measured on {count(len(artifact.calibration), 'photo')}"] if artifact.calibration else []
    return "; ".join([*settings, *photos]) or "nothing to choose"


def origin(material: Material) -> str:
    """The command that made the run."""
    settings, recipe = material.settings, material.report.recipe
    if recipe != ADOPTED:
        return recipe_command(settings, recipe)
    words = ["--model", str(settings.get("model", "")), "--data", str(settings.get("data", ""))]
    return f"python -m export.convert {material.where} {shlex.join(words)}"


def recipe_command(settings: dict[str, Any], recipe: str) -> str:
    """The command line of a recipe with every setting that its result depends on, as its config.json has them."""
    return _folded(recipe_words(settings, recipe))


def recipe_words(settings: dict[str, Any], recipe: str) -> list[str]:
    """The same in parts, each quoted for a shell."""
    words = ["python", "-m", shlex.quote(f"recipes.{recipe}")]
    for name, value in settings.items():
        option = f"--{name.replace('_', '-')}"
        if name in OF_THE_MACHINE or name in NO_OPTIONS.get(recipe, ()):
            continue
        if isinstance(value, bool):
            words.append(shlex.quote(option if value else option.replace("--", "--no-", 1)))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            words.append(shlex.join([option, *map(str, value)]))
        else:
            words.append(shlex.join([option, str(value)]))
    return words


def _folded(words: Sequence[str]) -> str:
    """Lines that a shell reads as one."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > COMMAND_WIDTH:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)
