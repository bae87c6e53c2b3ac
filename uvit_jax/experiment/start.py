"""The state that training starts from: fresh, of other weights, or of the newest checkpoint."""

from typing import Any

import jax
import optax

from uvit_jax.errors import UserError
from uvit_jax.parallel import hosts
from uvit_jax.training.checkpoint import Checkpoints, Rates
from uvit_jax.training.state import Params, TrainState, create


def newest_step(checkpoints: Checkpoints, steps: int) -> int | None:
    """The step of the newest checkpoint, the same on all hosts; None for a fresh run.

    Each host lists the folder by itself, and waits until it sees what another one has seen.

    Raises:
      UserError: for a run that has made more than `steps` steps.
    """
    own = checkpoints.latest_step
    newest = hosts.largest(-1 if own is None else own)
    if newest < 0:
        return None
    if newest > steps:
        raise UserError(
            f"config.train.steps is {steps}, expected at least {newest}, the step that the run in "
            f"{checkpoints.directory.parent} is at, or another --workdir"
        )
    hosts.on_all(checkpoints.await_step, newest)
    return newest


def state_of_weights(
    params: Params, optimizer: optax.GradientTransformation, template: TrainState
) -> TrainState:
    """Makes the state of step 0 of these weights, which are donated to it.

    template: shapes, dtypes and shardings of the state.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    make = jax.jit(
        lambda params: create(lambda key: params, optimizer, 0),
        donate_argnums=0,
        out_shardings=shardings,
    )
    state: TrainState = make(params)
    return state


def ema_rates(
    checkpoints: Checkpoints, newest: int | None, before: dict[str, Any], rate: float | int
) -> Rates:
    """The rates that the EMA has had, and the rate it has from here on.

    Args:
      newest: the step of the checkpoint that the run goes on from.
      before: the config that the run was started with.
      rate: of the config now.
    """
    if newest is None:
        return ((0, rate),)
    rates = checkpoints.ema_rates(newest) or ((0, before.get("ema", {}).get("rate", rate)),)
    return rates if rates[-1][1] == rate else (*rates, (newest, rate))
