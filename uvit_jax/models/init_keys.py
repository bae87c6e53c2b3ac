"""The random keys of a network's initial weights."""

import jax
from flax import nnx


class InitKeys(nnx.Rngs):
    """`nnx.Rngs(params=key)`, whose keys `fold_in(key, i)` are counted in Python.

    nnx.Rngs counts in an array. While a network is traced (`eval_shape`, `jit`), it asks the count
    for its sharding, and JAX answers with an error whose message prints the program so far: this
    was four fifths of the time that U-ViT-H took to be built, and 2.5 s of every job's start.
    """

    def __init__(self, key: jax.Array | int):
        super().__init__()
        self.params = _CountedInPython(key, tag="params")


class _CountedInPython(nnx.RngStream):
    def __init__(self, key: jax.Array | int, *, tag: str):
        super().__init__(key, tag=tag)
        self.drawn = 0

    def __call__(self) -> jax.Array:
        self.drawn += 1
        return jax.random.fold_in(self.key[...], self.drawn - 1)
