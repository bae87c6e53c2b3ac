"""The train step as a program of shapes alone: what it is compiled for, from the config, with no
data set opened.
"""

import dataclasses
import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jaxtyping import Float

from uvit_jax.data.sources import SOURCES
from uvit_jax.experiment.assembled import Parts
from uvit_jax.experiment.config import Experiment
from uvit_jax.models.latents import Normalization
from uvit_jax.parallel.compiler import compiler_options
from uvit_jax.training.inputs import Inputs, latents, pixels
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.state import TrainState, abstract


@dataclasses.dataclass(frozen=True)
class StepInputs:
    """What the train step reads beside its state.

    Attributes:
      inputs: what it makes of stored examples (`training.inputs`).
      batch: shapes, dtypes and shardings of a batch.
      null_condition: states of the empty text where the step drops texts; labels have an empty one
        of their own.
      frozen: parameters that `inputs` needs (an autoencoder's), or their shapes.
    """

    inputs: Inputs
    batch: dict[str, jax.ShapeDtypeStruct]
    null_condition: Any = None
    frozen: Any = None


def batch_fields(experiment: Experiment) -> tuple[str, ...]:
    """The arrays of an example that the step reads."""
    if experiment.model.context_dim:
        return "x", "context"
    return ("x", "label") if experiment.model.num_classes else ("x",)


def abstract_inputs(experiment: Experiment, sharding: NamedSharding) -> StepInputs:
    """What a data set made for this config holds: moments where it names an autoencoder, else
    pixels; and labels or states of texts. Moments and states are in the dtype that
    `config.prepare.dtype` stores, pixels are bytes.

    An autoencoder without a variance stores half of what is said here, one number a latent. Where
    `config.prepare.latents` is False, the autoencoder's own work in the step is left out.
    """
    model, stored = experiment.model, jnp.dtype(experiment.prepare.dtype)
    height, width, channels = model.sample_shape
    if experiment.autoencoder.name:
        shape, dtype = (height, width, 2 * channels), stored
        inputs = latents(
            "moments", Normalization.constant(experiment.autoencoder.scale or 1.0, channels)
        )
    else:
        # The digits come as floats, stored images as bytes.
        dtype = jnp.dtype(jnp.float32 if experiment.data.source in SOURCES else jnp.uint8)
        shape, inputs = model.sample_shape, pixels
    examples = {
        "x": (shape, dtype),
        "label": ((), jnp.dtype(jnp.int32)),
        "context": ((model.context_length, model.context_dim), stored),
    }
    batch = {
        name: jax.ShapeDtypeStruct((experiment.train.batch_size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in examples.items()
        if name in batch_fields(experiment)
    }
    return StepInputs(inputs, batch, null_context(experiment))


def null_context(experiment: Experiment) -> Float[np.ndarray, "l d"] | None:
    """Zeros in the place of the empty text's states; None for a model that drops no texts."""
    model = experiment.model
    if not (model.context_dim and experiment.diffusion.p_uncond):
        return None
    return np.zeros((model.context_length, model.context_dim), jnp.dtype(experiment.prepare.dtype))


def abstract_state(parts: Parts) -> tuple[optax.GradientTransformation, TrainState]:
    """The config's optimizer, and shapes, dtypes and shardings of the state that it updates."""
    optimizer = make_optimizer(parts.experiment.optimizer, parts.experiment.train.steps)
    return optimizer, abstract(parts.init_params, optimizer, parts.mesh)


def lower_train_step(
    parts: Parts, optimizer: optax.GradientTransformation, state: TrainState, step: StepInputs
) -> jax.stages.Lowered:
    """`train_step(state, batch, frozen) -> (state, metrics)`, the state's memory used again for the
    new one.

    `.compile()` of it is what training runs. `state` may be of arrays or, from
    `training.state.abstract`, of shapes.
    """
    train_step = parts.train_step(optimizer, step.inputs, step.null_condition)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    options = compiler_options(parts.mesh, parts.experiment.train.overlap, prefix="config.train.")
    jitted = jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(shardings, None),
        compiler_options=options or None,
    )
    # A collection amid a trace, which leaves little garbage and refers to all of it, takes up to
    # half a second.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return jitted.lower(state, step.batch, step.frozen)
    finally:
        if was_enabled:
            gc.enable()
