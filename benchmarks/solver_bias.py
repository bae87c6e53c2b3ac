"""Mean and deviation of the samples of every solver, schedule and prediction, against the data's.

    python benchmarks/solver_bias.py exact      # perfect networks, 100 evaluations, float32
    python benchmarks/solver_bias.py exact --steps 50 --spacing logsnr
    python benchmarks/solver_bias.py trained    # a small trained network, 50 evaluations

Ten minutes each on two CPU cores, most of it compilation. `exact` has two data sets whose noise
prediction is known: one Gaussian, N(0.7, 0.4^2), and a mixture of two. It prints the errors of the
mean (as a part of the larger of |mean| and deviation) and of the deviation that pass the limit.
`trained` trains a network of three layers on points around ten centres and prints deviations
outside 0.8 to 1.2 of the data's.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.stats import norm

from uvit_jax.diffusion.dpm_solver import ORDERS
from uvit_jax.diffusion.losses import denoising_loss
from uvit_jax.diffusion.predictions import PREDICTIONS
from uvit_jax.diffusion.sampler_config import SamplerConfig
from uvit_jax.diffusion.schedules import RectifiedFlow, Schedule, VPCosine, VPDiscrete, VPLinear
from uvit_jax.diffusion.start import check_carries
from uvit_jax.errors import UserError

SCHEDULES: dict[str, Schedule] = {
    "vp_linear": VPLinear(),
    "vp_cosine": VPCosine(),
    "stable_diffusion": VPDiscrete.stable_diffusion(),
    "rectified_flow": RectifiedFlow(),
}
DATA = {"one mode": ((0.7,), 0.4), "two modes": ((-0.8, 0.6), 0.25)}
FIRST_ORDER = ("ddim", "ddpm", "euler")  # solvers that may be off by twice as much
EXAMPLES, CENTRES = 40_000, np.random.default_rng(0).uniform(-0.9, 0.9, (10, 8))


def solvers(steps: int, spacing: str) -> Iterator[tuple[str, SamplerConfig]]:
    """Every solver, method and order, by name."""
    shared: dict[str, Any] = {"steps": steps, "spacing": spacing}
    for solver in ("dpmsolver++", "dpmsolver"):
        for method, orders in ORDERS.items():
            for order in orders:
                for kind in ("dpmsolver", "taylor")[: 1 if order == 1 else 2]:
                    name = f"{solver} {method} {order} {kind}"
                    # Of order 1 it is DDIM under another name.
                    name = f"ddim as {name}" if order == 1 else name
                    options: dict[str, Any] = {
                        "solver": solver,
                        "method": method,
                        "order": order,
                        "solver_type": kind,
                    }
                    yield name, SamplerConfig(**options, **shared)
    for order in (1, 2):
        name = "ddim 1 as sde-dpmsolver++ 1" if order == 1 else "sde-dpmsolver++ 2"
        yield name, SamplerConfig(solver="sde-dpmsolver++", order=order, **shared)
    for eta in (0.0, 0.5, 1.0):
        yield f"ddim {eta}", SamplerConfig(solver="ddim", eta=eta, **shared)
    for solver in ("ddpm", "heun", "euler_maruyama", "euler_ode"):
        yield solver, SamplerConfig(solver=solver, **shared)


def moments(
    predict: Callable,
    x_T: Any,
    schedule: Schedule,
    prediction: str,
    configs: dict[str, SamplerConfig],
    parts: int,
) -> dict[str, list[tuple[float, float]]]:
    """Mean and deviation of each solver's samples, a pair for each part of the rows."""
    key = jax.random.key(7)

    @jax.jit
    def draw(x: Any) -> Any:
        samples: dict[str, Any] = {
            name: config.solve(
                predict, x, schedule, prediction=prediction, key=key, return_trajectory=False
            )
            for name, config in configs.items()
        }
        return {
            name: [(p.mean(), p.std()) for p in jnp.split(y, parts)] for name, y in samples.items()
        }

    return {name: [(float(m), float(s)) for m, s in pairs] for name, pairs in draw(x_T).items()}


def exact(steps: int, spacing: str) -> None:
    """Prints the solvers whose samples of a perfect network are off."""
    quantiles = norm.ppf((jnp.arange(EXAMPLES) + 0.5) / EXAMPLES)
    x_T = jnp.tile(jax.random.permutation(jax.random.key(5), quantiles).reshape(4, -1), (2, 1))
    configs, count, outside = dict(solvers(steps, spacing)), 0, 0
    for schedule_name, schedule in SCHEDULES.items():
        for prediction in PREDICTIONS:
            predict = jax.jit(perfect(schedule, prediction))
            found = moments(predict, x_T, schedule, prediction, configs, len(DATA))
            for name, pairs in found.items():
                for (data, (modes, spread)), (mean, std) in zip(DATA.items(), pairs, strict=True):
                    true_mean = float(np.mean(modes))
                    true_std = float(np.hypot(spread, np.std(modes)))
                    errors = (mean - true_mean) / max(abs(true_mean), true_std), std / true_std - 1
                    limit = 0.04 if name.startswith(FIRST_ORDER) else 0.02
                    count += 1
                    if not max(map(abs, errors)) <= limit:
                        outside += 1
                        text = "mean {:+.1%}, deviation {:+.1%}".format(*errors)
                        print(
                            f"{schedule_name:16s} {prediction:5s} {data:9s} {name:42s} {text}",
                            flush=True,
                        )
    print(
        f"{steps} evaluations, {spacing}: {count - outside} of {count} within 2 % (DDIM, DDPM and "
        f"Euler 4 %)"
    )


def perfect(schedule: Schedule, prediction: str) -> Callable:
    """A perfect network; the first half of the rows are of the first data set."""

    def part(x: Any, t: Any, modes: tuple[float, ...], spread: float) -> Any:
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        variance = alpha**2 * spread**2 + sigma**2
        offsets = jnp.stack([x - alpha * mode for mode in modes])
        share = jax.nn.softmax(-0.5 * offsets**2 / variance, axis=0)
        noise = sigma * (share * offsets).sum(0) / variance
        centres = jnp.asarray(modes)[:, None, None]
        x0 = (share * (centres + alpha * spread**2 / variance * offsets)).sum(
            0
        )  # without cancellation
        return {"noise": noise, "x0": x0, "v": alpha * noise - sigma * x0, "flow": noise - x0}[
            prediction
        ]

    def predict(x: Any, t: Any) -> Any:
        halves = zip(jnp.split(x, 2), jnp.split(t, 2), DATA.values(), strict=True)
        return jnp.concatenate([part(rows, times, *data) for rows, times, data in halves])

    return predict


def trained(steps: int, spacing: str) -> None:
    """Prints the solvers whose samples of a small trained network have another deviation."""
    true_std = float(examples(jax.random.key(9), 20_000).std())
    x_T, outside, count = jax.random.normal(jax.random.key(3), (1000, CENTRES.shape[1])), 0, 0
    for schedule_name, schedule in SCHEDULES.items():
        for prediction in PREDICTIONS:
            try:
                check_carries(schedule, 1.0, prediction)
            except UserError as refusal:
                print(f"{schedule_name:16s} {prediction:5s} refused: {refusal}")
                continue
            params, loss = train(schedule, prediction, 3000)
            predict = lambda x, t, p=params, s=schedule: network(p, x, s.model_time(t))  # noqa: E731
            found = moments(predict, x_T, schedule, prediction, dict(solvers(steps, spacing)), 1)
            ratios = {name: std / true_std for name, [(_, std)] in found.items()}
            print(
                f"{schedule_name:16s} {prediction:5s} loss {loss:.3f}, deviations "
                f"{min(ratios.values()):.2f} to {max(ratios.values()):.2f} of the data's",
                flush=True,
            )
            count += len(ratios)
            for name, ratio in ratios.items():
                if not 0.8 <= ratio <= 1.2:
                    outside += 1
                    print(f"    {name}: {ratio:.2f}")
    print(f"{steps} evaluations, {spacing}: {count - outside} of {count} within 0.8 to 1.2")


def examples(key: Any, count: int) -> Any:
    """Points around the centres, [count, 8]."""
    which, around = jax.random.split(key)
    centres = jnp.asarray(CENTRES, jnp.float32)[
        jax.random.randint(which, (count,), 0, len(CENTRES))
    ]
    return centres + 0.1 * jax.random.normal(around, centres.shape)


def network(params: Any, x: Any, model_time: Any) -> Any:
    """Three hidden layers over x and sinusoids of its time."""
    angles = model_time[:, None] * jnp.exp(-jnp.log(1e4) * jnp.arange(16) / 16)
    hidden = jnp.concatenate([x, jnp.cos(angles), jnp.sin(angles)], axis=-1)
    for weight, bias in params[:-1]:
        hidden = jax.nn.gelu(hidden @ weight + bias)
    weight, bias = params[-1]
    return hidden @ weight + bias


def train(schedule: Schedule, prediction: str, steps: int, width: int = 96) -> tuple[Any, float]:
    """Parameters after so many steps, and the mean loss of the last hundred."""
    sizes = [CENTRES.shape[1] + 32, width, width, width, CENTRES.shape[1]]
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    def loss(params: Any, key: Any) -> Any:
        keys = jax.random.split(key, 3)
        x0 = examples(keys[0], 256)
        t, noise = schedule.sample_time(keys[1], (256,)), jax.random.normal(keys[2], x0.shape)
        predict = lambda x, time: network(params, x, time)  # noqa: E731
        return denoising_loss(predict, x0, t, noise, schedule, prediction=prediction).mean()

    @jax.jit
    def run(key: Any) -> Any:
        keys = jax.random.split(key, len(sizes))
        layers = zip(keys, sizes, sizes[1:], strict=False)
        params = [(jax.random.normal(k, (a, b)) / np.sqrt(a), jnp.zeros(b)) for k, a, b in layers]

        def body(carry: Any, key: Any) -> Any:
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, key)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

        (params, _), losses = jax.lax.scan(
            body, (params, optimizer.init(params)), jax.random.split(keys[-1], steps)
        )
        return params, losses[-100:].mean()

    params, value = run(jax.random.key(1))
    return params, float(value)


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("exact", "trained"))
    parser.add_argument("--steps", type=int, help="network evaluations (default 100; trained: 50)")
    parser.add_argument("--spacing", default="time_uniform", help="of the times")
    arguments = parser.parse_args()
    if arguments.what == "exact":
        exact(arguments.steps or 100, arguments.spacing)
    else:
        trained(arguments.steps or 50, arguments.spacing)


if __name__ == "__main__":
    main()
