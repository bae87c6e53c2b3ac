"""Samples of a model as a stream: taken up anywhere they are the same, and a bad one is told by its
number.
"""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from tests.interop.pth_files import write_weights
from tests.jobs.evaluate_runs import assembled_of, evaluation, weights_of, write_run
from tests.jobs.images import write_images, write_kl
from tests.jobs.test_latents import experiment as latent_experiment
from tests.reference_weights import uvit_weights
from uvit_jax.diffusion.sampler import Sampler
from uvit_jax.errors import UserError
from uvit_jax.experiment.data_card import DataCard
from uvit_jax.experiment.opened import open_for_sampling
from uvit_jax.experiment.weights import run_of_samples
from uvit_jax.jobs import prepare
from uvit_jax.jobs.sampling.conditions import open_conditions
from uvit_jax.jobs.sampling.generation import make_generation

COUNT = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    return write_run(tmp_path_factory.mktemp("run"))


def opened(run: pathlib.Path, **changes):
    """A generation of batches of 16, and the weights."""
    experiment = evaluation(**changes)
    assembled = assembled_of(experiment)
    conditions = open_conditions(experiment, assembled.card, count=COUNT)
    generation = make_generation(
        assembled, experiment.diffusion, experiment.sample, conditions, batch_size=16
    )
    return generation, weights_of(experiment, run).params


def images(generation, params, first=0, count=COUNT) -> np.ndarray:
    return np.concatenate(list(generation.batches(params, first, count)))


@pytest.mark.parametrize(
    ("first", "count"), [(0, 3), (0, 16), (5, 40), (16, 40), (31, 33), (39, 40)]
)
def test_a_stream_taken_up_anywhere_gives_the_same_bits(run, first, count):
    generation, params = opened(run)
    whole = images(generation, params)
    assert whole.shape == (COUNT, 8, 8, 1)
    assert whole.dtype == np.uint8
    assert len(np.unique(whole.reshape(COUNT, -1), axis=0)) == COUNT
    np.testing.assert_array_equal(images(generation, params, first, count), whole[first:count])


@pytest.mark.parametrize(
    ("count", "parts", "drawn"), [(1, 1, 1), (3, 4, 4), (16, 1, 16), (20, 1, 32)]
)
def test_a_few_samples_cost_no_whole_batch(run, monkeypatch, count, parts, drawn):
    generation, params = opened(run)
    draw, asked = Sampler.__call__, []

    def recorded(self, params, *, indices, **options):
        asked.extend(indices)
        return draw(self, params, indices=indices, **options)

    monkeypatch.setattr(Sampler, "__call__", recorded)
    generation = dataclasses.replace(generation, row_multiple=parts)
    assert len(images(generation, params, 0, count)) == count
    assert asked == list(range(drawn))


def test_another_guidance_scale_is_another_sample_of_the_same_program(run):
    generation, params = opened(run)
    guided = dataclasses.replace(generation, guidance_scale=2.0)
    assert guided.sampler is generation.sampler
    expected, params = opened(run, sample__guidance_scale=2.0)
    np.testing.assert_array_equal(images(guided, params), images(expected, params))
    assert (images(guided, params) != images(generation, params)).mean() > 0.02


@pytest.mark.parametrize(("first", "number", "of"), [(0, 3, 16), (4, 13, 12), (14, 23, 16)])
def test_a_sample_that_is_no_image_is_told_by_its_number(run, first, number, of):
    generation, params = opened(run, sample__guidance_scale=0.0)
    # Every digit 3 is NaN: samples 3, 13, 23 and 33.
    damaged = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf.at[3].set(np.nan) if "label" in jax.tree_util.keystr(path) else leaf
        ),
        params,
    )
    with pytest.raises(
        UserError, match=rf"^sample {number} holds NaN \(\d of the {of} in its batch do\), expected"
    ):
        images(generation, damaged, first)
    assert len(images(generation, damaged, 4, 13)) == 9


@pytest.mark.parametrize(("weights", "step"), [("ema", 4), ("params", 4), ("params", 8)])
def test_a_run_named_as_the_start_gives_the_weights_and_the_step_asked_for(tmp_path, weights, step):
    # They stand in the report of an evaluation, so that they must not be others.
    run = write_run(tmp_path / "other", steps=(4, 8))
    asked = evaluation(init_from=str(run), sample__weights=weights, sample__step=step)
    opened = weights_of(asked, tmp_path / "here")
    own = weights_of(evaluation(sample__weights=weights, sample__step=step), run)
    assert opened.sha256 == own.sha256
    assert opened.record == {"kind": weights, "step": step, "from": str(run)}
    assert opened.folder == f"other_step_{step:08d}"


def test_a_file_has_no_steps(tmp_path):
    file = tmp_path / "weights.pth"
    write_weights(file, uvit_weights(evaluation().model, 1))
    assert weights_of(evaluation(init_from=str(file)), tmp_path).folder == "weights"
    with pytest.raises(
        UserError,
        match=r"^config\.sample\.step is 4, and config\.init_from is .*: expected no step",
    ):
        weights_of(evaluation(init_from=str(file), sample__step=4), tmp_path)


@pytest.mark.parametrize("spelled", ["{}", "{}/", "{}/../other"])
def test_what_a_run_began_with_is_named_in_any_spelling(tmp_path, spelled):
    other, run = tmp_path / "other", tmp_path / "run"
    other.mkdir()
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"model": {}, "init_from": str(other)}))
    assert run_of_samples(spelled.format(other), run) == run
    assert run_of_samples(str(tmp_path), run) == tmp_path
    assert run_of_samples("", run) == run


def test_labels_of_other_classes_than_the_models_are_not_drawn_from_the_data():
    experiment = evaluation(sample__labels="data")
    assert open_conditions(experiment, assembled_of(experiment).card, count=3).labels
    other = DataCard("letters", tuple("abcdefghij"))
    with pytest.raises(
        UserError,
        match=r"^class 0 of 'digits' \(config\.data\.source\) is '0', but the model learned 'a'",
    ):
        open_conditions(experiment, other, count=3)


@pytest.fixture(scope="module")
def scaled(tmp_path_factory) -> pathlib.Path:
    """A run on latents that were prepared with a scale of 0.5, and a file of weights."""
    root = tmp_path_factory.mktemp("scaled")
    write_images(root / "images")
    write_kl(root / "kl.safetensors")
    prepare.run(latents(root, autoencoder__scale=0.5), root)
    write_run(root / "run", latents(root))
    write_weights(root / "weights.pth", uvit_weights(latents(root).model, 5))
    return root


def latents(root, **changes):
    return latent_experiment(root, "kl", **{"model__depth": 1, **changes})


def scale_of(root, workdir: str, **changes) -> float:
    card = open_for_sampling(latents(root, **changes), root / workdir).assembled.card
    assert card.normalization is not None
    (scale,) = set(card.normalization.scale)
    return scale


def test_latents_are_scaled_back_as_the_run_whose_weights_they_are_of_learned_them(scaled):
    run, file = str(scaled / "run"), str(scaled / "weights.pth")
    gone = {"data__source": "/nowhere"}
    assert scale_of(scaled, "run", **gone) == 0.5
    assert scale_of(scaled, "elsewhere", init_from=run, **gone) == 0.5
    # A file's weights are of no data that are known here, in another run's workdir too.
    assert scale_of(scaled, "run", init_from=file, **gone) == 0.18215
    assert scale_of(scaled, "run", init_from=file, autoencoder__scale=0.9, **gone) == 0.9


@pytest.mark.parametrize("init_from", ["", "run"])
def test_a_scale_that_the_latents_do_not_have_is_refused(scaled, init_from):
    asked = {"autoencoder__scale": 0.9, "init_from": str(scaled / init_from) if init_from else ""}
    with pytest.raises(
        UserError,
        match=r"^config\.autoencoder\.scale is 0\.9, but the latents .* scaled by 0\.5: leave",
    ):
        scale_of(scaled, "elsewhere" if init_from else "run", **asked, data__source="/nowhere")
    same = {**asked, "autoencoder__scale": 0.5}
    assert (
        scale_of(scaled, "elsewhere" if init_from else "run", **same, data__source="/nowhere")
        == 0.5
    )
