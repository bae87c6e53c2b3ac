import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uvit_jax.diffusion.predictions import PREDICTIONS, convert
from uvit_jax.diffusion.schedules import RectifiedFlow, VPLinear
from uvit_jax.errors import UserError


def truths(schedule, t):
    keys = jax.random.split(jax.random.key(3))
    x0, noise = (jax.random.normal(key, (4, 2, 2, 3)) for key in keys)
    alpha, sigma = (value[:, None, None, None] for value in (schedule.alpha(t), schedule.sigma(t)))
    truth = {"noise": noise, "x0": x0, "v": alpha * noise - sigma * x0, "flow": noise - x0}
    return alpha * x0 + sigma * noise, truth


@pytest.mark.parametrize("schedule", [VPLinear(), RectifiedFlow()], ids=["vp", "flow"])
def test_every_prediction_converts_to_every_other(schedule, x64):
    t = jnp.asarray([0.01, 0.3, 0.7, 0.99])
    x_t, truth = truths(schedule, t)
    for source in PREDICTIONS:
        for target in PREDICTIONS:
            found = convert(truth[source], x_t, t, schedule, source=source, target=target)
            np.testing.assert_allclose(
                found, truth[target], atol=1e-11, err_msg=f"{source} to {target}"
            )


def test_one_time_may_serve_the_whole_batch():
    schedule, x = VPLinear(), jnp.ones((4, 2))
    one = convert(x, 2 * x, jnp.asarray(0.3), schedule, source="noise", target="x0")
    each = convert(x, 2 * x, jnp.full((4,), 0.3), schedule, source="noise", target="x0")
    np.testing.assert_allclose(one, each)


@pytest.mark.parametrize(("source", "target"), [("eps", "x0"), ("x0", "score")])
def test_an_unknown_prediction_lists_the_known_ones(source, target):
    with pytest.raises(UserError, match="expected one of noise, x0, v, flow"):
        convert(
            jnp.ones((1, 2)),
            jnp.ones((1, 2)),
            jnp.ones(1),
            VPLinear(),
            source=source,
            target=target,
        )
