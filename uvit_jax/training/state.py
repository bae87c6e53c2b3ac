"""Everything that training changes, as one tree of arrays that is born on the mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from uvit_jax.models.uvit_sharding import RULES
from uvit_jax.parallel.sharding import tree_shardings
from uvit_jax.randomness import Stream, stream_key

# Names (and positions in lists) to arrays or to further such dicts.
Params = dict[Any, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state after `step` updates: parameters, their exponential moving average and the
    optimizer's moments.

    Its leaves are arrays (step is an int32 scalar), or whatever a `jax.tree.map` over it makes:
    shapes, shardings.
    """

    step: Any
    params: Params
    ema: Params
    opt_state: optax.OptState


def create(
    init_params: Callable[[Array], Params], optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """The state before the first update: the EMA starts as a copy of the parameters."""
    params = init_params(stream_key(seed, Stream.INIT))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
    )


def abstract(
    init_params: Callable, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state, with no array made."""
    shapes = jax.eval_shape(lambda: create(init_params, optimizer, 0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh, RULES),
    )


def create_sharded(
    init_params: Callable, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh
) -> TrainState:
    """`create` under jit, each device making only its own part: no host ever holds the whole model."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract(init_params, optimizer, mesh))
    return jax.jit(lambda: create(init_params, optimizer, seed), out_shardings=shardings)()
