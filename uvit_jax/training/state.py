"""Everything that training changes, as one tree of arrays, created sharded on the mesh."""

import dataclasses
import functools
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

# Names (and positions in lists) to arrays or to further such dicts; shapes or shardings likewise.
Params = dict[Any, Any]
# init_params(key): fresh parameters.
InitParams = Callable[[Array], Params]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state after `step` updates: parameters, their moving average, the optimizer's moments.

    Its leaves are arrays (step is an int32 scalar), or, after a `jax.tree.map`, their shapes or
    shardings.
    """

    step: Any
    params: Params
    ema: Params
    opt_state: optax.OptState


def create(
    init_params: InitParams, optimizer: optax.GradientTransformation, seed: int
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
    init_params: InitParams, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state; makes no array."""
    shapes = jax.eval_shape(lambda: create(init_params, optimizer, 0))
    state: TrainState = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh, RULES),
    )
    return state


def create_sharded(
    init_params: InitParams,
    optimizer: optax.GradientTransformation,
    seed: int,
    template: TrainState,
) -> TrainState:
    """`create` under jit: each device makes its own part, and no host holds the whole model.

    template: the state's shardings, from `abstract`.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)

    @functools.partial(jax.jit, out_shardings=shardings)
    def init() -> TrainState:
        return create(init_params, optimizer, seed)

    state: TrainState = init()
    return state
