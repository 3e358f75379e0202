"""Every task goes the same way: converted, scored, bundled, and run by the program that ships."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_artifacts
from bundles import tell
from tiny_runs import NAMES, tiny_run

from edgetl import metrics
from edgetl.config import from_json
from edgetl.errors import ArtifactError
from edgetl.outputs import OutputSpec, Task
from edgetl.rundir import RunDir, open_run, read_json
from export import bundle, conversion, convert, evaluate, metadata, schemes
from export.artifacts import find_artifacts
from export.calibrate import METHODS
from export.conversion import Conversion, Making
from export.device.check import CheckReport
from export.device.contents import Bounds, read_bundle, read_sample
from export.device.interpreter import Model
from export.device.outputs import Outputs
from export.device.predict import PredictReport
from export.flatbuffer import border, operators, unpack
from export.layer_errors import layer_errors
from export.sample import bounds_of

TASKS = tuple(NAMES)


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    """Each of the four."""
    return request.param


@pytest.fixture(scope="module")
def run(task: Task, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run of it, converted and evaluated; read only."""
    made = tiny_run(tmp_path_factory.mktemp(task), task)
    convert.main(convert.Config(made.path, ("float32", "int8"), calibration_images=20))
    evaluate.main(evaluate.Config(made.path))
    return made


@pytest.fixture(scope="module")
def made(run: RunDir) -> bundle.Made:
    """A bundle of its int8 artifact; read only."""
    return bundle.main(bundle.Config(run.path, photos=12, web=False))


def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(folder / "edgetl-device.pyz"), *words], capture_output=True, text=True)


def test_what_outputs_are_is_said_everywhere(run: RunDir, task: Task, made: bundle.Made) -> None:
    (artifact,) = find_artifacts(run, ("int8",))
    about = metadata.read((run.export_path / artifact.path).read_bytes())
    assert about and run.outputs == artifact.outputs == about.outputs
    assert run.outputs.task == task and run.outputs.names == NAMES[task]
    assert (
        read_bundle(made.path).outputs == Outputs(**vars(run.outputs)) == Model(made.path / "int8.tflite").about.outputs
    )
    assert (artifact.output_type, artifact.output_scale) == (made.bundle.output_type, made.bundle.output_scale)


def test_integer_outputs_are_what_every_client_reads(run: RunDir, task: Task) -> None:
    content = (run.export_path / "int8.tflite").read_bytes()
    (artifact,) = find_artifacts(run, ("int8",))
    _, last = border(content)
    assert not any(op.is_float for op in operators(content))
    assert (last.type, last.scale, last.zero_point) == (
        "UINT8",
        (artifact.output_scale,),
        (artifact.output_zero_point,),
    )
    if task != "regression":
        assert (last.scale, last.zero_point) == ((1 / 256,), (0,)), "as probabilities are stored everywhere"
        return
    low, high = (artifact.output_scale * (end - artifact.output_zero_point) for end in (0, 255))
    labels = run.splits().train.labels
    # Zero must be one of the steps, which shifts the range by half of one at most.
    assert low <= labels.min() + artifact.output_scale / 2 and high >= labels.max() - artifact.output_scale / 2
    # Nor is it much wider than it must be: what is trained with, zero, and what a ridge fit says beyond either.
    assert high - low < 1.3 * (labels.max() - min(labels.min(), 0))
    shown = convert.show((artifact,))
    assert f"values {low:.4g} to {high:.4g} in steps of {artifact.output_scale:.3g}, cut off beyond" in shown


def test_artifacts_say_what_keras_says(run: RunDir) -> None:
    report = read_json(evaluate.EvaluationReport, run.export_path / "evaluation.json")
    for artifact in report.artifacts:
        found = artifact.against_keras
        exact = artifact.scheme == "float32"
        # int8: one photo of twenty may change sides; of values 0.1 deviations is what counts as the same.
        assert found.agreement >= (1.0 if exact else 0.9), artifact
        assert found.max_difference <= (1e-4 if exact else 0.3)
    assert 0.3 < report.keras.primary <= 1, "a model that has learnt something"


def test_the_program_that_ships_agrees_with_the_host(
    run: RunDir, task: Task, made: bundle.Made, tmp_path: Path
) -> None:
    for kernels in ("xnnpack", "reference"):
        done = call(made.path, "check", "--kernels", kernels, "--json", str(tmp_path / "check.json"))
        assert done.returncode == 0 and "PASSED" in done.stdout, done
        report = from_json(CheckReport, (tmp_path / "check.json").read_bytes())
        assert (report.task, report.max_difference, report.agreement) == (task, 0, 1), "the same machine"
        assert report.score == report.host_score and report.metric in done.stdout
    info = call(made.path, "info", "--json", str(tmp_path / "info.json"))
    assert f"{task}, {len(NAMES[task])} name(s): {NAMES[task][0]}" in info.stdout
    assert f"{made.bundle.host.metric} on the host" in info.stdout


def test_its_figure_is_the_scorers(run: RunDir, made: bundle.Made, tmp_path: Path) -> None:
    assert call(made.path, "check", "--json", str(tmp_path / "check.json")).returncode == 0
    report = from_json(CheckReport, (tmp_path / "check.json").read_bytes())
    sample, test = read_sample(made.path), run.splits().test
    labels = test.select([photo.id for photo in sample.photos]).labels
    scores = np.float32([photo.scores for photo in sample.photos])
    # The scorer computes in float32 in places.
    assert report.score == pytest.approx(metrics.score(labels, scores, run.outputs).primary, abs=1e-5)
    assert read_bundle(made.path).host.value == pytest.approx(
        read_json(evaluate.EvaluationReport, run.export_path / "evaluation.json").artifacts[-1].scores.primary
    )


def test_predict_says_it_in_words(task: Task, made: bundle.Made, tmp_path: Path) -> None:
    photos = sorted((made.path / "sample/photos").iterdir())
    done = call(made.path, "predict", *map(str, photos), "--json", str(tmp_path / "predict.json"))
    assert done.returncode == 0, done.stderr
    report = from_json(PredictReport, (tmp_path / "predict.json").read_bytes())
    sample = read_sample(made.path)
    assert report.task == task
    for found, expected in zip(report.photos, sample.photos, strict=True):
        assert [found.scores[name] for name in NAMES[task]] == list(expected.scores)
        assert found.said == read_bundle(made.path).outputs.said(expected.scores)
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(found.photo))
        for name, value in found.said.items():
            assert f"{value:.5g}" in line if task == "regression" else f"{value:.3f}" in line and name in line
    if task == "multi_label":
        assert {len(each.said) for each in report.photos} > {1}, "photos with one label and with another number of them"


def test_check_fails_on_what_is_further_off_than_allowed(task: Task, made: bundle.Made, tmp_path: Path) -> None:
    own = tmp_path / "bundle"
    shutil.copytree(made.path, own)
    path = own / "sample/expected.json"
    expected = json.loads(path.read_bytes())
    bounds = Bounds(**expected["bounds"]["xnnpack"])
    unit = made.bundle.outputs.deviations[-1] if task == "regression" else 1
    expected["photos"][0]["scores"][-1] += 0.9 * bounds.same_pixels * unit
    path.write_text(json.dumps(expected))
    tell(own)
    assert call(own, "check").returncode == 0
    expected["photos"][0]["scores"][-1] += 0.2 * bounds.same_pixels * unit
    path.write_text(json.dumps(expected))
    tell(own)
    done = call(own, "check")
    assert done.returncode == 1 and "FAILED" in done.stdout


# --- training under quantization --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["qat_int8", "clustered_int8"])
def test_trained_artifacts(run: RunDir, scheme: str, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    own = open_run(tmp_path / "run")
    convert.main(convert.Config(own.path, (scheme,), calibration_images=20, epochs=1))
    tflite = (own.export_path / f"{scheme}.tflite").read_bytes()
    _, last = border(tflite)
    _, usual = border((own.export_path / "int8.tflite").read_bytes())
    assert last.type == "UINT8" and not any(op.is_float for op in operators(tflite))
    # Both hold what was trained with; QAT measures what is beyond on other forms of the network.
    assert last.scale[0] == pytest.approx(usual.scale[0], rel=0.15)
    found = evaluate.EvaluationSet(own, own.splits().test).predictions([tflite])
    units = np.asarray(own.outputs.units)
    assert np.abs((found.keras - found.outputs[0]) / units).max() < 0.5, "as int8, or nearly"


# --- ranges of values -------------------------------------------------------------------------------------------------


def test_values_beyond_those_of_calibration_are_kept() -> None:
    """A network that says more on test photos than on those it was calibrated on."""
    whole = tiny_artifacts.quantizer(task="regression")
    photos = tiny_artifacts.pixels(64, seed=5)
    said = np.asarray(whole.model(photos.astype(np.float32)))
    order = np.argsort(said.max(axis=1))
    few = list(photos[order[:16]])  # the lowest of all

    def int8(span: tuple[float, float] | None) -> tuple[float, np.ndarray]:
        made = type(whole)(whole.model, few, units=whole.units, span=span).quantize(schemes.get("int8")).tflite
        _, last = border(made)
        return last.scale[0] * (255 - last.zero_point[0]), Model(made).predict_batch(photos)

    top, cut = int8(None)
    beyond = said > 1.05 * top
    assert beyond.sum() > 10 and cut.max() == pytest.approx(top), "what is beyond is cut off"
    wide, kept = int8((float(said.min()), float(said.max())))
    assert wide >= 0.99 * said.max()
    assert np.abs(kept - said)[beyond].mean() < np.abs(cut - said)[beyond].mean() / 3


@pytest.mark.parametrize("ranges", METHODS)
def test_no_way_to_choose_ranges_narrows_that_of_values(ranges: str) -> None:
    quantizer = tiny_artifacts.quantizer(task="regression")
    low, high = tiny_artifacts.SPAN
    found = quantizer.calibration.ranges(ranges)[int(unpack(quantizer.twin).subgraphs[0].outputs[0])]
    assert found[0] <= low and found[1] >= high


@pytest.mark.parametrize(
    ("deviations", "says"),
    [
        ((8.0, 8.0), ""),
        ((8.0, 0.5), "R2 falls by about"),
        ((8.0, 0.1), "Use float16 or dynamic_int8"),
    ],
)
def test_steps_too_coarse_for_a_target(
    deviations: tuple[float, ...], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = OutputSpec("regression", ("weight", "angle"), deviations=deviations)
    tflite = tiny_artifacts.converted("int8", task="regression")
    _, last = border(tflite)
    scale = last.scale[0]
    assert 0.04 < scale < 0.25, "steps that the figures above are made for"
    outputs = OutputSpec("regression", outputs.names, deviations=tuple(each * scale / 0.2 for each in deviations))
    if "Use" in says:
        with pytest.raises(ArtifactError, match=r"one step for all values, .* deviations of angle.*Use float16"):
            conversion._check_step(tflite, schemes.get("int8"), outputs)
        return
    conversion._check_step(tflite, schemes.get("int8"), outputs)
    assert (says in caplog.text) if says else not caplog.text


def test_calibration_photos_and_span_come_from_the_training_split(run: RunDir, task: Task) -> None:
    train = run.splits().train
    span = conversion.span_of(train)
    assert (span is None) == (task != "regression")
    assert span in (None, (float(train.labels.min()), float(train.labels.max())))
    assert len(Conversion(run, Making(calibration_images=7)).photos) == 7


# --- errors of layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_", ["multi_label", "regression"])
def test_effects_of_layers_are_in_units_of_the_outputs(task_: Task) -> None:
    quantizer = tiny_artifacts.quantizer(task=task_)
    errors = layer_errors(quantizer, None, quantizer.photos[:4])
    effects = {error.operator: error.effect for error in errors}
    assert 0 < effects["CONV_2D"] < 0.2, "of a score, or of a deviation"
    assert errors[-1].effect == 0
    if task_ == "regression":
        other = type(quantizer)(
            quantizer.model, quantizer.photos, units=tuple(10 * unit for unit in quantizer.units), span=quantizer._span
        )
        found = {error.operator: error.effect for error in layer_errors(other, None, quantizer.photos[:4])}
        assert found["CONV_2D"] == pytest.approx(effects["CONV_2D"] / 10, rel=1e-3)


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_bounds_of_a_task(run: RunDir, task: Task) -> None:
    (artifact,) = find_artifacts(run, ("int8",))
    bounds = bounds_of(artifact)
    assert bounds["reference"].same_pixels == 0, "integers only"
    steps = artifact.output_scale / min(artifact.outputs.units)
    assert bounds["xnnpack"].same_pixels == pytest.approx(0.3 + 3 * steps if task == "regression" else 0.15)
    assert bounds["xnnpack"].other_pixels > bounds["xnnpack"].same_pixels
    assert bounds["xnnpack"].min_agreement == pytest.approx(0.7 if task == "multi_label" else 0.9)
