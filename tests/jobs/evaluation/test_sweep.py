"""A sweep: its values, a report for each, a chart, and nothing made twice."""

import json
import logging
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from tests.jobs.evaluate_runs import COUNT, evaluation, write_run
from uvit_jax.errors import UserError
from uvit_jax.jobs import evaluate
from uvit_jax.jobs.evaluation import sweep as jobs_sweep
from uvit_jax.jobs.evaluation.resumable_evaluation import Evaluation
from uvit_jax.jobs.evaluation.sweep import Point, points_of, report_sweep
from uvit_jax.jobs.sampling.generation import Generation

FD = "own_feature_fd"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    return write_run(tmp_path_factory.mktemp("run"), steps=(2, 4, 6, 8))


def sweep(run: pathlib.Path, text: str, **changes) -> str:
    return evaluate.run(
        evaluation(**{"evaluate__sweep": text, "evaluate__metrics": "fid,recall", **changes}), run
    )


def points(config) -> list[Point]:
    return points_of(config.evaluate.sweep, config.sample, p_uncond=config.diffusion.p_uncond)


def points_in(folder: pathlib.Path) -> list[dict]:
    return json.loads((folder / "sweep.json").read_text())["points"]


def compiled(caplog) -> int:
    """Number of times that a sampler was compiled."""
    return sum(message.startswith("Compiling jit(_draw)") for message in caplog.messages)


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("guidance=0:1:0.5", "guidance", [0, 0.5, 1]),
        ("guidance=0:0.3:0.1", "guidance", [0, 0.1, 0.2, 0.3]),
        ("guidance=1:0:-0.5", "guidance", [1, 0.5, 0]),
        (" steps = 5, 10,50", "steps", [5, 10, 50]),
        ("ema=1,1e4", "ema", [1, 10_000]),
    ],
)
def test_values_are_listed_or_a_range_with_both_ends(text, field, values):
    assert points(evaluation(evaluate__sweep=text)) == [
        Point(field, float(value)) for value in values
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "solver=ddim",
            r"is 'solver=ddim', expected one of guidance, steps, ema, an equals sign and values",
        ),
        (
            "guidance",
            r"is 'guidance', expected one of guidance, steps, ema, an equals sign and values",
        ),
        ("guidance=", r"is 'guidance=', expected values as 0:1:0\.1"),
        ("guidance=a,b", r"is 'guidance=a,b', expected values as 0:1:0\.1"),
        ("guidance=0:1", r"is 'guidance=0:1', expected values as 0:1:0\.1"),
        (
            "guidance=0:1:0",
            r"is 'guidance=0:1:0', expected values as 0:1:0\.1 \(start, stop and step, 1000 at "
            r"most\)",
        ),
        ("guidance=1:0:0.1", r"is 'guidance=1:0:0\.1', expected values as"),
        ("guidance=0:inf:1", r"is 'guidance=0:inf:1', expected values as"),
        ("guidance=0,nan", r"is 'guidance=0,nan', expected finite numbers"),
        ("steps=5,7.5", r"has steps = 7\.5, expected whole numbers"),
        ("steps=0,5", r"has steps = 0: steps is 0, expected at least"),
        ("ema=0.5,10", r"has ema = 0\.5, expected lengths of 1 step or more"),
    ],
)
def test_values_that_can_not_be_are_refused(text, message):
    with pytest.raises(UserError, match=rf"^config\.evaluate\.sweep {message}"):
        points(evaluation(evaluate__sweep=text))


def test_guidance_of_a_model_without_an_empty_condition_is_refused():
    plain = evaluation(
        evaluate__sweep="guidance=0:1:1",
        diffusion__p_uncond=0.0,
        model__num_classes=10,
        sample__guidance_scale=0.0,
    )
    with pytest.raises(
        UserError,
        match=r"^config\.evaluate\.sweep has guidance = 1, expected 0: with config\.diffusio",
    ):
        points(plain)


def test_a_guidance_sweep_compiles_one_guided_program_and_leaves_a_report_for_each_point(
    run, tmp_path, caplog
):
    with jax.log_compiles(True):
        line = sweep(run, "guidance=0.5:1.5:0.5", evaluate__out=str(tmp_path))
    assert compiled(caplog) == 1
    points = points_in(tmp_path)
    assert [point["value"] for point in points] == [0.5, 1, 1.5]
    for point in points:
        report = json.loads(pathlib.Path(point["report"]).read_text())
        assert (
            pathlib.Path(point["report"])
            == tmp_path / f"guidance_{point['value']:g}" / "evaluation.json"
        )
        assert report["samples"]["sampler"]["guidance_scale"] == point["value"]
        assert report["metrics"].items() <= point.items()
    distances = [point[FD] for point in points]
    assert len(set(distances)) == 3
    best = points[int(np.argmin(distances))]
    assert line == (
        f"swept guidance=0.5:1.5:0.5: the least {FD} is {best[FD]:.4g} at guidance "
        f"{best['value']:g}: see {tmp_path}/sweep.png, sweep.json"
    )
    assert np.asarray(Image.open(tmp_path / "sweep.png")).std() > 0


def test_a_point_is_what_an_evaluation_at_that_value_is(run, tmp_path, caplog):
    with jax.log_compiles(True):
        sweep(run, "guidance=0,2", evaluate__out=str(tmp_path / "sweep"))
    assert compiled(caplog) == 2  # without guidance the network sees half as many rows
    for point in points_in(tmp_path / "sweep"):
        out = tmp_path / f"{point['value']:g}"
        alone = evaluation(
            sample__guidance_scale=point["value"],
            evaluate__metrics="fid,recall",
            evaluate__out=str(out),
        )
        evaluate.run(alone, run)
        assert json.loads((out / "evaluation.json").read_text())["metrics"].items() <= point.items()


def test_a_sweep_that_was_stopped_goes_on_with_the_point_it_was_at(
    run, tmp_path, monkeypatch, caplog
):
    text, evaluated = "guidance=0.5,1,2", Evaluation.run

    def stop_at_the_second(self, stream, samples, *rest):
        if samples["sampler"]["guidance_scale"] == 1:
            raise KeyboardInterrupt
        return evaluated(self, stream, samples, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Evaluation, "run", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            sweep(run, text, evaluate__out=str(tmp_path / "stopped"))
    assert not (tmp_path / "stopped" / "sweep.json").exists()
    caplog.clear()
    with caplog.at_level(logging.INFO, "uvit_jax"):
        sweep(run, text, evaluate__out=str(tmp_path / "stopped"))
    assert (
        caplog.messages[0] == f"already evaluated: {tmp_path}/stopped/guidance_0.5/evaluation.json"
    )
    assert sum(message.startswith("evaluating 40 images: ") for message in caplog.messages) == 2
    sweep(run, text, evaluate__out=str(tmp_path / "straight"))
    for one, other in zip(
        points_in(tmp_path / "stopped"), points_in(tmp_path / "straight"), strict=True
    ):
        assert {**one, "report": ""} == {**other, "report": ""}

    # Everything is there now: nothing is drawn again.
    monkeypatch.setattr(Generation, "batches", None)
    sweep(run, text, evaluate__out=str(tmp_path / "stopped"))


def test_sweeps_without_a_folder_of_their_own_share_points_and_keep_their_charts_apart(
    run, monkeypatch
):
    first = sweep(run, "guidance=1,3", evaluate__metrics="fid")
    drawn, batches = [], Generation.batches

    def counted(self, *arguments):
        drawn.append(self.guidance_scale)
        return batches(self, *arguments)

    monkeypatch.setattr(Generation, "batches", counted)
    second = sweep(run, "guidance=2,3", evaluate__metrics="fid")
    assert drawn == [2]
    folders = [
        pathlib.Path(line.partition("see ")[2].partition("/sweep.png")[0])
        for line in (first, second)
    ]
    assert folders[0] != folders[1]
    for folder, values in zip(folders, ([1, 3], [2, 3]), strict=True):
        assert folder.parent == run / "evaluations"
        assert folder.name.startswith("sweep_guidance_")
        assert [point["value"] for point in points_in(folder)] == values
        for point in points_in(folder):
            report = json.loads(pathlib.Path(point["report"]).read_text())
            assert report["samples"]["sampler"]["guidance_scale"] == point["value"]


@pytest.mark.slow
def test_a_sweep_of_steps_compiles_a_program_for_each_and_says_its_evaluations(
    run, tmp_path, caplog
):
    with jax.log_compiles(True):
        sweep(run, "steps=5,10", evaluate__metrics="fid", evaluate__out=str(tmp_path))
    assert compiled(caplog) == 2
    for point, steps in zip(points_in(tmp_path), (5, 10), strict=True):
        samples = json.loads(pathlib.Path(point["report"]).read_text())["samples"]
        assert (
            samples["network evaluations"] == samples["sampler"]["steps"] == point["value"] == steps
        )


def test_lengths_of_the_ema_are_made_of_the_checkpoints_that_were_kept(run, tmp_path):
    # 500 is the length that the run kept, whatever the config says: its own average, read and not
    # made.
    sweep(
        run,
        "ema=1,2,500",
        ema__rate=0.5,
        evaluate__metrics="fid",
        evaluate__out=str(tmp_path / "sweep"),
    )
    points = points_in(tmp_path / "sweep")
    weights = [
        json.loads(pathlib.Path(p["report"]).read_text())["samples"]["weights"] for p in points
    ]
    assert [found["kind"] for found in weights] == ["ema made of checkpoints"] * 3
    assert [found["length"] for found in weights] == [1, 2, 500]
    assert {found["step"] for found in weights} == {8}
    assert len({found["sha256"] for found in weights}) == 3
    assert weights[0]["error"] == weights[2]["error"] == 0 < weights[1]["error"]
    for kind, point in (("params", points[0]), ("ema", points[2])):
        out = tmp_path / kind
        evaluate.run(
            evaluation(sample__weights=kind, evaluate__metrics="fid", evaluate__out=str(out)), run
        )
        np.testing.assert_allclose(
            json.loads((out / "evaluation.json").read_text())["metrics"][FD], point[FD], rtol=1e-8
        )


def test_lengths_that_no_checkpoints_can_make_are_told_before_anything_is_drawn(
    run, tmp_path, monkeypatch
):
    one = write_run(tmp_path / "one")
    monkeypatch.setattr(Generation, "batches", None)
    with pytest.raises(
        UserError, match=r"holds 1 checkpoint up to step 8, expected 2 or more .*\(2\).*keep_every"
    ):
        sweep(one, "ema=1,2")
    with pytest.raises(
        UserError,
        match=r"^config\.evaluate\.sweep has ema, and config\.init_from is '.*one': expected",
    ):
        sweep(run, "ema=1,2", init_from=str(one))


def test_the_best_is_the_least_of_a_distance_and_the_greatest_of_any_other(tmp_path):
    points = [Point("guidance", value) for value in (0.0, 1.0, 2.0)]
    for name, word, value in (
        ("fid", "least", 2),
        ("other_inception_sfd", "least", 2),
        ("own_feature_kd", "least", 2),
        ("precision", "greatest", 0),
        ("is", "greatest", 0),
        ("clip_score", "greatest", 0),
    ):
        reports = [
            {"metrics": {name: score}, "samples": {"count": COUNT}, "plan": {}}
            for score in (3.0, 2.0, 1.0)
        ]
        line = report_sweep(
            "guidance=0:2:1", points, reports, [tmp_path] * 3, str(tmp_path), tmp_path
        )
        assert f": the {word} {name} is {3 - value}" in line
        assert f"at guidance {value}: " in line


def test_a_score_is_drawn_with_its_deviations(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        jobs_sweep, "sweep_chart", lambda *_, **options: drawn.append(options["deviations"])
    )
    metrics = [{"fid": 3.0, "fid_bias": 0.5, "kid": 0.02, "kid_std": 0.001 * i} for i in (1, 2)]
    reports = [{"metrics": each, "samples": {"count": COUNT}, "plan": {}} for each in metrics]
    points = [Point("guidance", value) for value in (0.0, 1.0)]
    report_sweep("guidance=0,1", points, reports, [tmp_path] * 2, str(tmp_path), tmp_path)
    assert drawn == [{"kid": [0.001, 0.002]}]
