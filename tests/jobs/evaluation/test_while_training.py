"""Samples scored now and then while training: what is logged, once and always, and that training is
the same.
"""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.jobs.images import write_images, write_kl
from tests.jobs.runs import assert_same_bits, final_state, tiny_experiment
from tests.jobs.test_latents import experiment as latent_experiment
from tests.telemetry.test_writers import scalars
from uvit_jax.errors import Preempted, UserError
from uvit_jax.jobs import evaluate, prepare, train
from uvit_jax.jobs.evaluation.scoring import Scoring
from uvit_jax.telemetry.writers import read_metrics

TAG = "own_feature_fd_20_ema_dpmsolverpp_3_guidance_0.5"
STEPS = 7


def experiment(**changes):
    own = {
        "train__steps": STEPS,
        "train__save_every": 3,
        "evaluate__train_samples": 20,
        "evaluate__every": 3,
    }
    # So that a few steps show in samples.
    own |= {
        "model__depth": 1,
        "sample__steps": 3,
        "optimizer__warmup_steps": 0,
        "optimizer__lr": 0.01,
        "ema__rate": 0.5,
    }
    return tiny_experiment(**{**own, **changes})


def evaluations(workdir: pathlib.Path) -> list[dict]:
    return [line for line in read_metrics(workdir / "metrics.jsonl") if "loss" not in line]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[pathlib.Path, str]:
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train.run(experiment(), workdir)


def test_a_distance_is_logged_under_a_tag_that_says_its_protocol(trained):
    workdir, _ = trained
    lines = evaluations(workdir)
    assert [line["step"] for line in lines] == [3, 6, STEPS]
    assert all(line.keys() == {"step", TAG} for line in lines)
    assert len({line[TAG] for line in lines}) == 3
    found = [(step, np.float32(value)) for step, tag, value in scalars(workdir) if tag == TAG]
    assert found == [(line["step"], np.float32(line[TAG])) for line in lines]


def test_the_loss_is_told_and_drawn_as_without(trained):
    workdir, message = trained
    losses = [line for line in read_metrics(workdir / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in losses] == [2, 4, 6, 7]
    assert f"to step {STEPS}, loss {losses[-1]['loss']:.4f}: see" in message
    assert np.asarray(Image.open(workdir / "loss.png")).std() > 0


def test_the_number_is_that_of_the_job_evaluate_with_as_many_samples(trained, tmp_path):
    alone = experiment(
        evaluate__num_samples=20, evaluate__metrics="fid", evaluate__out=str(tmp_path)
    )
    evaluate.run(alone, trained[0])
    report = json.loads((tmp_path / "evaluation.json").read_text())
    np.testing.assert_allclose(
        evaluations(trained[0])[-1][TAG], report["metrics"]["own_feature_fd"], rtol=1e-8
    )


def test_training_is_the_same_to_the_bit_without_it(trained, tmp_path):
    train.run(experiment(evaluate__every=0), tmp_path)
    assert_same_bits(final_state(tmp_path), final_state(trained[0]))
    assert evaluations(tmp_path) == []


@pytest.mark.parametrize("stop", ["preempted", pytest.param("killed", marks=pytest.mark.slow)])
def test_a_run_stopped_before_its_evaluation_makes_up_for_it(trained, tmp_path, monkeypatch, stop):
    scored = Scoring.run

    def killed_at_the_second(self, *arguments, **options):
        if evaluations(tmp_path):
            raise KeyboardInterrupt
        scored(self, *arguments, **options)

    with monkeypatch.context() as patched:
        if stop == "preempted":
            patched.setattr(train.PreemptionNotice, "__call__", lambda self, step: step == 6)
        else:
            patched.setattr(Scoring, "run", killed_at_the_second)
        with pytest.raises(Preempted if stop == "preempted" else KeyboardInterrupt):
            train.run(experiment(), tmp_path)
    # Whoever is told to stop saves and goes, and scores no samples before.
    assert [line["step"] for line in evaluations(tmp_path)] == [3]
    assert (tmp_path / "checkpoints" / "6").exists()
    train.run(experiment(), tmp_path)
    assert evaluations(tmp_path) == evaluations(trained[0])
    assert_same_bits(final_state(tmp_path), final_state(trained[0]))


def test_the_same_command_again_scores_nothing(trained, monkeypatch):
    before = evaluations(trained[0])
    monkeypatch.setattr(Scoring, "run", None)
    train.run(experiment(), trained[0])
    assert evaluations(trained[0]) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"evaluate__reference": "gone.npz"},
            r"^config\.evaluate\.reference is 'gone\.npz', which can't be read",
        ),
        (
            {"evaluate__features": "inception", "evaluate__inception": "gone.pth"},
            r"^config\.evaluate\.inception is 'gon",
        ),
    ],
)
def test_what_it_lacks_is_told_before_training(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train.run(experiment(**changes), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_latents_without_a_decoder_are_refused_before_training(tmp_path):
    write_images(tmp_path / "images")
    write_kl(tmp_path / "kl.safetensors")
    size = {"model__image_size": 8, "prepare__image_size": 32}
    prepare.run(latent_experiment(tmp_path, "kl", **size), tmp_path)
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(336), sigma=np.eye(336))
    undecoded = {
        "autoencoder__name": "",
        "evaluate__every": 2,
        "evaluate__reference": str(tmp_path / "foreign.npz"),
    }
    with pytest.raises(
        UserError,
        match=r"^config\.autoencoder\.name is empty, expected '.*kl\.safetensors' or another",
    ):
        train.run(latent_experiment(tmp_path, "kl", **size, **undecoded), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
