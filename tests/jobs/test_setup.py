"""The parts that jobs are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.jobs.digits_config import experiment
from uvit_jax.jobs.datacard import DataCard
from uvit_jax.jobs.setup import assemble


@pytest.mark.parametrize("remat", ["matmuls", "full"])
def test_only_training_computes_anything_twice(remat):
    parts = {
        kind: assemble(experiment(model__remat=remat), DataCard("none"), section=kind) for kind in ("train", "sample")
    }
    params = jax.jit(parts["train"].init_params)(jax.random.key(0))
    given = jax.random.normal(jax.random.key(1), (8, 8, 8, 1)), jnp.linspace(0, 999, 8), jnp.arange(8)
    programs = {kind: jax.make_jaxpr(part.network)(params, *given) for kind, part in parts.items()}
    assert "checkpoint" in str(programs["train"]) or "remat" in str(programs["train"])
    assert "checkpoint" not in str(programs["sample"])
    assert "remat" not in str(programs["sample"])
    train, sample = (jax.jit(parts[kind].network)(params, *given) for kind in ("train", "sample"))
    np.testing.assert_allclose(train, sample, atol=1e-6)
