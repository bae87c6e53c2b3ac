"""Models by name from Python: the same bits as the command line's."""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import uvit_jax
from tests.interop.pth_files import write_weights
from tests.jobs.evaluate_runs import evaluation, write_run
from tests.jobs.images import write_clip, write_kl
from tests.reference_weights import uvit_weights
from uvit_jax.errors import UserError
from uvit_jax.experiment.config import Experiment, load_experiment
from uvit_jax.experiment.published import PUBLISHED
from uvit_jax.jobs import sample

ROOT = pathlib.Path(__file__).parents[3]
SMALL = {
    "model.embed_dim": "16",
    "model.depth": "3",
    "model.num_heads": "2",
    "model.dtype": "float32",
    "sample.batch_size": "4",
    "sample.steps": "3",
}
PIXELS = SMALL | {"model.image_size": "8"}


def published(folder: pathlib.Path, name: str, overrides: dict[str, str]) -> Experiment:
    """The experiment of the command line for a published name, its file written in this folder."""
    made, file = PUBLISHED[name], folder / PUBLISHED[name].weights
    experiment = load_experiment(
        f"{ROOT}/configs/{made.config}", overrides | {"init_from": str(file)}
    )
    folder.mkdir(exist_ok=True)
    write_weights(file, uvit_weights(experiment.model, 1))
    return experiment


def drawn(experiment: Experiment, workdir: pathlib.Path, **changes) -> np.ndarray:
    """The images that the job writes."""
    out = workdir / "out"
    asked = dataclasses.replace(experiment.sample, format="npz", out=str(out), **changes)
    sample.run(dataclasses.replace(experiment, sample=asked), workdir)
    with np.load(out / "samples.npz") as file:
        return file["images"]


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A small "imagenet64-mid" found in the folder of the variable, and its experiment."""
    folder = tmp_path_factory.mktemp("weights")
    experiment = published(folder, "imagenet64-mid", PIXELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UVIT_JAX_WEIGHTS", str(folder))
        return uvit_jax.load("imagenet64-mid", overrides=PIXELS), experiment


def test_a_published_models_samples_are_the_command_lines(classes, tmp_path):
    model, experiment = classes
    expected = drawn(experiment, tmp_path, num_samples=6, seed=3, labels="207,3")
    images = model.sample(labels=[207, 3], num_samples=6, seed=3)
    assert images.shape == (6, 8, 8, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, expected)
    # One of each class asked for, by name too, and another seed gives others.
    pytest.importorskip("tensorflow_datasets")
    named = model.sample(labels=["Golden Retriever", 3], seed=3)
    np.testing.assert_array_equal(named, model.sample(labels="207,3", seed=3))
    assert len(named) == 2
    assert (named != model.sample(labels="207,3", seed=4)).any()


def test_other_classes_seeds_and_guidance_compile_nothing_again(classes):
    model, _ = classes
    first = model.sample(labels=[5, 6], seed=1)
    (generation,) = model._generations.values()
    assert (model.sample(labels=[5, 7], seed=1)[1] != first[1]).any()
    assert list(model._generations.values()) == [generation]


def test_a_loaded_network_is_the_one_that_is_sampled(classes):
    model, experiment = classes
    x, t, label = jnp.ones((1, 8, 8, 3)), jnp.ones(1), jnp.array([7])
    expected = model.assembled.network(model.weights.params, x, t, label)
    np.testing.assert_allclose(model.network(x, t, label=label), expected, atol=1e-6)
    assert model.experiment == experiment


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"sede": 3}, "config.sample has no field 'sede', did you mean 'seed'?"),
        ({"prompts": "a bus"}, "config.sample.prompts is 'a bus', expected none for a model with"),
        ({"labels": 1000}, "config.sample.labels: label 1000 is outside the table"),
        ({"guidance_scale": 1.0}, "config.sample.guidance_scale is 1.0, expected 0"),
        ({"prompts": ["a; b", "c"]}, "prompts has 'a; b', expected texts without semicolons"),
    ],
)
def test_what_a_loaded_model_can_not_draw_is_refused(classes, asked, sentence):
    with pytest.raises(UserError) as refused:
        classes[0].sample(**asked)
    assert str(refused.value).startswith(sentence)


def test_texts_in_a_list_are_the_command_lines_prompts(tmp_path):
    own = write_clip(tmp_path / "clip") | {
        "autoencoder.name": write_kl(tmp_path / "kl.safetensors")
    }
    own |= {"model.image_size": "4", "model.context_dim": "32", "model.context_length": "24"}
    experiment = published(tmp_path, "mscoco256", SMALL | own)
    model = uvit_jax.load(
        "mscoco256", weights=tmp_path / "mscoco_uvit_small.pth", overrides=SMALL | own
    )
    with pytest.raises(UserError, match=r"^config\.sample\.prompts is empty, expected texts as"):
        model.sample()
    images = model.sample(prompts=["a bus", "two cats, sleeping"])
    expected = drawn(experiment, tmp_path, prompts="a bus; two cats, sleeping", num_samples=2)
    np.testing.assert_array_equal(images, expected)


def test_a_runs_workdir_is_a_name_too(tmp_path):
    run = write_run(tmp_path / "run", steps=(4, 8))
    model = uvit_jax.load(run, overrides={"sample.step": "4"})
    assert model.class_names == tuple("0123456789")
    expected = drawn(evaluation(), run, num_samples=5, step=4)
    np.testing.assert_array_equal(model.sample(num_samples=5), expected)


def test_an_empty_label_that_a_config_forgets_is_warned_of(tmp_path, caplog):
    published(tmp_path, "imagenet64-mid", PIXELS)  # which has none
    uvit_jax.load("imagenet64-mid", weights=tmp_path / "imagenet64_uvit_mid.pth", overrides=PIXELS)
    assert caplog.messages == []
    rows = PIXELS | {"model.num_classes": "1001"}
    published(tmp_path, "imagenet64-mid", rows)
    uvit_jax.load("imagenet64-mid", weights=tmp_path / "imagenet64_uvit_mid.pth", overrides=rows)
    assert "so all 1001 rows of the label table" in caplog.messages[0]


@pytest.mark.parametrize("hub", [None, "someone/weights"])
def test_weights_that_are_not_here_are_told_with_where_they_are_published(
    monkeypatch, tmp_path, hub
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UVIT_JAX_WEIGHTS", raising=False)
    asked = []

    def find_model(name):
        asked.append(name)
        raise UserError("offline")

    monkeypatch.setattr("uvit_jax.experiment.published.find_model", find_model)
    with pytest.raises(UserError) as refused:
        uvit_jax.load("imagenet512-huge", hub=hub)
    if hub:
        assert asked == ["someone/weights/imagenet512_uvit_huge.pth"]
        return
    sentence = str(refused.value)
    assert "download imagenet512_uvit_huge.pth from https://github.com/baofff/U-ViT" in sentence
    assert str(tmp_path / "weights") in sentence
    # One of safetensors, in the current folder, is found, and is not this model's.
    (tmp_path / "imagenet512_uvit_huge.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"^config\.init_from is 'imagenet512_uvit_huge\.safeten"):
        uvit_jax.load("imagenet512-huge", overrides={"autoencoder.name": ""})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("imagenet256", "did you mean 'imagenet256-huge'?"),
        ("cifar11", "did you mean 'cifar10'?"),
        ("nothing", "expected one of cifar10, celeba64, "),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(name, hint):
    with pytest.raises(UserError) as refused:
        uvit_jax.load(name)
    assert hint in str(refused.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_name_says_its_config_and_file(name):
    made, (family, _, size) = PUBLISHED[name], name.partition("-")
    assert made.weights.startswith(f"{family.replace('mscoco256', 'mscoco')}_uvit_")
    assert made.weights.endswith(f"_{size or 'small'}.pth")
    path, _, variant = made.config.partition(":")
    assert path == f"{family}.py"
    assert variant in (size, "small")
    assert (ROOT / "configs" / path).is_file()
