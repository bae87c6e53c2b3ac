"""The random keys of a network's initial weights."""

import jax
from flax import nnx


class InitKeys(nnx.Rngs):
    """Keys as `nnx.Rngs(params=key)` gives them, `fold_in(key, i)` for the i-th, counted in Python.

    nnx.Rngs counts in an array. While a network is traced (`eval_shape`, `jit`), it asks the count
    for its sharding, and JAX answers with an error whose message prints the program so far: this
    was four fifths of the time that U-ViT-H took to be built, and 2.5 s of every job's start.
    """

    def __init__(self, key: jax.Array | int):
        super().__init__()
        self.key = jax.random.key(key) if isinstance(key, int) else key
        self.drawn = 0

    def params(self) -> jax.Array:
        """The next key."""
        self.drawn += 1
        return jax.random.fold_in(self.key, self.drawn - 1)
