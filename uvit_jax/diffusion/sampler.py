"""A schedule, guidance and a solver as one compiled call: labels in, samples out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from uvit_jax.diffusion import guidance
from uvit_jax.diffusion.adaptive import did_not_converge
from uvit_jax.diffusion.predictions import check_prediction
from uvit_jax.diffusion.sampler_config import SamplerConfig
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.start import check_carries
from uvit_jax.diffusion.tableau import Trajectory
from uvit_jax.errors import UserError
from uvit_jax.randomness import Stream, stream_key

Network = Callable[[Any, Float[Array, "n h w c"], Float[Array, " n"], Any], Float[Array, "n h w c"]]
# Rows have another name here, so that `_check` and not jaxtyping refuses a wrong number of them.
Condition = (
    Int[Array, "rows"]
    | Float[Array, "rows l d"]
    | Int[np.ndarray, "rows"]
    | Float[np.ndarray, "rows l d"]
    | None
)
Indices = Int[Array, "n"] | Int[np.ndarray, "n"]

# The generator, always: under vmap the numbers of the faster ones depend on the batch.
_IMPL = "threefry2x32"


class Sampler:
    """Draws samples of one shape with one compiled program (two where guidance is sometimes off).

    Sample i depends on (seed, i) alone: its initial noise and every later draw come from key i of
    their stream, never from its place in the batch, the batch's size or the number of devices.
    Where the network's products are in 8 bits (UViTConfig.dtype = "fp8") it depends on its batch a
    little: activations are scaled by the largest of the batch.

    >>> from uvit_jax.diffusion.schedules import VPLinear
    >>> def network(params, x, model_time, condition):  # predicts the noise of this dummy's data
    ...     return params * x
    >>> sampler = Sampler(network, VPLinear(), (4, 4, 1), config=SamplerConfig(steps=5))
    >>> samples = sampler(jnp.float32(0.5), seed=0, indices=np.arange(3))
    >>> samples.shape
    (3, 4, 4, 1)
    >>> one = sampler(jnp.float32(0.5), seed=0, indices=np.array([2]))  # sample 2, whatever batch
    >>> bool(jnp.allclose(one[0], samples[2]))
    True
    """

    def __init__(
        self,
        network: Network,
        schedule: Schedule,
        sample_shape: tuple[int, ...],
        *,
        config: SamplerConfig,
        prediction: str = "noise",
        null_condition: Any = None,
        sharding: jax.sharding.NamedSharding | None = None,
        return_trajectory: bool = False,
        weak_network: Network | None = None,
        compiler_options: dict[str, bool] | None = None,
    ):
        """A sampler; nothing is compiled before its first call.

        Args:
          network: `network(params, x, model_time, condition)`, which returns a prediction like x.
          schedule: that the network was trained with.
          sample_shape: of one sample, (h, w, c).
          config: solver, steps and guidance.
          prediction: of the network: "noise", "x0", "v" or "flow".
          null_condition: the empty label (int), the empty context [l, d], or None where there is
            none and hence no classifier-free guidance.
          sharding: of the batch, over the devices.
          return_trajectory: True to return all states beside the samples.
          weak_network: the network that autoguidance leads away from.
          compiler_options: `jax.jit`'s.

        Raises:
          UserError: for an unknown prediction, a trajectory asked of the adaptive method, or
            autoguidance without a weak network.
        """
        check_prediction(prediction)
        check_carries(schedule, config.t_start, prediction)
        if return_trajectory and config.adaptive:
            raise UserError("return_trajectory is True, but method 'adaptive' keeps no trajectory")
        if config.guidance == "autoguidance" and weak_network is None:
            raise UserError("guidance is 'autoguidance', which needs a weak_network, found None")
        self._network, self._weak_network = network, weak_network
        self._schedule, self._shape, self._config = schedule, tuple(sample_shape), config
        self._prediction, self._null_condition = prediction, null_condition
        self._sharding, self._return_trajectory = sharding, return_trajectory
        self._program = jax.jit(
            self._draw, static_argnames="guided", compiler_options=compiler_options
        )

    def __call__(
        self,
        params: Any,
        *,
        seed: int,
        indices: Indices,
        condition: Condition = None,
        guidance_scale: float = 0.0,
        weak_params: Any = None,
    ) -> Float[Array, "n h w c"] | tuple[Float[Array, "n h w c"], Trajectory]:
        """Samples number `indices` of `seed` `[n, h, w, c]`, float32; perhaps with all states.

        Changing params, seed, indices, condition or scale compiles nothing.

        Args:
          params: first argument of the network.
          seed: 0 to 2^32 - 1.
          indices: numbers of the samples `[n]`.
          condition: labels [n], contexts [n, l, d], or None.
          guidance_scale: the paper's s; exactly 0 runs the network on n rows, not 2n.
          weak_params: of the weak network, for autoguidance.

        Raises:
          UserError: for a scale without a null condition, a condition of another length, a batch
            the devices don't divide, or an adaptive solve that does not converge.
        """
        guided = guidance_scale != 0.0
        self._check(seed, indices, condition, guided)
        arrays = jax.tree.map(self._on_devices, (indices, condition))
        result: Array | tuple[Array, Trajectory] = self._program(
            params, weak_params, np.uint32(seed), *arrays, np.float32(guidance_scale), guided=guided
        )
        if self._config.adaptive:
            assert not isinstance(result, tuple)  # an adaptive solve has no trajectory
            if bool(jnp.any(jnp.isnan(result))):
                raise did_not_converge(self._config.options.tolerances)
        return result

    def _on_devices(self, rows: Any) -> Any:
        """Each device's part of an array that every process holds whole."""
        # Not `device_put`, which would compare the array over all hosts first.
        if self._sharding is None:
            return rows
        host = np.asarray(rows)
        return jax.make_array_from_callback(host.shape, self._sharding, lambda index: host[index])

    def lower(
        self, params: Any, *, rows: int, condition: Any = None, guided: bool = False
    ) -> jax.stages.Lowered:
        """The program that draws samples, lowered from shapes; nothing runs.

        Its `.compile()` can be for devices that this machine does not have.

        Args:
          params: tree of `jax.ShapeDtypeStruct`.
          rows: samples in a batch.
          condition: tree of `jax.ShapeDtypeStruct`, or None.
          guided: True for the program with guidance.
        """
        indices = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=self._sharding)
        seed, scale = jax.ShapeDtypeStruct((), jnp.uint32), jax.ShapeDtypeStruct((), jnp.float32)
        return self._program.lower(params, None, seed, indices, condition, scale, guided=guided)

    def _check(self, seed: int, indices: Indices, condition: Condition, guided: bool) -> None:
        if not 0 <= seed < 2**32:
            raise UserError(f"seed is {seed}, expected an integer from 0 to 2**32 - 1")
        rows = indices.shape[0]
        if condition is not None and condition.shape[0] != rows:
            raise UserError(
                f"condition has {condition.shape[0]} rows, expected {rows}, one for each index"
            )
        if guided and self._config.guidance == "classifier_free":
            for name, value in (("null_condition", self._null_condition), ("condition", condition)):
                if value is None:
                    raise UserError(
                        f"guidance_scale is not 0, but {name} is None: this model has nothing to "
                        f"guide with"
                    )
        if self._sharding is not None and not _divides(self._sharding, rows):
            raise UserError(
                f"the batch has {rows} rows, expected a number that {self._sharding.spec} divides "
                f"evenly"
            )

    def _draw(
        self,
        params: Any,
        weak_params: Any,
        seed: Any,
        indices: Any,
        condition: Any,
        scale: Any,
        *,
        guided: bool,
    ) -> Any:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            stream_key(seed, Stream.SAMPLE, _IMPL), indices
        )
        first, later = (jax.vmap(jax.random.fold_in, (0, None))(keys, stream) for stream in (0, 1))
        std = float(self._schedule.prior_std(np.float64(self._config.t_start)))
        x_T = self._place(std * jax.vmap(lambda own: jax.random.normal(own, self._shape))(first))
        predict = self._predict(params, weak_params, condition, scale, guided)
        result = self._config.solve(
            predict,
            x_T,
            self._schedule,
            prediction=self._prediction,
            key=later,
            return_trajectory=self._return_trajectory,
        )
        if self._return_trajectory:
            samples, (states, times) = result
            return self._place(samples), Trajectory(self._place(states, batch_axis=1), times)
        return self._place(result)

    def _predict(
        self, params: Any, weak_params: Any, condition: Any, scale: Any, guided: bool
    ) -> Any:
        def ask(network: Any, weights: Any, x: Any, t: Any, c: Any) -> Any:
            return network(weights, x, self._schedule.model_time(t), c).astype(x.dtype)

        def plain(x: Any, t: Any) -> Any:
            return ask(self._network, params, x, t, condition)

        if not guided:
            return plain
        options: Any = {
            "interval": self._config.guidance_interval,
            "rescale": self._config.guidance_rescale,
        }
        if self._config.guidance == "autoguidance":
            weak = lambda x, t: ask(self._weak_network, weak_params, x, t, condition)  # noqa: E731
            return guidance.autoguidance(plain, weak, scale, **options)
        null = jnp.broadcast_to(jnp.asarray(self._null_condition, condition.dtype), condition.shape)
        both = lambda x, t, c: ask(self._network, params, x, t, c)  # noqa: E731
        return guidance.classifier_free(both, condition, null, scale, **options)

    def _place(self, x: Any, batch_axis: int = 0) -> Any:
        if self._sharding is None:
            return x
        spec = jax.sharding.PartitionSpec(*[None] * batch_axis, *self._sharding.spec)
        return jax.lax.with_sharding_constraint(
            x, jax.sharding.NamedSharding(self._sharding.mesh, spec)
        )


def _divides(sharding: jax.sharding.NamedSharding, rows: int) -> bool:
    try:
        sharding.shard_shape((rows,))
    except ValueError:
        return False
    return True
