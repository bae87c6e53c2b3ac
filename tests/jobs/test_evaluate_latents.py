"""Samples of a latent model, decoded and scored against images or decoded latents."""

import json
import pathlib

import jax
import numpy as np
import pytest

from tests.interop.pth_files import write_weights
from tests.jobs.evaluate_runs import write_run
from tests.jobs.images import write_images, write_kl
from tests.jobs.test_latents import experiment as latent_experiment
from tests.reference_weights import uvit_weights
from uvit_jax.errors import UserError
from uvit_jax.experiment.config import Experiment
from uvit_jax.jobs import evaluate, prepare, sample
from uvit_jax.metrics.random_filters import random_filters
from uvit_jax.metrics.reference_file import read_reference

FD = "own_feature_fd"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    """Images, what `prepare` makes of them, and a run on it."""
    root = tmp_path_factory.mktemp("latents")
    write_images(root / "images")
    write_kl(root / "kl.safetensors")
    prepare.run(evaluation(root), root)
    write_run(root / "run", evaluation(root))
    return root


def evaluation(root: pathlib.Path, **changes) -> Experiment:
    own = {
        "model__depth": 1,
        "evaluate__num_samples": 12,
        "evaluate__metrics": "fid",
        "sample__guidance_scale": 0.0,
    }
    return latent_experiment(root, "kl", **{**own, **changes})


def report_of(root: pathlib.Path, out: pathlib.Path, **changes) -> dict:
    evaluate.run(evaluation(root, evaluate__out=str(out), **changes), root / "run")
    return json.loads((out / "evaluation.json").read_text())


@pytest.mark.slow
def test_samples_are_decoded_as_the_job_sample_does(root, tmp_path):
    report_of(root, tmp_path / "scored", evaluate__save="npz")
    drawn = evaluation(
        root, sample__num_samples=12, sample__format="npz", sample__out=str(tmp_path / "drawn")
    )
    sample.run(drawn, root / "run")
    images = np.load(tmp_path / "scored" / "samples.npz")["arr_0"]
    assert images.shape == (12, 16, 16, 3)
    np.testing.assert_array_equal(images, np.load(tmp_path / "drawn" / "samples.npz")["images"])


@pytest.mark.slow
def test_the_data_s_own_latents_are_the_reference_decoded_and_a_folder_of_images_another(
    root, tmp_path
):
    own = report_of(root, tmp_path / "own")
    assert own["reference"]["latents"] == "means of moments"
    assert own["reference"]["decoded with"].endswith("kl.safetensors")
    assert own["reference"]["shape"] == [16, 16, 3]
    assert own["reference"]["count"] == 12
    folder = report_of(root, tmp_path / "folder", evaluate__reference=str(root / "images"))
    assert folder["reference"]["crop"] == "adm"
    assert folder["reference"]["shape"] == [16, 16, 3]
    assert folder["metrics"][FD] != own["metrics"][FD]
    assert any(
        "the reference's 12 images are fewer than the 336 features" in warning
        for warning in own["warnings"]
    )


@pytest.mark.slow
def test_a_reference_of_the_folder_is_made_at_the_size_that_is_asked_for_and_compared_with(
    root, tmp_path
):
    made = {"evaluate__make_reference": True, "evaluate__reference": str(root / "images")}
    with pytest.raises(
        UserError,
        match=r"^config\.prepare\.image_size is 0, expected the side of the reference's imag",
    ):
        evaluate.run(evaluation(root, **made), tmp_path)
    for size in (16, 24):
        out = {"evaluate__out": str(tmp_path / f"{size}.npz"), "prepare__image_size": size}
        assert f"12 images of {size}x{size}x3" in evaluate.run(
            evaluation(root, **made, **out), tmp_path
        )
    statistics = report_of(root, tmp_path / "out", evaluate__reference=str(tmp_path / "16.npz"))
    assert (
        statistics["reference"]["sha256"]
        == read_reference(tmp_path / "16.npz", random_filters()).sha256
    )
    direct = report_of(root, tmp_path / "direct", evaluate__reference=str(root / "images"))
    assert statistics["metrics"] == direct["metrics"]
    with pytest.raises(
        UserError,
        match=r"24\.npz is of images of 24x24x3, but the samples have 16x16x3: expected a ref",
    ):
        report_of(root, tmp_path / "other", evaluate__reference=str(tmp_path / "24.npz"))


@pytest.mark.slow
def test_latents_scaled_back_otherwise_are_another_evaluation(root, tmp_path):
    write_weights(tmp_path / "weights.pth", uvit_weights(evaluation(root).model, 5))
    asked = {
        "init_from": str(tmp_path / "weights.pth"),
        "data__source": "/nowhere",
        "evaluate__reference": str(root / "images"),
    }
    for scale in (0.18215, 0.9):
        evaluate.run(evaluation(root, **asked, autoencoder__scale=scale), tmp_path / "run")
    reports = [
        json.loads(path.read_text()) for path in tmp_path.glob("run/evaluations/*/evaluation.json")
    ]
    scales = {
        report["samples"]["latents normalized by"]["scale"][0]: report["metrics"][FD]
        for report in reports
    }
    assert scales.keys() == {0.18215, 0.9}
    assert len(set(scales.values())) == 2


@pytest.mark.slow
def test_a_sweep_compiles_the_decoder_once(root, tmp_path, caplog):
    report_of(root, tmp_path / "first")  # which decodes the reference, unless it is there
    with jax.log_compiles(True):
        evaluate.run(
            evaluation(
                root, evaluate__sweep="guidance=1,2,3", evaluate__out=str(tmp_path / "sweep")
            ),
            root / "run",
        )
    names = [message.split()[1] for message in caplog.messages if message.startswith("Compiling ")]
    assert names.count("jit(_draw)") == 1
    assert names.count("jit(decode)") == 1


def test_latents_without_their_autoencoder_are_refused(root, tmp_path):
    with pytest.raises(
        UserError,
        match=r"^config\.autoencoder\.name is empty, expected '.*kl\.safetensors' or another",
    ):
        report_of(root, tmp_path / "out", autoencoder__name="")
