"""Training and sampling on what `prepare` made: moments, latents, pixels, and pixels encoded in the
train step.
"""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from configs import digits
from tests.interop.pth_files import write_weights
from tests.jobs.images import write_images, write_kl, write_taesd
from tests.jobs.runs import TINY
from tests.reference_weights import uvit_weights
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.errors import UserError
from uvit_jax.experiment.config import Experiment, resolve
from uvit_jax.interop import official
from uvit_jax.jobs import prepare, sample, train
from uvit_jax.telemetry.writers import read_metrics

SMALL = {
    "model.image_size": 4,
    "model.in_channels": 4,
    "model.patch_size": 2,
    "model.num_classes": 4,
    "data.flip": True,
    "train.steps": 4,
    "train.batch_size": 8,
    "train.num_images": 4,
    "sample.num_samples": 5,
    "sample.batch_size": 4,
    "sample.steps": 3,
    "prepare.batch_size": 4,
    "prepare.images_per_shard": 5,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    """A folder with images, both autoencoders, and what `prepare` makes of the images with either
    and with none.
    """
    root = tmp_path_factory.mktemp("latents")
    write_images(root / "images")
    write_kl(root / "kl.safetensors")
    write_taesd(root / "taesd.safetensors")
    for name, changes in {
        "kl": {},
        "taesd": {},
        "pixels": {"prepare.latents": False, "prepare.image_size": 16},
    }.items():
        prepare.run(experiment(root, name, **changes), root)
    return root


def experiment(root: pathlib.Path, data: str, **changes) -> Experiment:
    config = digits.get_config()
    own = {
        "autoencoder.name": str(root / ("taesd" if data == "taesd" else "kl")) + ".safetensors",
        "data.source": str(root / data),
        "prepare.source": str(root / "images"),
    }
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict(TINY | SMALL | own | changes)
    return resolve(config)


def finals(workdir: pathlib.Path) -> Image.Image:
    return Image.open(workdir / "samples" / "final.png")


@pytest.mark.parametrize(
    ("data", "changes", "side"),
    [
        pytest.param("kl", {}, 16, id="moments"),
        pytest.param("taesd", {}, 32, id="latents", marks=pytest.mark.slow),
        pytest.param(
            "pixels",
            {"autoencoder__scale": 0.2},
            16,
            id="encoded_in_the_step",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_latent_run_trains_and_its_samples_are_decoded(root, tmp_path, data, changes, side):
    made = experiment(root, data, **changes)
    assert "step 4" in train.run(made, tmp_path / "run")
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert all(np.isfinite(losses))
    sample.run(
        experiment(root, data, sample__out=str(tmp_path / "out"), **changes), tmp_path / "run"
    )
    images = [Image.open(path) for path in sorted((tmp_path / "out").glob("0*.png"))]
    assert len(images) == 5
    assert {image.size for image in images} == {(side, side)}
    assert np.asarray(images[0]).std() > 0
    assert np.asarray(finals(tmp_path / "run")).std() > 0


def test_pixels_alone_are_learned_as_they_are(root, tmp_path):
    plain = {
        "autoencoder__name": "",
        "model__image_size": 16,
        "model__in_channels": 3,
        "model__patch_size": 8,
    }
    train.run(experiment(root, "pixels", **plain), tmp_path)
    assert json.loads((tmp_path / "data.json").read_text())["normalization"] is None
    assert np.asarray(finals(tmp_path)).std() > 0


def test_the_data_set_need_not_be_there_to_sample(root, tmp_path):
    train.run(experiment(root, "taesd"), tmp_path / "run")
    card = json.loads((tmp_path / "run" / "data.json").read_text())
    manifest = Manifest.load(root / "taesd")
    np.testing.assert_allclose(card["normalization"]["shift"], manifest.mean)
    np.testing.assert_allclose(card["normalization"]["scale"], 1 / np.asarray(manifest.std))
    away = experiment(root, "taesd", data__source="/nowhere", sample__out=str(tmp_path / "away"))
    sample.run(away, tmp_path / "run")
    sample.run(experiment(root, "taesd", sample__out=str(tmp_path / "here")), tmp_path / "run")
    for path in (tmp_path / "here").iterdir():
        assert path.read_bytes() == (tmp_path / "away" / path.name).read_bytes()


def test_latents_can_be_learned_without_their_autoencoder_but_not_sampled(root, tmp_path):
    nameless = experiment(root, "kl", autoencoder__name="")
    train.run(nameless, tmp_path)
    assert np.asarray(finals(tmp_path)).std() > 0
    with pytest.raises(
        UserError, match=r"^config\.autoencoder\.name is empty, expected '.*kl\.safetensors'"
    ):
        sample.run(nameless, tmp_path)


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        (
            "kl",
            {"autoencoder.scale": 0.5},
            r"^config\.autoencoder\.scale is 0\.5, but the latents .* by 0\.18215",
        ),
        ("taesd", {"autoencoder.scale": 0.5}, r"scaled by their own mean and standard deviation"),
        (
            "kl",
            {"model.image_size": 8},
            r"config\.model makes latents of shape \(8, 8, 4\), but '.*' has \(4, 4, 4\)",
        ),
        (
            "kl",
            {"model.num_classes": 3},
            r"config\.model\.num_classes is 3, expected 4: '.*' has 3 classes",
        ),
        (
            "kl",
            {"autoencoder.name": "taesd"},
            r"whose encoder .* is not the one of the latents of '.*': expected",
        ),
        (
            "pixels",
            {"model.image_size": 8},
            r"makes latents of shape \(8, 8, 4\), but .* makes \(4, 4, 4\) of the",
        ),
        ("pixels", {"autoencoder.name": "taesd"}, r"has no scale of its own: expected a number"),
        ("kl", {"model.in_channels": 3}, r"but '.*' has \(4, 4, 4\)"),
        (
            "gone",
            {},
            r"^config\.data\.source is '.*gone', expected 'digits' or the folder of a prepared "
            r"data set",
        ),
        ("images", {}, r"manifest\.json"),
    ],
)
def test_data_and_config_that_do_not_fit_are_told_before_training(
    root, tmp_path, data, changes, message
):
    if "autoencoder.name" in changes:
        changes = {"autoencoder.name": str(root / f"{changes['autoencoder.name']}.safetensors")}
    with pytest.raises(UserError, match=message):
        train.run(experiment(root, data, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_flips_need_stored_mirrors(root, tmp_path):
    prepare.run(
        experiment(root, "kl", prepare__mirror=False, prepare__out=str(tmp_path / "once")), tmp_path
    )
    with pytest.raises(
        UserError, match=r"^config\.data\.flip is True, but '.*' holds no mirror images"
    ):
        train.run(experiment(root, "kl", data__source=str(tmp_path / "once")), tmp_path / "run")


# --- Weights from elsewhere.


@pytest.fixture(scope="module")
def weights(root) -> pathlib.Path:
    return write_weights(root / "official.pth", uvit_weights(experiment(root, "kl").model))


def test_official_weights_are_sampled_and_decoded_without_any_data(root, weights, tmp_path):
    made = experiment(root, "nowhere", init_from=str(weights), sample__out=str(tmp_path / "out"))
    message = sample.run(made, tmp_path / "run")
    assert "sampled 5 images" in message
    assert {Image.open(path).size for path in (tmp_path / "out").glob("0*.png")} == {(16, 16)}


def test_a_run_starts_from_official_weights(root, weights, tmp_path):
    # The first update moves nothing (its learning rate is 0), so the weights are still those of the
    # file.
    made = experiment(root, "kl", init_from=str(weights), train__steps=1)
    gone = tmp_path / "gone.pth"
    gone.symlink_to(weights)
    train.run(dataclasses.replace(made, init_from=str(gone)), tmp_path / "run")
    gone.unlink()  # a run that has begun needs its first weights no more
    out = {"sample__out": str(tmp_path / "trained"), "train__steps": 1}
    sample.run(experiment(root, "kl", init_from=str(gone), **out), tmp_path / "run")
    sample.run(
        experiment(root, "kl", init_from=str(weights), sample__out=str(tmp_path / "file")),
        tmp_path / "none",
    )
    for path in (tmp_path / "file").glob("0*.png"):
        assert path.read_bytes() == (tmp_path / "trained" / path.name).read_bytes()


@pytest.mark.slow
def test_a_run_starts_from_the_ema_of_another_run(root, tmp_path):
    train.run(experiment(root, "kl"), tmp_path / "first")
    train.run(
        experiment(root, "kl", init_from=str(tmp_path / "first"), train__steps=1),
        tmp_path / "second",
    )
    sample.run(experiment(root, "kl", sample__out=str(tmp_path / "a")), tmp_path / "first")
    sample.run(
        experiment(root, "kl", sample__out=str(tmp_path / "b"), sample__weights="params"),
        tmp_path / "second",
    )
    for path in (tmp_path / "a").glob("0*.png"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: {name: array for name, array in w.items() if name != "pos_embed"},
            "missing.*pos_embed",
        ),
        (
            lambda w: w | {"label_emb.weight": np.zeros((9, 16), np.float32)},
            r"label_emb\.weight has shape \(9, 16\)",
        ),
    ],
)
def test_weights_of_another_architecture_are_refused_by_name(root, tmp_path, change, message):
    path = write_weights(tmp_path / "other.pth", change(uvit_weights(experiment(root, "kl").model)))
    with pytest.raises(UserError, match=rf"^config\.init_from is '.*other\.pth': .*{message}"):
        sample.run(experiment(root, "kl", init_from=str(path)), tmp_path / "run")


def test_weights_that_are_not_there_are_told(root, tmp_path):
    with pytest.raises(
        UserError, match=r"^config\.init_from is 'gone\.pth', expected a weights file or a workdir"
    ):
        sample.run(experiment(root, "kl", init_from="gone.pth"), tmp_path / "run")


def test_weights_read_for_a_run_are_laid_over_the_mesh(root, weights):
    from uvit_jax.experiment.assembled import assemble
    from uvit_jax.experiment.data_card import DataCard
    from uvit_jax.experiment.weights import initial_weights

    made = experiment(root, "kl")
    template = assemble(made, DataCard("none")).abstract_params
    found = initial_weights(template, made.model, str(weights))
    expected = official.params(uvit_weights(made.model), made.model)
    assert np.array_equal(
        found["mid_block"]["attn"]["qkv"]["kernel"], expected["mid_block"]["attn"]["qkv"]["kernel"]
    )
    assert found["head"]["kernel"].sharding == template["head"]["kernel"].sharding
