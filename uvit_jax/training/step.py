"""One update of the weights: draw time and noise, predict, differentiate, step, average.

`make_train_step` gives the pure function, `lower_train_step` the program that training runs.
"""

import dataclasses
import gc
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from uvit_jax.diffusion.losses import denoising_loss
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.parallel.batches import Batch
from uvit_jax.randomness import Stream, stream_key
from uvit_jax.training import ema
from uvit_jax.training.inputs import Inputs, pixels
from uvit_jax.training.network import Network
from uvit_jax.training.state import Params, TrainState

Metrics = dict[str, Any]  # scalars on the devices
# train_step(state, batch, frozen) -> (state, metrics); frozen: an autoencoder's parameters, or None
TrainStep = Callable[[TrainState, Batch, Any], tuple[TrainState, Metrics]]
Condition = Int[Array, " b"] | Float[Array, "b l d"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss that the network is trained on.

    Attributes:
      schedule: alpha and sigma of time, and the distribution that times are drawn from.
      prediction: meaning of the network's output: "noise", "x0", "v" or "flow".
      weighting: of the loss over time, "none" or "min_snr".
      p_uncond: share of the examples whose condition becomes the empty one.
      null_condition: the empty label, or the states of the empty text [l, d]; None where p_uncond
        is 0.
    """

    schedule: Schedule
    prediction: str = "noise"
    weighting: str = "none"
    p_uncond: float = 0.0
    null_condition: int | Float[Array, "l d"] | Float[np.ndarray, "l d"] | None = None


def draw(
    objective: Objective, x0: Float[Array, "b h w c"], condition: Condition | None, key: Array
) -> tuple[Float[Array, " b"], Float[Array, "b h w c"], Condition | None]:
    """The random part of a step: for each example a time, a noise and a condition, or its drop."""
    time_key, noise_key, drop_key = jax.random.split(key, 3)
    t = objective.schedule.sample_time(time_key, (x0.shape[0],))
    noise = jax.random.normal(noise_key, x0.shape, jnp.float32)
    if condition is not None and objective.null_condition is not None:
        dropped = jax.random.bernoulli(drop_key, objective.p_uncond, condition.shape[:1])
        dropped = dropped.reshape(-1, *[1] * (condition.ndim - 1))
        condition = jnp.where(
            dropped, jnp.asarray(objective.null_condition, condition.dtype), condition
        )
    return t, noise, condition


def mean_loss(
    network: Network,
    objective: Objective,
    params: Params,
    x0: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    noise: Float[Array, "b h w c"],
    condition: Condition | None,
) -> Float[Array, ""]:
    """The loss of a batch at given times and noises.

    With prediction = "noise" that is Eq. 2 of arXiv:2209.12152.
    """
    return denoising_loss(
        lambda x_t, model_time: network(params, x_t, model_time, condition),
        x0,
        t,
        noise,
        objective.schedule,
        prediction=objective.prediction,
        weighting=objective.weighting,
    ).mean()


def apply_gradients(
    state: TrainState, grads: Params, optimizer: optax.GradientTransformation, ema_rate: float
) -> TrainState:
    """The state after one optimizer step and one step of the average."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(
        step=state.step + 1,
        params=params,
        ema=ema.update(state.ema, params, ema_rate),
        opt_state=opt_state,
    )


def accumulate(
    loss_fn: Callable[[Params, Any], Float[Array, ""]],
    params: Params,
    batch: Any,
    microbatches: int,
) -> tuple[Float[Array, ""], Params]:
    """Mean loss and gradients of a batch (a tree of arrays `[b, ...]`), by one scan over parts.

    A part holds every `microbatches`-th row, so that the rows of a sharded batch stay on their
    devices. Gradients are added up in the parameters' own precision.
    """
    if microbatches == 1:
        return jax.value_and_grad(loss_fn)(params, batch)

    def cut(rows: Array) -> Array:
        return jnp.swapaxes(
            rows.reshape(rows.shape[0] // microbatches, microbatches, *rows.shape[1:]), 0, 1
        )

    def add(total: tuple[Array, Params], part: Any) -> tuple[tuple[Array, Params], None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_fn)(params, part)), None

    zero = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)
    total, _ = jax.lax.scan(add, zero, jax.tree.map(cut, batch))
    loss, grads = jax.tree.map(lambda x: x / microbatches, total)
    return loss, grads


def make_train_step(
    network: Network,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    ema_rate: float,
    seed: int,
    inputs: Inputs = pixels,
    microbatches: int = 1,
) -> TrainStep:
    """`train_step(state, batch, frozen=None) -> (state, metrics)`, not jitted.

    Its randomness comes from (seed, state.step) alone. The batch holds `x` `[b, h, w, c]` as it is
    stored and, for a model with labels, `label` `[b]`, or, for one with text, `context`
    `[b, l, d]`; `inputs(frozen, x, key)` turns x into the network's x0. Metrics are scalars on the
    device.

    microbatches: parts of the batch that go through the network one after another, with the memory
    of one. Losses and gradients are those of the whole batch, but for rounding.
    """

    def train_step(
        state: TrainState, batch: Batch, frozen: Any = None
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(stream_key(seed, Stream.STEP), state.step)
        # A key of its own: `draw` splits the step's key into 0, 1 and 2.
        x0 = inputs(frozen, batch["x"], jax.random.fold_in(key, 3))
        t, noise, condition = draw(objective, x0, batch.get("label", batch.get("context")), key)
        loss, grads = accumulate(
            lambda params, part: mean_loss(network, objective, params, *part),
            state.params,
            (x0, t, noise, condition),
            microbatches,
        )
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return apply_gradients(state, grads, optimizer, ema_rate), metrics

    return train_step


def lower_train_step(
    train_step: TrainStep,
    state: TrainState,
    batch: Mapping[str, Array | jax.ShapeDtypeStruct],
    frozen: Any = None,
    *,
    compiler_options: dict[str, bool] | None = None,
) -> jax.stages.Lowered:
    """The program of a train step, which `.compile()` makes what training runs.

    The state is donated: its memory holds the new state, which is sharded alike. `state` and
    `batch` are of arrays or of shapes with shardings. compiler_options: `jax.jit`'s.
    """
    jitted = jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), None),
        compiler_options=compiler_options or None,
    )
    # Garbage collection during the trace frees almost nothing and takes 0.4 s of 1.7 s for H/2.
    collects = gc.isenabled()
    gc.disable()
    try:
        return jitted.lower(state, batch, frozen)
    finally:
        if collects:
            gc.enable()
