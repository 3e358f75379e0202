"""The page and the card: figures of the files, names that can do nothing, and nothing asked of a network."""

import dataclasses
import hashlib
import importlib
import io
import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from editing import unseal
from markdown_it import MarkdownIt
from tiny_reports import NAMES, Tiny, tiny_run

from edgetl.audit.findings import Audit, Copy, CopyGroup, Finding, Spread
from edgetl.calibration import Temperature
from edgetl.config import parse, to_json
from edgetl.errors import ArtifactError, ConfigError, RunError
from edgetl.history import Epoch, to_csv
from edgetl.outputs import Task
from edgetl.robustness import CORRUPTIONS, robustness
from edgetl.rundir import RunDir, read_json
from edgetl.scores import ClassScores, MultiLabelScores, RegressionScores
from export import layers, report
from export.evaluate import EvaluationReport
from export.layer_errors import LayerError
from export.reporting import charts
from export.reporting.card import escaped
from export.reporting.joined import Report, ReportRow, recommended
from export.reporting.origins import audit_command, recipe_command
from recipes import feature_extraction

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; [a](javascript:alert(1)) `x` | {{ 7 * 7 }} </style>",
)
VOID = {"meta", "img", "br", "link", "input", "hr", "base", "source"}


class Page(HTMLParser):
    """What a browser would make of a page: elements, attributes, text, tables."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.open: list[str] = []
        self._table: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attributes}
        self.elements.append((tag, named))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = self.tables.setdefault(named["aria-label"], [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open[-2:] or "th" in self.open[-2:]:
            self._table[-1][-1] += data
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def inert(page: Page) -> None:
    """Nothing in it runs, and nothing is fetched."""
    assert not {tag for tag, _ in page.elements} & {
        "script",
        "iframe",
        "object",
        "embed",
        "link",
        "form",
        "base",
        "a:b",
    }
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("srcset", "srcdoc", "action")], tag
        assert attributes.get("src", "data:").startswith("data:image/jpeg;base64,") or "src" not in attributes
        assert attributes.get("href", "#").startswith("#") and "xlink:href" not in attributes
        assert re.fullmatch(r"(--share:[01]\.\d+)?", attributes.get("style", ""))
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy.split("; ")[0] == "default-src 'none'" and "script" not in policy


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Tiny]:
    """A reported run of each task. Read only."""
    found = {task: tiny_run(tmp_path_factory.mktemp(task) / "tiny", task) for task in NAMES}
    for tiny in found.values():
        report.main(report.Config(tiny.run.path, photos=3, maps=4))
    return found


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return tiny_run(tmp_path / "tiny")


def made(tiny: Tiny, **settings: object) -> Page:
    """Report without Keras, which only maps need."""
    report.main(report.Config(tiny.run.path, **{"maps": 0, **settings}))  # type: ignore[arg-type]
    return Page(tiny.run.path / "report.html")


def evaluated(run: RunDir) -> EvaluationReport:
    return read_json(EvaluationReport, run.export_path / "evaluation.json")


def scored(tiny: Tiny, scheme: str = "int8") -> object:
    return next(each for each in evaluated(tiny.run).artifacts if each.scheme == scheme).scores


# --- every task -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", NAMES)
def test_a_page_tells_of_every_task_and_needs_nothing_else(runs: dict[Task, Tiny], task: Task) -> None:
    page, evaluation = Page(runs[task].run.path / "report.html"), evaluated(runs[task].run)
    inert(page)
    written = read_json(Report, runs[task].run.path / "report.json")
    assert f"Ship {written.recommended}" in page.words and "Beware" in page.words
    anchors = {attributes["href"][1:] for attributes in page.all("a")}
    assert anchors == {attributes["id"] for tag, attributes in page.elements if tag == "section"} - {"ship", "beware"}
    expected = {"artifacts", "training", "errors", "slices", "robustness", "mistakes", "disagreements", "attention"}
    assert anchors >= expected | {"layers", "devices", "data", "reproduce"} and ("scores" in anchors) == (
        task != "regression"
    )
    (rows,) = [table for name, table in page.tables.items() if name.startswith("Measured on")]
    assert [row[0] for row in rows[1:]] == ["float32", "int8"]
    for row, found in zip(rows[1:], evaluation.artifacts, strict=True):
        assert row[3].replace("\u202f", " ") == f"{100 * found.scores.primary:.1f} %"
        assert float(row[5].replace("\u2212", "-")) == pytest.approx(-100 * found.against_keras.drop, abs=0.006)
    figures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert figures and all(attributes["role"] == "img" for attributes in figures)
    assert page.elements.count(("title", {})) > len(figures), "every drawing says what it shows"


@pytest.mark.parametrize("task", ["classification", "ordinal"])
def test_confusion_and_recalls_are_those_of_the_evaluation(runs: dict[Task, Tiny], task: Task) -> None:
    page, scores, keras = Page(runs[task].run.path / "report.html"), scored(runs[task]), evaluated(runs[task].run).keras
    assert isinstance(scores, ClassScores) and isinstance(keras, ClassScores)
    for name, of in (("Keras", keras), ("int8", scores)):
        table = page.tables[f"{name}: true class by class named"]
        assert [row[1:-1] for row in table[1:]] == [[str(n) for n in line] for line in of.confusion]
        assert [row[0] for row in table[1:]] == list(table[0][1:-1]) == list(NAMES[task])
    assert [row[3].split("\u202f")[0] for row in page.tables["Class by class"][1:]] == [
        f"{100 * each.recall:.1f}" for each in scores.classes
    ]
    assert ("Mean distance to the right class" in page.words) == (task == "ordinal")


def test_labels_have_hits_and_misses_instead_of_a_matrix(runs: dict[Task, Tiny]) -> None:
    page, scores = Page(runs["multi_label"].run.path / "report.html"), scored(runs["multi_label"])
    assert isinstance(scores, MultiLabelScores)
    assert [row[:6] for row in page.tables["Label by label"][1:]] == [
        [s.name, "0.50", str(s.samples), str(s.right), str(s.samples - s.right), str(s.named - s.right)]
        for s in scores.labels
    ]
    assert not [name for name in page.tables if "true class" in name]


def test_numbers_have_errors_in_their_units_and_a_cloud(runs: dict[Task, Tiny]) -> None:
    page, scores = Page(runs["regression"].run.path / "report.html"), scored(runs["regression"])
    assert isinstance(scores, RegressionScores)
    for row, target in zip(page.tables["Target by target"][1:], scores.targets, strict=True):
        assert row[0] == target.name
        assert [float(text.replace("\u2212", "-")) for text in row[3:6]] == pytest.approx(
            [target.mae, target.rmse, target.bias], rel=1e-3
        )
    best = min(evaluated(runs["regression"].run).artifacts, key=lambda each: each.against_keras.drop).scores
    assert isinstance(best, RegressionScores)  # int8 is made to lose more than a point
    width, height = (f"{target.mae:.4g}" for target in best.targets)
    assert f"On average it is off in width by {width}, height by {height}." in page.words
    assert "which both give values within 0.1 standard deviations" in page.words
    assert "the places that raise its value of width" in page.words
    assert "R2 here: against the variance of all test photos" in page.words
    specks = [attributes for tag, attributes in page.elements if attributes.get("class", "").startswith("speck")]
    assert len(specks) == 2 * 2 * len(runs["regression"].test), "each photo twice, for each of two targets"


# --- the photos -----------------------------------------------------------------------------------------------------


def test_photos_shown_are_the_worst_and_those_that_differ(runs: dict[Task, Tiny]) -> None:
    tiny = runs["classification"]
    page = Page(tiny.run.path / "report.html")
    labels, int8, keras = tiny.test.labels, tiny.outputs["int8"], tiny.outputs["keras"]
    wrong = {tiny.test.items[i].id: int8[i].max() for i in range(len(labels)) if int8[i].argmax() != labels[i]}
    differ = [tiny.test.items[i].id for i in range(len(labels)) if int8[i].argmax() != keras[i].argmax()]
    told = [page.words.index(name) for name in sorted(wrong, key=lambda name: -wrong[name])[:3]]
    assert told == sorted(told) and len(wrong) > 3 and f"{len(wrong)} photos wrong" in page.words
    assert f"don\u2019t name the same class on {len(differ)} of {len(labels)} test photos" in page.words
    # Three mistakes, three that differ or as many as there are, four photos with their maps.
    assert len(page.all("img")) == 3 + min(3, len(differ)) + 4 * 2


def test_photos_that_are_gone_or_changed_are_left_out_and_told(tiny: Tiny) -> None:
    before = len(made(tiny).all("img"))
    shown = {attributes["alt"].split(":")[0] for attributes in Page(tiny.run.path / "report.html").all("img")}
    gone, changed = sorted(shown)[:2]
    (tiny.photos / gone).unlink()
    (tiny.photos / changed).write_bytes((tiny.photos / sorted(shown)[2]).read_bytes())
    page = made(tiny)
    assert f"2 of {len(shown)} photos are gone or were changed since the run" in page.words
    assert before - 4 <= len(page.all("img")) <= before - 2, "each may be shown twice"
    moved = tiny.photos.rename(tiny.photos.with_name("elsewhere"))
    assert not (page := made(tiny)).all("img") and "Photos can\u2019t be shown" in page.words
    assert len(made(tiny, data=str(moved)).all("img")) == before - 2
    assert "Worst mistakes" in page.words, "what was said of them is known all the same"


def test_photos_can_be_left_at_home(tiny: Tiny) -> None:
    page = made(tiny, photos=0, maps=8)
    assert not page.all("img") and "can\u2019t be shown" not in page.words and "jpg" not in page.words
    for name in ("photos", "maps"):
        with pytest.raises(ConfigError, match=f"--{name} -1: give how many"):
            report.main(report.Config(tiny.run.path, **{name: -1}))


# --- names ----------------------------------------------------------------------------------------------------------


def test_names_can_do_nothing_on_the_page_and_in_the_card(tmp_path: Path) -> None:
    files = [name.replace("/", "\\") + ".jpg" for name in HOSTILE]
    tiny = tiny_run(tmp_path / "tiny", names=HOSTILE, photos=60, file_names=files, sites=HOSTILE[:2])
    page = made(tiny, photos=60)
    inert(page)
    for name in HOSTILE:
        assert " ".join(name.split()) in page.words, "shown as it is"
    assert [row[0] for row in page.tables["Class by class"][1:]] == list(HOSTILE)
    markdown = (tiny.run.path / "MODEL_CARD.md").read_text()
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(markdown)
    inline = [child for token in tokens for child in token.children or ()]
    assert not [t for t in (*tokens, *inline) if t.type in ("html_block", "html_inline", "link_open", "image")]
    text = "".join(child.content for child in inline if child.type in ("text", "text_special"))
    for name in HOSTILE:
        assert name in text


def test_escaped_text_is_one_line_that_means_nothing() -> None:
    assert escaped("a\nb\u2028c\x00") == "a b c "
    assert escaped("int8: 4_x [a](b) <i> https://x & co") == (
        "int8: 4\\_x \\[a\\](b) &lt;i&gt; https\\:// x &amp; co".replace("// x", "//x")
    )
    assert escaped("WWW.example.org, a.b") == "WWW\\.example.org, a.b"


# --- what is there and what is not ----------------------------------------------------------------------------------


def test_what_was_not_measured_is_named_with_its_command(tiny: Tiny) -> None:
    page = made(tiny)
    run = tiny.run.path
    for command in (
        f"export.layers {run}",
        f"export.benchmark {run}",
        f"export.evaluate {run} --robustness",
        f"export.deploy {run} --ssh USER@DEVICE",
        f"recipes.audit --data {tiny.photos} --out {run}/audit",
    ):
        assert f"python -m {command}" in page.words
        module, *words = shlex.split(command)
        parse(importlib.import_module(module).Config, words, prog=module)  # refuses what the command does not take
    assert "was not audited" in page.words and "No device has run it" in page.words


def test_layers_that_can_not_be_compared_are_not_asked_for(tiny: Tiny) -> None:
    for suffix in (".tflite", ".json"):
        (tiny.run.export_path / f"int8{suffix}").rename(tiny.run.export_path / f"qat_int8{suffix}")
    for name in ("qat_int8.json", "evaluation.json"):
        path = tiny.run.export_path / name
        unseal(path, '"int8', '"qat_int8')
    stored = dict(np.load(tiny.run.export_path / "predictions.npz"))
    stored["qat_int8"] = stored.pop("int8")
    buffer = io.BytesIO()
    np.savez(buffer, **stored)
    (tiny.run.export_path / "predictions.npz").write_bytes(buffer.getvalue())
    changed = dataclasses.replace(evaluated(tiny.run), predictions_sha256=hashlib.sha256(buffer.getvalue()).hexdigest())
    (tiny.run.export_path / "evaluation.json").write_text(to_json(changed))
    assert "export.layers" not in made(tiny).words


def test_classes_that_are_never_said_are_named(tmp_path: Path) -> None:
    tiny = tiny_run(tmp_path / "tiny", names=[f"kind {i}" for i in range(7)])
    evaluation = evaluated(tiny.run)
    changed = []
    for each in evaluation.artifacts:
        assert isinstance(each.scores, ClassScores)
        classes = tuple(dataclasses.replace(one, named=0 if one.name != "kind 3" else 9) for one in each.scores.classes)
        changed.append(dataclasses.replace(each, scores=dataclasses.replace(each.scores, classes=classes)))
    whole = dataclasses.replace(evaluation, artifacts=tuple(changed))
    (tiny.run.export_path / "evaluation.json").write_text(to_json(whole))
    told = "It never says some of what there is. kind 0, kind 1, kind 2, kind 4, kind 5 and 1 more: not one"
    assert told in made(tiny).words


def test_a_temperature_that_makes_nothing_better_is_not_advised(tiny: Tiny) -> None:
    evaluation = evaluated(tiny.run)
    for after, advised in ((0.01, True), (0.3, False)):
        changed = []
        for each in evaluation.artifacts:
            found = Temperature(1.4, 0.5, 0.4, 0.1, after)
            changed.append(dataclasses.replace(each, details=dataclasses.replace(each.details, temperature=found)))
        whole = dataclasses.replace(evaluation, artifacts=tuple(changed))
        (tiny.run.export_path / "evaluation.json").write_text(to_json(whole))
        words = made(tiny).words
        assert ("--calibrate-scores" in words, "A temperature would not help" in words) == (advised, not advised)


def test_an_adopted_model_is_made_again_by_convert(tiny: Tiny) -> None:
    run = tiny.run
    run.write("config.json", json.dumps({"recipe": "adopt", "model": "/m/their model.keras", "data": "photos"}))
    run.finish(recipe="adopt", data=str(tiny.photos), data_sha256="d" * 64, seed=0)
    command = f"python -m export.convert {run.path} --model '/m/their model.keras' --data photos"
    assert f"{command} --schemes float32 int8" in made(tiny).words
    assert command in (run.path / "MODEL_CARD.md").read_text()


def test_what_was_measured_is_shown(tiny: Tiny) -> None:
    run = tiny.run
    rows = [
        LayerError(
            i, "CONV_2D", (f"conv{i}",), "t", (1, 4, 4, 8), "INT8", 0.1, 0, 0.3, 30.0, 0.4, 20.0 - i, 0.0, 0.5, e, ()
        )
        for i, e in enumerate((0.001, 0.02, 0.003))
    ]
    (run.export_path / "int8.layers.csv").write_text(layers.to_csv(rows))
    history = [Epoch("one", e, 1e-3, 0.0, 0.5, 0.4 / e, 0.8, 0.5 / e, 0.7 + e / 100, 9.0, 1.0) for e in (1, 2, 3)]
    (run.path / "history.csv").write_text(to_csv(history))
    (run.path / "audit").mkdir()
    (run.path / "audit" / "audit.json").write_text(to_json(audit()))
    evaluation = evaluated(run)
    spoilt = robustness(0.9, dict.fromkeys(CORRUPTIONS, (0.8, 0.7, 0.612)))
    changed = dataclasses.replace(
        evaluation,
        keras_details=dataclasses.replace(evaluation.keras_details, robustness=spoilt),
        artifacts=tuple(
            dataclasses.replace(each, details=dataclasses.replace(each.details, robustness=spoilt))
            for each in evaluation.artifacts
        ),
    )
    (run.export_path / "evaluation.json").write_text(to_json(changed))
    page = made(tiny)
    inert(page)
    worst = page.tables["int8: the 3 operators with the largest effect"]
    assert [row[:3] for row in worst[1:]] == [
        ["conv1", "CONV_2D", "2.00"],
        ["conv2", "CONV_2D", "0.30"],
        ["conv0", "CONV_2D", "0.10"],
    ]
    assert "was not audited" not in page.words and "Data leaks. 1 photo has copies in more than one split" in page.words
    assert ["groups of copies across splits", "1"] in page.tables["Audit"] and ["dark", "1"] in page.tables["Audit"]
    strained = page.tables["top-1 at strengths 1, 2, 3"]
    assert len(strained) == 1 + 2 * len(CORRUPTIONS) and strained[1][1:] == [
        "80.0\u202f%",
        "70.0\u202f%",
        "61.2\u202f%",
    ]
    assert "export.layers" not in page.words and "--robustness" not in page.words
    titles = [text for text in page.text if text in ("Loss", "top-1, %")]
    assert titles.count("Loss") == 2, "heading and title of the drawing: there are learning curves"


def audit() -> Audit:
    spread = Spread(1.0, 2.0, 3.0)
    copies = CopyGroup((Copy("a", "train", "cat", "a"), Copy("b", "test", "cat", "a")))
    return Audit(
        data="photos", task="classification", output_names=NAMES["classification"], photos=80, excluded=0, counts={},
        targets={}, width=spread, height=spread, aspect=spread, size_bytes=spread, formats={}, copies=(copies,),
        findings=(Finding("a", "dark", "mean 3"),), labels=(), shifts=(), skipped=("shift: too few photos",),
    )  # fmt: skip


def test_an_audit_that_is_named_must_be_there(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no audit\.json there\. Name the --out of python -m recipes\.audit"):
        made(tiny, audit=tmp_path)


def test_an_audit_of_other_labels_is_refused(tiny: Tiny) -> None:
    (tiny.run.path / "audit").mkdir()
    path = tiny.run.path / "audit" / "audit.json"
    for change in ({"task": "ordinal"}, {"output_names": ("cat", "owl")}):
        path.write_text(to_json(dataclasses.replace(audit(), **change)))
        with pytest.raises(ArtifactError, match=r"an audit of .*, the run is classification"):
            made(tiny)


def test_the_audit_that_is_asked_for_is_of_the_labels_of_the_run() -> None:
    settings = {"task": "ordinal", "label": "grade", "targets": [], "class_order": ["low", "very high"], "group": ""}
    assert audit_command(settings, "my table.csv") == (
        "python -m recipes.audit --data 'my table.csv' --task ordinal --label grade --class-order low 'very high'"
    )
    assert audit_command({"task": "auto", "targets": ["a", "b"]}, "t.csv").endswith("--data t.csv --targets a b")


def test_damaged_or_foreign_files_are_refused(tiny: Tiny) -> None:
    path = tiny.run.export_path / "int8.layers.csv"
    path.write_text("layers,operator\nconv,CONV_2D\n")
    with pytest.raises(ArtifactError, match=r"int8\.layers\.csv: damaged .*Run python -m export\.layers again"):
        made(tiny)
    path.unlink()
    (tiny.run.export_path / "predictions.npz").write_bytes(b"no")
    with pytest.raises(ArtifactError, match=r"predictions\.npz: missing, or not of the evaluation"):
        made(tiny)
    assert not (tiny.run.path / "report.json").exists(), "all or nothing"
    (tiny.run.path / "manifest.json").unlink()
    with pytest.raises(RunError, match="unfinished"):
        made(tiny)


# --- the whole ------------------------------------------------------------------------------------------------------


def test_the_same_run_gives_the_same_page_but_for_the_time(tiny: Tiny) -> None:
    pages = []
    for _ in range(2):
        report.main(report.Config(tiny.run.path, maps=2))
        text = (tiny.run.path / "report.html").read_text()
        pages.append(re.sub(r"on \d{4}-\d\d-\d\d \d\d:\d\d UTC", "", text))
    assert pages[0] == pages[1] != text


def test_a_hundred_classes_fit(tmp_path: Path) -> None:
    tiny = tiny_run(tmp_path / "tiny", names=[f"class {i:03d}" for i in range(100)], photos=400)
    page = made(tiny)
    assert (tiny.run.path / "report.html").stat().st_size < 3e6
    cells = [attributes for tag, attributes in page.elements if attributes.get("class") == "cell"]
    scores, keras = scored(tiny), evaluated(tiny.run).keras
    assert isinstance(scores, ClassScores) and isinstance(keras, ClassScores)
    assert len(cells) == sum(n > 0 for of in (scores, keras) for line in of.confusion for n in line)
    assert len(page.tables["Class by class: the worst 12"]) == 13 and len(page.tables["Class by class"]) == 101
    recalls = [float(row[3].split("\u202f")[0]) for row in page.tables["Class by class: the worst 12"][1:]]
    assert recalls == sorted(recalls) and recalls[0] == round(100 * min(each.recall for each in scores.classes), 1)
    pairs = page.tables["Most often confused, int8"]
    assert int(pairs[1][2]) == max(n for i, line in enumerate(scores.confusion) for j, n in enumerate(line) if i != j)


def test_a_matrix_of_a_thousand_classes_is_small() -> None:
    random = np.random.default_rng(0)
    counts = np.zeros((1000, 1000), int)
    np.add.at(counts, (random.integers(1000, size=50_000), random.integers(1000, size=50_000)), 1)
    svg = charts.matrix("int8", counts.tolist(), [f"class {i}" for i in range(1000)]).svg
    assert svg.count("h") > (counts > 0).sum(), "every cell is drawn"
    assert len(svg) < 1.4e6, "two of them, at their worst: nothing right at all"


def row(scheme: str, size: int, drop: float, time: float | None) -> ReportRow:
    return ReportRow(
        scheme, "", "", size, size, 0.9 - drop, 0.0, 1.0, drop, -1.0, 1.0, 0, 0, 1.0, 1.0, 0.0, (), 0.0, time, time, 9
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("float32", 40, 0.0, 9.0), ("int8", 10, 0.004, 4.0)], "int8"),
        ([("float32", 40, 0.0, 4.0), ("int8", 10, 0.004, 9.0)], "float32"),  # the fastest
        ([("float32", 40, 0.0, 4.0), ("int8", 10, 0.004, 4.1)], "int8"),  # as fast, smaller
        ([("float32", 40, 0.0, 9.0), ("int8", 10, 0.011, 4.0)], "float32"),  # int8 loses too much
        ([("float32", 40, 0.0, None), ("float16", 20, 0.0, 1.0), ("int8", 10, 0.01, None)], "int8"),  # not all timed
        ([("float16", 20, 0.05, 1.0), ("int8", 10, 0.02, 2.0)], "int8"),  # all lose too much: the least
    ],
)
def test_what_is_recommended(rows: list[tuple[str, int, float, float | None]], expected: str) -> None:
    assert recommended([row(*each) for each in rows]) == expected


def test_what_failed_on_a_device_is_not_recommended() -> None:
    from export.devices import DeviceRow

    device = DeviceRow("pi", "", "int8", "", "", "", "", 9, "top-1", 0.1, 0.9, 0.2, 1.0, False, ())
    rows = [row("float32", 40, 0.0, 9.0), row("int8", 10, 0.0, 4.0)]
    assert recommended(rows, [device]) == "float32"
    assert recommended(rows, [dataclasses.replace(device, passed=None)]) == "int8"


def test_the_command_on_the_page_makes_the_same_settings() -> None:
    config = feature_extraction.Config(
        "my photos", Path("runs/it's"), seed=3, validation_fraction=0.2, cache=Path("/me")
    )
    settings = {"recipe": "feature_extraction"} | json.loads(to_json(config))
    command = recipe_command(settings, "feature_extraction")
    assert all(len(line) < 100 for line in command.splitlines()) and "/me" not in command
    words = shlex.split(command.replace("\\\n", ""))
    assert words[:3] == ["python", "-m", "recipes.feature_extraction"]
    found = parse(feature_extraction.Config, words[3:], prog="recipe")
    assert dataclasses.replace(found, cache=config.cache) == config


def test_no_import_of_tensorflow_where_no_maps_are_asked_for(tiny: Tiny) -> None:
    code = (
        "import sys; from pathlib import Path; from export import report; "
        f"report.main(report.Config(Path({str(tiny.run.path)!r}), maps=0)); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


# --- charts ---------------------------------------------------------------------------------------------------------


def test_names_of_dots_stay_apart_and_inside() -> None:
    dots = [charts.Dot(f"scheme_{i}", 1.0, 0.9, 0.88, 0.92, 5, "main" if i == 0 else "other") for i in range(6)]
    drawn = charts.dots("worth", dots, "ms", "%").svg
    places = re.findall(r'<text class="label (\w+) \w+" x="([\d.]+)" y="([\d.]+)">', drawn)
    assert len(places) == 6
    boxes = []
    for anchor, x, y in places:
        width = charts.LETTER * len("scheme_0")
        start = {"start": float(x), "end": float(x) - width, "middle": float(x) - width / 2}[anchor]
        assert start >= 0 and start + width <= charts.WIDTH
        boxes.append((start, float(y), start + width, float(y) + charts.LINE))
    assert not [(a, b) for a in boxes for b in boxes if a < b and charts._overlap(a, b)]


def test_a_line_is_broken_where_there_is_no_value() -> None:
    series = charts.Series("a", [1.0, 2.0, 3.0, 4.0], [1.0, float("nan"), 2.0, 3.0], "main")
    (path,) = re.findall(r'<path class="line main" d="([^"]+)"', charts.lines("t", [series], "x", "y").svg)
    assert [word[0] for word in re.findall(r"[ML][^ML]+", path)] == ["M", "M", "L"] and "nan" not in path


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0.0, 1.0, False), (0.875, 0.923, False), (3, 4000, True), (2, 30, True)]
)
def test_ticks_are_round_and_few(low: float, high: float, log: bool) -> None:
    axis = charts.Axis(low, high, 0, 100, log)
    assert 2 <= len(axis.ticks) <= 8 and all(low <= tick <= high * 1.000001 for tick in axis.ticks)
    assert all(len(charts.number(100 * tick)) <= 6 for tick in axis.ticks)
    places = [axis.at(tick) for tick in axis.ticks]
    assert places == sorted(places) and axis.at(low) == 0 and axis.at(high) == pytest.approx(100)
