import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from uvit_jax.errors import UserError
from uvit_jax.models.frozen.clip_layers import activate
from uvit_jax.models.frozen.clip_text import CLIPText, CLIPTextConfig
from uvit_jax.models.init_keys import InitKeys

SMALL = CLIPTextConfig(vocab_size=30, context_length=10, width=32, layers=2, heads=4, projection=8)
IDS = np.random.default_rng(0).integers(0, 29, (3, 10)).astype(np.int32)


def shapes(config):
    return nnx.split(nnx.eval_shape(lambda: CLIPText(config, InitKeys(0))))


@pytest.fixture(scope="module")
def params():
    """Weights by which states depend on every token they may see."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda a: 0.3 * rng.standard_normal(a.shape, np.float32), nnx.to_pure_dict(shapes(SMALL)[1])
    )


@pytest.fixture(scope="module")
def encode(params):
    graphdef, _ = shapes(SMALL)
    call = jax.jit(lambda ids: nnx.merge(graphdef, params)(ids))
    return lambda ids: np.asarray(call(ids))


def test_a_state_depends_on_its_token_and_those_before_it_alone(encode):
    before = encode(IDS)
    for position in (0, 4, 9):
        changed = IDS.copy()
        changed[:, position] = (changed[:, position] + 1) % 29
        difference = np.abs(encode(changed) - before).max(axis=(0, 2))
        assert (difference[:position] == 0).all()
        assert (difference[position:] > 1e-3).all()


def test_a_shorter_context_is_the_start_of_the_longer_one(encode):
    np.testing.assert_allclose(encode(IDS[:, :6]), encode(IDS)[:, :6], atol=1e-5)


def test_an_embedding_is_the_projected_state_of_the_first_end_token(params, encode):
    ids = IDS.copy()
    ids[:, 8:] = 29  # the end, and padding with more of it
    ids[1, 4:] = 29
    ids[2, 5:] = [29, 0, 0, 0, 0]
    end = encode(ids)[np.arange(3), [8, 4, 5]]
    embedding = jax.jit(nnx.merge(shapes(SMALL)[0], params).embed)(ids)
    np.testing.assert_allclose(
        embedding, end @ params["projection"]["kernel"], atol=1e-5, rtol=1e-5
    )


def test_activations_follow_their_formulas():
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    np.testing.assert_allclose(
        activate(jnp.asarray(x), "quick_gelu"), x / (1 + np.exp(-1.702 * x)), atol=1e-6
    )
    np.testing.assert_allclose(
        activate(jnp.asarray(x), "gelu"), x * (1 + erf(x / np.sqrt(2))) / 2, atol=1e-6
    )


def test_bfloat16_is_close_to_float32_and_comes_out_as_float32(params, encode):
    graphdef, _ = shapes(dataclasses.replace(SMALL, dtype="bfloat16"))
    states, expected = jax.jit(nnx.merge(graphdef, params))(IDS), encode(IDS)
    assert states.dtype == jnp.float32
    error = np.sqrt(np.mean((states - expected) ** 2) / np.mean(expected**2))
    assert 1e-4 < error < 0.03


def test_parameters_are_float32_whatever_is_computed_in():
    _, state = shapes(dataclasses.replace(SMALL, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}


def test_an_id_outside_the_vocabulary_does_not_pass_for_a_token(encode):
    ids = IDS.copy()
    ids[1, 3] = 30
    states = encode(ids)
    assert np.isnan(states[1, 3:]).all()
    assert np.isfinite(states[[0, 2]]).all()


def test_more_tokens_than_the_context_are_refused(encode):
    with pytest.raises(UserError, match=r"the texts have 11 tokens, expected at most 10"):
        encode(np.zeros((1, 11), np.int32))


def test_an_embedding_of_a_tower_without_projection_is_refused():
    model = nnx.eval_shape(lambda: CLIPText(dataclasses.replace(SMALL, projection=0), InitKeys(0)))
    with pytest.raises(UserError, match="the text tower has no projection"):
        model.embed(IDS)


def test_the_default_is_vit_l_14():
    _, state = shapes(CLIPTextConfig())
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 123_060_480


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "relu"}, "activation is 'relu', expected one of"),
        ({"dtype": "float16"}, "dtype is 'float16', expected one of"),
        ({"dtype": "fp8"}, "dtype is 'fp8', expected one of 'float32', 'bfloat16'"),
        ({"heads": 7}, "width is 768, expected a multiple of heads = 7"),
        ({"layers": 0}, "layers is 0, expected at least 1"),
        ({"mlp_ratio": 0}, "hidden_dim is 0, expected at least 1"),
        ({"projection": -1}, r"projection is -1, expected 0 \(none\) or more"),
    ],
)
def test_a_config_that_means_no_tower_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        CLIPTextConfig(**fields)
