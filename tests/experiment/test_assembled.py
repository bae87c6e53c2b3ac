"""An assembled experiment: its networks and its sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.jobs.runs import tiny_experiment
from uvit_jax.experiment.assembled import assemble
from uvit_jax.experiment.data_card import DataCard


@pytest.mark.parametrize("remat", ["matmuls", "full"])
def test_only_training_computes_anything_twice(remat):
    assembled = assemble(tiny_experiment(model__remat=remat), DataCard("none"))
    networks = {"train": assembled.network, "sample": assembled.sampling_network}
    params = jax.jit(assembled.init_params)(jax.random.key(0))
    given = (
        jax.random.normal(jax.random.key(1), (8, 8, 8, 1)),
        jnp.linspace(0, 999, 8),
        jnp.arange(8),
    )
    programs = {
        kind: str(jax.make_jaxpr(network)(params, *given)) for kind, network in networks.items()
    }
    assert "checkpoint" in programs["train"] or "remat" in programs["train"]
    assert "checkpoint" not in programs["sample"]
    assert "remat" not in programs["sample"]
    train, sample = (jax.jit(network)(params, *given) for network in networks.values())
    np.testing.assert_allclose(train, sample, atol=1e-6)


def test_a_sampler_is_the_same_program_whatever_training_computes_twice():
    def program(remat: str) -> str:
        made = tiny_experiment(model__remat=remat)
        assembled = assemble(made, DataCard("none"))
        labels = jax.ShapeDtypeStruct((10,), jnp.int32, sharding=assembled.batch_sharding)
        sampler = assembled.sampler(made.diffusion, made.sample, made.null_label)
        return sampler.lower(
            assembled.abstract_params, rows=10, condition=labels, guided=True
        ).as_text()

    assert program("full") == program("none")
