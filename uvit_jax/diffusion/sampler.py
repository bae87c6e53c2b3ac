"""A schedule, guidance and a solver as one compiled call: labels in, samples out."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from uvit_jax.diffusion import guidance
from uvit_jax.diffusion.adaptive import Tolerances, did_not_converge
from uvit_jax.diffusion.ddim import check_eta, ddim, ddpm
from uvit_jax.diffusion.dpm_solver import check_arguments, sample
from uvit_jax.diffusion.exponential import ALGORITHMS
from uvit_jax.diffusion.heun import heun
from uvit_jax.diffusion.predictions import check_prediction
from uvit_jax.diffusion.schedules import Schedule
from uvit_jax.diffusion.sde import euler_maruyama
from uvit_jax.diffusion.spacing import SPACINGS, check_carries, check_ends
from uvit_jax.diffusion.tableau import Threshold, Trajectory, check_steps
from uvit_jax.errors import UserError
from uvit_jax.randomness import Stream, stream_key

Network = Callable[[Any, Float[Array, "n h w c"], Float[Array, " n"], Any], Float[Array, "n h w c"]]
# Rows have a name of their own here, so that a wrong number of them is told by `_check`.
Condition = (
    Int[Array, "rows"]
    | Float[Array, "rows l d"]
    | Int[np.ndarray, "rows"]
    | Float[np.ndarray, "rows l d"]
    | None
)
Indices = Int[Array, "n"] | Int[np.ndarray, "n"]

SOLVERS = (*ALGORITHMS, "euler_maruyama", "euler_ode", "ddim", "heun", "ddpm")
_IMPL = "threefry2x32"  # whatever the default: under vmap the faster generators' numbers depend on the batch
# Largest step of the adaptive method in lambda. At the default tolerances every order then errs by
# less than 2 % in the deviation of N(0.7, 0.4^2), in 42 to 69 evaluations
# (`benchmarks/solver_bias.py exact`).
MAX_STEP = 0.5
THRESHOLDING_SOLVERS = ("dpmsolver++", "sde-dpmsolver++", "ddim", "ddpm")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How samples are made; every field is a plain value, so that it can be set from a command
    line.

    solver, method, order, spacing and the rest as in `dpm_solver.sample` (method, order,
    solver_type and lower_order_final concern the DPM-Solvers alone); `eta` is DDIM's, `atol`,
    `rtol` and `max_evaluations` the adaptive method's, which gives every sample steps of its own.
    guidance: "classifier_free" or "autoguidance", acting where guidance_low <= t <= guidance_high,
    with guidance_rescale. Sampling begins at t_start, or a little later where alpha vanishes there
    (`spacing.first_time`). Raises UserError for a value outside what is known.
    """

    solver: str = "dpmsolver++"
    method: str = "multistep"
    order: int = 2
    steps: int = 50
    spacing: str = "time_uniform"
    t_start: float = 1.0
    t_end: float = 1e-3
    lower_order_final: bool = True
    solver_type: str = "dpmsolver"
    denoise_to_zero: bool = False
    thresholding: bool = False
    thresholding_ratio: float = 0.995
    thresholding_max: float = 1.0
    eta: float = 0.0
    atol: float = 0.0078
    rtol: float = 0.05
    max_evaluations: int = 3000
    guidance: str = "classifier_free"
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    guidance_rescale: float = 0.0

    def __post_init__(self) -> None:
        for field, known in (
            ("solver", SOLVERS),
            ("spacing", SPACINGS),
            ("guidance", guidance.KINDS),
        ):
            if getattr(self, field) not in known:
                raise UserError(
                    f"{field} is {getattr(self, field)!r}, expected one of {', '.join(known)}"
                )
        check_ends(self.t_start, self.t_end)
        if not 0 <= self.guidance_low < self.guidance_high <= 1:
            raise UserError(
                f"guidance_low is {self.guidance_low} and guidance_high {self.guidance_high}, "
                "expected 0 <= guidance_low < guidance_high <= 1"
            )
        guidance.check_rescale(self.guidance_rescale)
        if self.solver in ALGORITHMS:
            check_arguments(
                steps=self.steps,
                algorithm=self.solver,
                method=self.method,
                order=self.order,
                solver_type=self.solver_type,
                prediction="noise",
                thresholding=self.thresholding,
            )
        else:
            check_steps(self.steps, at_least=1 if self.solver in ("ddim", "heun") else 2)
        if self.thresholding and self.solver not in THRESHOLDING_SOLVERS:
            raise UserError(
                f"thresholding needs a solver among {', '.join(THRESHOLDING_SOLVERS)}, found "
                f"{self.solver!r}"
            )
        Threshold(self.thresholding_ratio, self.thresholding_max)
        check_eta(self.eta)
        for field in ("atol", "rtol"):
            if not 0 <= getattr(self, field) < math.inf:
                raise UserError(
                    f"{field} is {getattr(self, field)}, expected 0 or more, and finite"
                )
        if not self.atol and not self.rtol:
            raise UserError("atol and rtol are both 0, expected one of them above 0")
        if self.max_evaluations < 1:
            raise UserError(f"max_evaluations is {self.max_evaluations}, expected at least 1")

    @property
    def adaptive(self) -> bool:
        """Whether the solver chooses its own steps."""
        return self.solver in ALGORITHMS and self.method == "adaptive"

    @property
    def evaluations(self) -> int | None:
        """Network evaluations to a sample (NFE), a guided one counted once; None where the solver
        chooses.
        """
        if self.adaptive:
            return None
        fixed = self.solver in ALGORITHMS and self.method == "singlestep_fixed"
        steps = self.steps // self.order * self.order if fixed else self.steps
        # The others end at time 0 whether they are asked to or not.
        return steps + (self.denoise_to_zero and self.solver in (*ALGORITHMS, "ddim", "heun"))

    @property
    def guidance_interval(self) -> tuple[float, float] | None:
        """The interval in t, None where guidance acts everywhere."""
        interval = (self.guidance_low, self.guidance_high)
        return None if interval == (0.0, 1.0) else interval

    def solve(
        self,
        predict: Any,
        x_T: Any,
        schedule: Schedule,
        *,
        prediction: str,
        key: Any,
        return_trajectory: bool,
    ) -> Any:
        """Runs the solver on predict(x, t), which returns a `prediction`."""
        shared: dict[str, Any] = {
            "steps": self.steps,
            "spacing": self.spacing,
            "t_start": self.t_start,
            "t_end": self.t_end,
            "prediction": prediction,
            "return_trajectory": return_trajectory,
        }
        threshold = (
            Threshold(self.thresholding_ratio, self.thresholding_max) if self.thresholding else None
        )
        if self.solver == "heun":
            return heun(predict, x_T, schedule, denoise_to_zero=self.denoise_to_zero, **shared)
        if self.solver == "ddim":
            options: dict[str, Any] = {
                "eta": self.eta,
                "denoise_to_zero": self.denoise_to_zero,
                "threshold": threshold,
            }
            return ddim(predict, x_T, schedule, key=key, **options, **shared)
        if self.solver == "ddpm":
            return ddpm(predict, x_T, schedule, key=key, threshold=threshold, **shared)
        if self.solver in ("euler_maruyama", "euler_ode"):
            return euler_maruyama(
                predict, x_T, schedule, key=key, ode=self.solver == "euler_ode", **shared
            )
        return sample(
            predict,
            x_T,
            schedule,
            algorithm=self.solver,
            method=self.method,
            order=self.order,
            lower_order_final=self.lower_order_final,
            solver_type=self.solver_type,
            denoise_to_zero=self.denoise_to_zero,
            thresholding=self.thresholding,
            thresholding_ratio=self.thresholding_ratio,
            thresholding_max=self.thresholding_max,
            key=key,
            tolerances=self.tolerances,
            **shared,
        )

    @property
    def tolerances(self) -> Tolerances:
        """The adaptive method's: steps of each example's own, so that no sample depends on its
        batch, and no step above MAX_STEP.
        """
        return Tolerances(
            atol=self.atol,
            rtol=self.rtol,
            max_evaluations=self.max_evaluations,
            per_example=True,
            max_step=MAX_STEP,
        )


class Sampler:
    """Draws samples of one shape with one compiled program (two where guidance is sometimes off).

    Sample i depends on (seed, i) alone: its initial noise and every later draw come from key i of
    their stream, never from its place in the batch, the batch's size or the number of devices.
    Where the network's products are in 8 bits (UViTConfig.dtype = "fp8") it depends on its batch a
    little: activations are scaled by the largest of the batch.
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
        """`network(params, x, model_time, condition)` returns a `prediction` like x; `sample_shape`
        is that of one sample.

        null_condition: the empty label (int), the empty context [l, d], or None where there is none
        and hence no classifier-free guidance. sharding: how the batch is laid over the devices.
        weak_network: what autoguidance leads away from. compiler_options: `jax.jit`'s. Raises
        UserError for an unknown prediction, a trajectory asked of the adaptive method, or
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
        """Samples number `indices` of `seed`, in float32; with return_trajectory also the states
        from the noise to them.

        condition: labels [n], contexts [n, l, d], or None. guidance_scale: the paper's s; exactly 0
        runs the network on n rows, not 2n. Changing params, seed, indices, condition or scale
        compiles nothing. Raises UserError for a scale without a null condition, a condition of
        another length, a batch the devices don't divide, or an adaptive solve that does not
        converge.
        """
        guided = guidance_scale != 0.0
        self._check(seed, indices, condition, guided)
        arrays = jax.tree.map(self._on_devices, (indices, condition))
        result = self._program(
            params, weak_params, np.uint32(seed), *arrays, np.float32(guidance_scale), guided=guided
        )
        if self._config.adaptive and bool(jnp.any(jnp.isnan(result))):
            raise did_not_converge(self._config.tolerances)
        return result

    def _on_devices(self, rows: Any) -> Any:
        """Each device's part of what every process holds whole: `device_put` would compare it over
        all hosts first.
        """
        if self._sharding is None:
            return rows
        host = np.asarray(rows)
        return jax.make_array_from_callback(host.shape, self._sharding, lambda index: host[index])

    def lower(
        self, params: Any, *, rows: int, condition: Any = None, guided: bool = False
    ) -> jax.stages.Lowered:
        """The program that draws `rows` samples, from shapes alone: nothing runs, and `.compile()`
        of it can be for devices that are not there. `params` and `condition` are trees of
        `jax.ShapeDtypeStruct`.
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
