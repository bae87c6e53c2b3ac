"""Small U-ViTs with drawn parameters, one for each ablation of the paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.reference_weights import draw
from uvit_jax.models.init_keys import InitKeys
from uvit_jax.models.uvit import UViT, UViTConfig
from uvit_jax.parallel.sharding import path_name

TINY = {"image_size": 8, "in_channels": 2, "embed_dim": 16, "depth": 5, "num_heads": 2}
LABELS, TEXT = {"num_classes": 4}, {"context_dim": 6, "context_length": 3}
# Images of 15 and 13 patches, so that every sequence is 17 tokens long: operations run one by one
# and each compiles once for all ablations.
LABEL_TOKEN, TEXT_TOKENS = LABELS | {"image_size": (6, 10)}, TEXT | {"image_size": (2, 26)}
ABLATIONS = {
    "unconditional": {},
    "label_not_square": LABEL_TOKEN,
    "text_not_square": TEXT_TOKENS,
    "skip_add_then_linear": {"skip": "add_then_linear"},
    "skip_linear_then_add": {"skip": "linear_then_add"},
    "skip_add": {"skip": "add"},
    "skip_none": {"skip": "none"},
    "adaln": LABELS | {"time": "adaln"},
    "conv_before_not_square": LABEL_TOKEN | {"conv": "before"},
    "conv_none": {"conv": "none"},
    "conv_stack": {"patch_embed": "conv_stack", "image_size": 16, "patch_size": 4},
    "conv_stack_of_one": {"patch_embed": "conv_stack", "image_size": 4, "patch_size": 1},
    "sincos_2d": LABEL_TOKEN | {"pos_embed": "sincos_2d"},
    "time_mlp": {"time_mlp": True},
    "qkv_bias": {"qkv_bias": True},
    "depth_1": {"depth": 1},
    "mlp_ratio": {"mlp_ratio": 1.5, "depth": 1},
}
# Compiling these small things takes longer than running them.
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Tiny:
    """A small U-ViT with drawn parameters (none zero: a missing bias would show) and one batch for
    it.
    """

    def __init__(self, **fields):
        self.config = UViTConfig(**TINY | fields)
        self.graphdef, state = nnx.split(
            nnx.eval_shape(lambda: UViT(self.config, rngs=InitKeys(0)))
        )
        self.shapes = nnx.to_pure_dict(state)
        self.x, self.t = (
            draw("x", (2, *self.config.sample_shape)),
            np.array([3.0, 412.0], np.float32),
        )
        self.condition = {}
        if self.config.num_classes:
            self.condition = {"label": np.array([0, 3], np.int32)}
        elif self.config.context_dim:
            self.condition = {
                "context": draw("context", (2, self.config.context_length, self.config.context_dim))
            }

    @functools.cached_property
    def params(self):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.asarray(0.25 * draw(path_name(path), leaf.shape)), self.shapes
        )

    @property
    def paths(self) -> dict[str, tuple[int, ...]]:
        return {
            path_name(path): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(self.shapes)
        }

    def output(self, params=None, t=None) -> jax.Array:
        params, t = self.params if params is None else params, self.t if t is None else t
        return nnx.merge(self.graphdef, params)(self.x, t, **self.condition)

    def plain_output(self, params=None) -> jax.Array:
        params = self.params if params is None else params
        return nnx.merge(self.graphdef, params).plain(self.x, self.t, **self.condition)

    def loss(self, params, output=None) -> jax.Array:
        prediction = (output or self.output)(params)
        return jnp.mean((prediction - draw("target", self.x.shape)) ** 2)


@functools.cache
def _tiny(fields: tuple) -> Tiny:
    return Tiny(**dict(fields))


def tiny_model(**fields) -> Tiny:
    """The model of these fields; made once."""
    return _tiny(tuple(fields.items()))
