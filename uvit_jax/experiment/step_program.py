"""The train step as a program: what it reads, from a data set or from the config alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Float

from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.data.training_data import BUILT_IN, TrainingData
from uvit_jax.experiment.assembled import Assembled
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.opened import stored_kind
from uvit_jax.models.latents import Normalization
from uvit_jax.models.uvit_config import UViTConfig
from uvit_jax.parallel.compiler import compiler_options
from uvit_jax.training import step as training_step
from uvit_jax.training.inputs import Inputs, encoded, latents, pixels
from uvit_jax.training.network import Network
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.optimizer_config import OptimizerConfig
from uvit_jax.training.state import TrainState, abstract
from uvit_jax.training.step import Objective, TrainStep, make_train_step


@dataclasses.dataclass(frozen=True)
class StepInputs:
    """Inputs of the train step beside its state.

    Attributes:
      inputs: makes of stored examples what the network learns (`training.inputs`).
      batch: shapes, dtypes and shardings of a batch.
      null_condition: states of the empty text where the step drops texts; None for labels, whose
        empty one is the config's.
      frozen: parameters that `inputs` needs (an autoencoder's), or their shapes.
    """

    inputs: Inputs
    batch: dict[str, jax.ShapeDtypeStruct]
    null_condition: Any = None
    frozen: Any = None


def batch_fields(model: UViTConfig) -> tuple[str, ...]:
    """Names of the arrays of an example that the step reads."""
    if model.context_dim:
        return "x", "context"
    return ("x", "label") if model.num_classes else ("x",)


def abstract_inputs(experiment: Experiment, sharding: NamedSharding) -> StepInputs:
    """The inputs of a step on a data set prepared for this config, none of which is opened.

    They are moments where the config names an autoencoder, else pixels; and labels or states of
    texts. Moments and states have the dtype that `config.prepare.dtype` stores, pixels are bytes.

    An autoencoder without a variance stores half of what is counted here, one number a latent.
    Where `config.prepare.latents` is False, the autoencoder's own work in the step is left out.
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
        dtype = jnp.dtype(jnp.float32 if experiment.data.source in BUILT_IN else jnp.uint8)
        shape, inputs = model.sample_shape, pixels
    arrays = {
        "x": _shape(shape, dtype),
        "label": _shape((), jnp.int32),
        "context": _shape((model.context_length, model.context_dim), stored),
    }
    example = {name: arrays[name] for name in batch_fields(model)}
    batch = _batch_of(example, experiment.train.batch_size, sharding)
    null = null_context(model, experiment.diffusion.p_uncond, stored)
    return StepInputs(inputs, batch, null)


def source_inputs(
    assembled: Assembled, source: TrainingData, *, batch_size: int, drops_conditions: bool
) -> StepInputs:
    """The inputs of a step on batches of a data set.

    drops_conditions: True if the step replaces some conditions by the empty one.
    """
    model, codec, kind = assembled.model, assembled.codec, stored_kind(source)
    normalization, frozen = assembled.card.normalization, None
    inputs: Inputs = pixels
    if normalization is not None and kind != "pixels":
        inputs = latents(kind, normalization)
    elif normalization is not None:
        assert codec is not None  # a card of pixels has a normalization only with an autoencoder
        inputs, frozen = encoded(codec.encode, codec.kind, normalization), codec.params
    null = None
    if model.context_dim and drops_conditions and isinstance(source, PreparedData):
        null = source.empty_context
    read = source.read(np.zeros(1, np.int64), np.zeros(1, bool), fields=batch_fields(model))
    example = {name: read[name][0] for name in batch_fields(model)}
    batch = _batch_of(example, batch_size, assembled.batch_sharding)
    return StepInputs(inputs, batch, null, frozen)


def _shape(
    shape: tuple[int, ...], dtype: DTypeLike, sharding: NamedSharding | None = None
) -> jax.ShapeDtypeStruct:
    # jax's constructor has no annotations.
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)  # type: ignore[no-untyped-call,unused-ignore]


def _batch_of(
    example: Mapping[str, Any], size: int, sharding: NamedSharding
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch, from the arrays of one example or their shapes."""
    return {
        name: _shape((size, *array.shape), array.dtype, sharding=sharding)
        for name, array in example.items()
    }


def null_context(
    model: UViTConfig, p_uncond: float, dtype: DTypeLike
) -> Float[np.ndarray, "l d"] | None:
    """Zeros in place of the empty text's states; None for a model that drops no texts."""
    if not (model.context_dim and p_uncond):
        return None
    return np.zeros((model.context_length, model.context_dim), jnp.dtype(dtype))


def abstract_state(
    assembled: Assembled, config: OptimizerConfig, steps: int
) -> tuple[optax.GradientTransformation, TrainState]:
    """The optimizer of a run of so many steps, and shapes and shardings of the state it updates."""
    optimizer = make_optimizer(config, steps)
    return optimizer, abstract(assembled.init_params, optimizer, assembled.mesh)


def make_step(
    experiment: Experiment,
    network: Network,
    optimizer: optax.GradientTransformation,
    step: StepInputs,
) -> TrainStep:
    """Builds `train_step(state, batch, frozen) -> (state, metrics)` of the config, not jitted."""
    null = experiment.null_label if step.null_condition is None else step.null_condition
    objective = Objective(
        experiment.diffusion.make_schedule(),
        prediction=experiment.diffusion.prediction,
        weighting=experiment.diffusion.weighting,
        p_uncond=experiment.diffusion.p_uncond,
        null_condition=null,
    )
    return make_train_step(
        network,
        objective,
        optimizer,
        ema_rate=experiment.ema.rate,
        seed=experiment.train.seed,
        inputs=step.inputs,
        microbatches=experiment.train.microbatches,
    )


def lower_train_step(
    experiment: Experiment,
    assembled: Assembled,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    step: StepInputs,
) -> jax.stages.Lowered:
    """The program of the config's train step, as `training.step.lower_train_step` gives it.

    `state` may be of arrays or, from `training.state.abstract`, of shapes.
    """
    return training_step.lower_train_step(
        make_step(experiment, assembled.network, optimizer, step),
        state,
        step.batch,
        step.frozen,
        compiler_options=compiler_options(
            assembled.mesh, experiment.train.overlap, prefix="config.train."
        ),
    )
