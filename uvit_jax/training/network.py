"""A U-ViT for training and sampling: a pure function of a plain tree of parameters."""

from collections.abc import Callable

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from uvit_jax.models.init_keys import InitKeys
from uvit_jax.models.placement import ONE_DEVICE
from uvit_jax.models.uvit import UViT, UViTConfig
from uvit_jax.models.uvit_sharding import RULES
from uvit_jax.parallel.mesh_placement import MeshPlacement
from uvit_jax.training.state import Params

# network(params, x, model_time, condition) -> prediction; the condition: labels, text states, None.
Network = Callable[[Params, Array, Array, Array | None], Float[Array, "b h w c"]]

# Their parameters are all-gathered one block at a time, inside the model.
_BLOCKS = ("in_blocks", "mid_block", "out_blocks")


def abstract_network(
    config: UViTConfig, mesh: Mesh | None = None
) -> tuple[nnx.GraphDef[UViT], Network, Callable[[Array], Params]]:
    """Splits the model once, with no array made, for one device or for a mesh.

    Returns:
      graphdef: `nnx.merge(graphdef, params)` is the model.
      network: `network(params, x, model_time, condition)`, the model as a pure function.
      init_params: `init_params(key)`, fresh parameters; run it under jit.
    """
    placement = ONE_DEVICE if mesh is None else MeshPlacement(mesh, RULES)
    graphdef, _ = nnx.split(
        nnx.eval_shape(lambda: UViT(config, rngs=InitKeys(0), placement=placement))
    )
    kind = "label" if config.num_classes else "context"

    def network(
        params: Params, x: Array, model_time: Array, condition: Array | None
    ) -> Float[Array, "b h w c"]:
        conditions = {} if condition is None else {kind: condition}
        outer = placement.weights(
            {name: part for name, part in params.items() if name not in _BLOCKS},
            config.compute_dtype,
        )
        params = params | outer
        return nnx.merge(graphdef, params)(x, model_time, **conditions)

    def init_params(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.state(UViT(config, rngs=InitKeys(key))))

    return graphdef, network, init_params
