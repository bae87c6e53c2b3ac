"""Samples of a model as a stream: taken up anywhere they are the same, and a bad one is told by its number."""

import pathlib

import jax
import numpy as np
import pytest

from tests.jobs.evaluate_runs import evaluation, parts_of, write_run
from uvit_jax.errors import UserError
from uvit_jax.jobs.generation import Generation, open_conditions
from uvit_jax.jobs.weights import open_weights

COUNT = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    return write_run(tmp_path_factory.mktemp("run"))


def opened(run: pathlib.Path, **changes):
    """A generation of batches of 16, and the weights."""
    parts = parts_of(evaluation(**changes))
    return Generation(parts, open_conditions(parts, None, count=COUNT), 16), open_weights(parts, run).params


def images(generation, params, first=0, count=COUNT) -> np.ndarray:
    return np.concatenate(list(generation.batches(params, first, count)))


@pytest.mark.parametrize(("first", "count"), [(0, 3), (0, 16), (5, 40), (16, 40), (31, 33), (39, 40)])
def test_a_stream_taken_up_anywhere_gives_the_same_bits(run, first, count):
    generation, params = opened(run)
    whole = images(generation, params)
    assert whole.shape == (COUNT, 8, 8, 1)
    assert whole.dtype == np.uint8
    assert len(np.unique(whole.reshape(COUNT, -1), axis=0)) == COUNT
    np.testing.assert_array_equal(images(generation, params, first, count), whole[first:count])


def test_another_guidance_scale_is_another_sample_of_the_same_program(run):
    generation, params = opened(run)
    guided = generation.guided_by(2.0)
    assert guided._sampler is generation._sampler
    expected, params = opened(run, sample__guidance_scale=2.0)
    np.testing.assert_array_equal(images(guided, params), images(expected, params))
    assert (images(guided, params) != images(generation, params)).mean() > 0.02


@pytest.mark.parametrize(("first", "number", "of"), [(0, 3, 16), (4, 13, 12), (14, 23, 16)])
def test_a_sample_that_is_no_image_is_told_by_its_number(run, first, number, of):
    generation, params = opened(run, sample__guidance_scale=0.0)
    # Every digit 3 is NaN: samples 3, 13, 23 and 33.
    damaged = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.at[3].set(np.nan) if "label" in jax.tree_util.keystr(path) else leaf, params
    )
    with pytest.raises(UserError, match=rf"^sample {number} holds NaN \(\d of the {of} in its batch do\), expected"):
        images(generation, damaged, first)
    assert len(images(generation, damaged, 4, 13)) == 9
