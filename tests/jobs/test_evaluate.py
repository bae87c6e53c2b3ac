"""Samples of a model: the report's content, correct numbers, and nothing made twice."""

import hashlib
import json
import logging
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.jobs.evaluate_runs import COUNT, STEP, evaluation, weights_of, write_run
from uvit_jax.data.training_data import load_built_in
from uvit_jax.errors import UserError
from uvit_jax.jobs import evaluate, sample
from uvit_jax.jobs.sampling.generation import Generation
from uvit_jax.metrics.feature_network import Extraction
from uvit_jax.metrics.frechet import frechet_distance
from uvit_jax.metrics.random_filters import random_filters
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.telemetry.images import to_uint8

FD = "own_feature_fd"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def evaluated(run) -> tuple[pathlib.Path, str]:
    """A whole evaluation in its own folder, and the line it ended with."""
    out = run / "out"
    return out, evaluate.run(evaluation(evaluate__out=str(out), evaluate__save="npz"), run)


def report_of(out: pathlib.Path) -> dict:
    return json.loads((out / "evaluation.json").read_text())


def nothing_is_drawn(monkeypatch) -> None:
    def refuse(self, params, first, count):
        raise AssertionError("samples are drawn")

    monkeypatch.setattr(Generation, "batches", refuse)


def test_the_report_holds_everything_a_number_depends_on(run, evaluated):
    report = report_of(evaluated[0])
    own = ("fd", "fd_bias", "kd", "kd_std", "precision", "recall", "density", "coverage")
    assert set(report["metrics"]) == {f"own_feature_{name}" for name in own}
    assert report["not computed"].keys() == {"sfid", "is", "clip"}
    samples = report["samples"]
    assert samples["count"] == COUNT
    assert samples["weights"].keys() == {"kind", "step", "sha256"}
    assert (samples["weights"]["kind"], samples["weights"]["step"]) == ("ema", STEP)
    assert (samples["labels"], samples["network evaluations"]) == ("all", 3)
    asked = {
        "solver": "dpmsolver++",
        "method": "multistep",
        "order": 2,
        "steps": 3,
        "guidance_scale": 0.5,
        "seed": 0,
    }
    assert samples["sampler"].items() >= asked.items()
    assert (samples["schedule"], samples["prediction"], samples["network dtype"]) == (
        "vp_linear",
        "noise",
        "float32",
    )
    assert "8 bits" in samples["rounding"]
    reference = report["reference"]
    (kept,) = (run / "evaluations" / "references").iterdir()
    assert reference["file"] == kept.name
    assert reference["sha256"] == hashlib.sha256(kept.read_bytes()).hexdigest()
    assert (reference["source"], reference["count"], reference["shape"]) == (
        "digits",
        1797,
        [8, 8, 1],
    )
    assert report["features"].keys() == {"name", "sha256", "resize", "dtype"}
    assert report["versions"].keys() >= {"uvit-jax", "jax", "numpy", "python", "devices"}
    assert report["seconds"]["samples of this run"] == COUNT


def test_the_hash_of_weights_tells_averages_from_raw_weights_and_is_that_of_the_report(
    run, evaluated
):
    averaged = weights_of(evaluation(), run).sha256
    assert averaged == report_of(evaluated[0])["samples"]["weights"]["sha256"]
    assert weights_of(evaluation(sample__weights="params"), run).sha256 != averaged


def test_the_table_and_the_last_line_say_the_numbers_and_the_grid_shows_samples(evaluated):
    out, line = evaluated
    metrics = report_of(out)["metrics"]
    assert line.startswith(f"evaluated {COUNT} images: {FD} {metrics[FD]:.4g}, own_feature_kd ")
    assert line.endswith(f": see {out}/evaluation.json, evaluation.txt, grid.png")
    table = (out / "evaluation.txt").read_text()
    assert table.startswith(f"{FD} ")
    assert (
        f" {metrics[FD]:.4g}  of which about {metrics[FD + '_bias']:.4g} is because samples are"
        in table
    )
    assert (
        "sfid                                  -  own features v1 has no spatial features" in table
    )
    assert f"warning: {COUNT} samples are fewer than the 336 features: {FD} is too high" in table
    assert "guidance_scale           0.5" in table
    assert np.asarray(Image.open(out / "grid.png")).std() > 10
    assert not (out / ".evaluation").exists()


def test_samples_are_those_of_the_job_sample_and_their_distance_is_that_of_the_two_gaussians(
    run, evaluated
):
    sample.run(
        evaluation(sample__num_samples=COUNT, sample__format="npz", sample__out=str(run / "drawn")),
        run,
    )
    drawn, saved = np.load(run / "drawn" / "samples.npz"), np.load(evaluated[0] / "samples.npz")
    assert saved.files == ["arr_0", "arr_1"]
    np.testing.assert_array_equal(saved["arr_0"], drawn["images"])
    np.testing.assert_array_equal(saved["arr_1"], drawn["labels"])

    digits = load_built_in("digits")
    x = digits.read(np.arange(len(digits)), np.zeros(len(digits), bool), fields=["x"])["x"]
    extraction = Extraction(random_filters(), make_mesh(MeshConfig()), ["pool"])
    moments = []
    for images in (drawn["images"], to_uint8(x)):
        features = extraction(images)["pool"].astype(np.float64)
        moments += [features.mean(0), np.cov(features, rowvar=False)]
    np.testing.assert_allclose(
        report_of(evaluated[0])["metrics"][FD], frechet_distance(*moments), rtol=1e-8
    )


def test_saved_files_score_as_the_samples_did(run, evaluated, tmp_path):
    pngs = tmp_path / "pngs"
    evaluate.run(evaluation(evaluate__out=str(pngs), evaluate__save="png"), run)
    files = sorted((pngs / "samples").glob("*.png"))
    assert [file.name for file in files] == [f"{i:06d}.png" for i in range(COUNT)]
    images = np.stack([np.asarray(Image.open(file)) for file in files])[..., None]
    np.testing.assert_array_equal(images, np.load(evaluated[0] / "samples.npz")["arr_0"])
    expected = report_of(evaluated[0])["metrics"]
    assert report_of(pngs)["metrics"] == expected
    for samples in (evaluated[0] / "samples.npz", pngs / "samples"):
        out = tmp_path / samples.suffix
        evaluate.run(evaluation(evaluate__samples=str(samples), evaluate__out=str(out)), run)
        found = report_of(out)["metrics"]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-8, err_msg=name)


def test_the_same_command_again_draws_nothing(run, evaluated, monkeypatch, caplog):
    out, line = evaluated
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (
        out / ".evaluation"
    ).mkdir()  # as a run leaves it that is killed when it has just written the report
    nothing_is_drawn(monkeypatch)
    with caplog.at_level(logging.INFO, "uvit_jax"):
        assert evaluate.run(evaluation(evaluate__out=str(out), evaluate__save="npz"), run) == line
    assert caplog.messages == [f"already evaluated: {out}/evaluation.json"]
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"sample__steps": 5}, "samples sampler steps = 3 there, 5 now"),
        ({"sample__seed": 1}, "samples sampler seed = 0 there, 1 now"),
        ({"sample__weights": "params"}, "samples weights kind = 'ema' there, 'params' now"),
        ({"sample__labels": "1,2"}, "samples labels = 'all' there, '1,2' now"),
        ({"evaluate__num_samples": 50}, "samples count = 40 there, 50 now"),
        ({"evaluate__save": ""}, "save = 'npz' there, '' now"),
        (
            {"evaluate__num_features": 100},
            r"reference file = 'digits_8_\w+\.npz' there, 'digits_8_\w+\.npz' now",
        ),
    ],
)
def test_another_evaluation_in_the_same_folder_is_refused_by_its_first_difference(
    run, evaluated, monkeypatch, changes, difference
):
    nothing_is_drawn(monkeypatch)
    out = evaluated[0]
    asked = {"evaluate__out": str(out), "evaluate__save": "npz", **changes}
    expected = (
        rf"^{out} holds another evaluation \({difference}\): expected a new config\.evaluate\.out$"
    )
    with pytest.raises(UserError, match=expected):
        evaluate.run(evaluation(**asked), run)
