"""A published layout as a table: each array's name, its shapes, and its place in our network.

Tables of whole networks are made of `vector`, `linear`, `norm` and `convolution`, and read by
`read_layout`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

from uvit_jax.interop.state_dict import Arrays, KeyPath, StateDict, check_names, checked_array
from uvit_jax.models.init_keys import InitKeys

Map = Callable[[np.ndarray], np.ndarray]


def unchanged(array: np.ndarray) -> np.ndarray:
    """Returns the array; the map of one that has the same layout here and there."""
    return array


def _from_oihw(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0))


def _to_oihw(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One published array.

    Attributes:
      path: its path in our network's state.
      shape: its published shape, which `to_ours` takes.
      to_ours: from the published array to ours.
      to_published: from ours to the published array, the inverse of `to_ours`.
      other_shapes: shapes that some files have in place of `shape`, with as many elements.
    """

    path: KeyPath
    shape: tuple[int, ...]
    to_ours: Map = unchanged
    to_published: Map = unchanged
    other_shapes: tuple[tuple[int, ...], ...] = ()


Layout = dict[str, Entry]


def read_layout(state_dict: StateDict, layout: Layout, fault: str) -> Arrays:
    """The arrays of a state dict in our layout, float32, by our paths.

    Raises:
      UserError: for an array missing or one too many, in a sentence that opens with `fault`; for
        one of another shape, of integers or with NaN, which the sentence names.
    """
    check_names(state_dict, layout, fault)
    arrays = {}
    for name, entry in layout.items():
        array = checked_array(name, state_dict[name], entry.shape, *entry.other_shapes)
        arrays[entry.path] = entry.to_ours(array.reshape(entry.shape))
    return arrays


def vector(name: str, path: KeyPath, size: int) -> Layout:
    """A one-dimensional array, such as a bias."""
    return {name: Entry(path, (size,))}


def linear(name: str, path: KeyPath, d_in: int, d_out: int) -> Layout:
    """PyTorch's Linear, weight `[out, in]` and bias, as a kernel `[in, out]` and a bias."""
    weight = Entry((*path, "kernel"), (d_out, d_in), np.transpose, np.transpose)
    return {f"{name}.weight": weight, **vector(f"{name}.bias", (*path, "bias"), d_out)}


def norm(name: str, path: KeyPath, d: int) -> Layout:
    """PyTorch's LayerNorm or GroupNorm, weight and bias, as a scale and a bias."""
    return {
        **vector(f"{name}.weight", (*path, "scale"), d),
        **vector(f"{name}.bias", (*path, "bias"), d),
    }


def convolution(
    name: str, path: KeyPath, c_in: int, c_out: int, *, kernel: int = 3, bias: bool = True
) -> Layout:
    """PyTorch's Conv2d, weight `[out, in, h, w]` and bias, as a kernel `[h, w, in, out]`."""
    shape = (c_out, c_in, kernel, kernel)
    layout = {f"{name}.weight": Entry((*path, "kernel"), shape, _from_oihw, _to_oihw)}
    return layout | vector(f"{name}.bias", (*path, "bias"), c_out) if bias else layout


def graphdef_of(make: Callable[[nnx.Rngs], Any]) -> nnx.GraphDef:
    """A network without its arrays: only shapes are computed, no random weights are drawn."""
    return nnx.graphdef(nnx.eval_shape(lambda: make(InitKeys(0))))
