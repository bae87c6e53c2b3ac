import jax
import numpy as np
import pytest
from flax import nnx

from tests.jobs.evaluate_runs import assembled_of, evaluation, weights_of, write_run
from uvit_jax.errors import UserError
from uvit_jax.experiment.load import load_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("load") / "run", steps=(4, 8))


def test_the_model_of_a_run_is_the_one_that_is_sampled_with(run):
    for model, weights, step in (
        (load_model(run), "ema", 8),
        (load_model(str(run), weights="params", step=4), "params", 4),
    ):
        asked = evaluation(sample__weights=weights, sample__step=step)
        expected = weights_of(asked, run).params
        jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(model)), expected)
        assert model.config == asked.model
        assert jax.tree.structure(nnx.to_pure_dict(nnx.state(model))) == jax.tree.structure(
            expected
        )


def test_the_model_of_a_run_predicts(run):
    x, t, label = (
        np.ones((2, 8, 8, 1), np.float32),
        np.array([3.0, 700.0], np.float32),
        np.array([3, 7], np.int32),
    )
    graphdef, params = nnx.split(load_model(run))
    predicted = jax.jit(lambda params: nnx.merge(graphdef, params)(x, t, label))(params)
    network, params = (
        assembled_of(evaluation()).sampling_network,
        weights_of(evaluation(), run).params,
    )
    expected = jax.jit(network)(params, x, t, label)
    np.testing.assert_allclose(predicted, expected, atol=1e-5)


def test_what_is_not_there_is_told(run, tmp_path):
    with pytest.raises(UserError, match=r"holds no step 5, expected one of 4, 8"):
        load_model(run, step=5)
    with pytest.raises(UserError, match="weights is 'best', expected one of 'ema', 'params'"):
        load_model(run, weights="best")
    with pytest.raises(
        UserError,
        match=rf"^{tmp_path} holds no checkpoints, expected the workdir of a trained model",
    ):
        load_model(tmp_path)
    with pytest.raises(UserError, match=r"/gone holds no checkpoints"):
        load_model(tmp_path / "gone")
