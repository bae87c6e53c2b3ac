"""Solvers compared: error over network evaluations, overhead, compile time.

    python benchmarks/solvers.py accuracy --out docs/solvers.png   # 40 s on two CPU cores
    python benchmarks/solvers.py overhead    # minutes on a CPU: 50 steps of U-ViT-S

Accuracy is measured in double precision on data whose noise prediction is known exactly: in each
dimension a mixture of two Gaussians, with Stable Diffusion's discrete schedule.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.diffusion.adaptive import solve
from uvit_jax.diffusion.dpm_solver import sample
from uvit_jax.diffusion.options import SolverOptions, Tolerances
from uvit_jax.diffusion.registry import SOLVERS
from uvit_jax.diffusion.sampler import Sampler
from uvit_jax.diffusion.sampler_config import SamplerConfig
from uvit_jax.diffusion.schedules import VPDiscrete, VPLinear
from uvit_jax.diffusion.sde import euler_maruyama

EVALUATIONS = (6, 9, 12, 18, 25, 36, 50, 75, 100, 150, 200)
MODES, SPREAD = np.asarray([-0.8, 0.6]), 0.25

ODE_SOLVERS: dict[str, Callable] = {
    "DDIM": lambda f, x, s, n: SOLVERS["ddim"].solve(
        f, x, s, SolverOptions(steps=n, spacing="logsnr")
    ),
    "Euler ODE": lambda f, x, s, n: euler_maruyama(f, x, s, steps=n, ode=True, spacing="logsnr"),
    "Heun": lambda f, x, s, n: SOLVERS["heun"].solve(
        f, x, s, SolverOptions(steps=n, spacing="logsnr")
    ),
    "DPM-Solver multistep 2": lambda f, x, s, n: sample(
        f, x, s, steps=n, algorithm="dpmsolver", order=2, spacing="logsnr"
    ),
    "DPM-Solver singlestep 3 (L models)": lambda f, x, s, n: sample(
        f, x, s, steps=n, algorithm="dpmsolver", method="singlestep", order=3, spacing="logsnr"
    ),
    "DPM-Solver++ multistep 2": lambda f, x, s, n: sample(
        f, x, s, steps=n, order=2, spacing="logsnr"
    ),
    "DPM-Solver++ multistep 3": lambda f, x, s, n: sample(
        f, x, s, steps=n, order=3, spacing="logsnr"
    ),
    "DPM-Solver++ singlestep 3": lambda f, x, s, n: sample(
        f, x, s, steps=n, method="singlestep", order=3, spacing="logsnr"
    ),
    "DPM-Solver++ singlestep_fast 3, time_uniform (H models)": lambda f, x, s, n: sample(
        f, x, s, steps=n, method="singlestep_fast", order=3
    ),
}
SDE_SOLVERS: dict[str, Callable] = {
    "Euler-Maruyama": lambda f, x, s, n, key: euler_maruyama(
        f, x, s, steps=n, key=key, spacing="logsnr"
    ),
    "DDPM": lambda f, x, s, n, key: SOLVERS["ddpm"].solve(
        f, x, s, SolverOptions(steps=n, spacing="logsnr"), key=key
    ),
    "SDE-DPM-Solver++ 1": lambda f, x, s, n, key: sample(
        f, x, s, steps=n, algorithm="sde-dpmsolver++", order=1, key=key, spacing="logsnr"
    ),
    "SDE-DPM-Solver++ 2": lambda f, x, s, n, key: sample(
        f, x, s, steps=n, algorithm="sde-dpmsolver++", order=2, key=key, spacing="logsnr"
    ),
    "DPM-Solver++ multistep 2 (no noise)": lambda f, x, s, n, key: sample(
        f, x, s, steps=n, order=2, spacing="logsnr"
    ),
}


def exact_noise(schedule: Any) -> Callable:
    """The noise prediction of a perfect network: -sigma times the score of the noised mixture."""

    def noise_fn(x: Any, t: Any) -> Any:
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        variance = alpha**2 * SPREAD**2 + sigma**2
        offsets = [x - alpha * mode for mode in MODES]
        share = jax.nn.softmax(
            jnp.stack([-0.5 * offset**2 / variance for offset in offsets]), axis=0
        )
        return (
            sigma
            * sum(part * offset for part, offset in zip(share, offsets, strict=True))
            / variance
        )

    return jax.jit(noise_fn)


def accuracy(out: str) -> None:
    """Draws the PNG and prints its numbers."""
    with jax.enable_x64(True):
        schedule = VPDiscrete.stable_diffusion()
        noise_fn = exact_noise(schedule)
        x_T = jax.random.normal(jax.random.key(0), (8, 256), jnp.float64)
        truth = sample(
            noise_fn,
            x_T,
            schedule,
            steps=6000,
            method="singlestep_fixed",
            order=3,
            spacing="logsnr",
        )
        assert isinstance(truth, jax.Array)
        errors: dict[str, Any] = {}
        for name, draw in ODE_SOLVERS.items():
            found = jax.jit(
                lambda x, draw=draw: [draw(noise_fn, x, schedule, n) for n in EVALUATIONS]
            )(x_T)
            errors[name] = [(n, rms(x - truth)) for n, x in zip(EVALUATIONS, found, strict=True)]
        for order, name in ((2, "DPM-Solver++ adaptive 12"), (3, "DPM-Solver++ adaptive 23")):
            solutions = [
                solve(
                    noise_fn,
                    x_T,
                    schedule,
                    SolverOptions(order=order, tolerances=Tolerances(atol=0.16 * r, rtol=r)),
                )
                for r in (0.2, 0.05, 0.0125, 0.003)
            ]
            errors[name] = [(int(found.evaluations), rms(found.x - truth)) for found in solutions]
        distances = {
            name: distance_to_data(draw, noise_fn, schedule) for name, draw in SDE_SOLVERS.items()
        }
    for title, table in (("rms error", errors), ("Wasserstein distance", distances)):
        print(f"{title} by network evaluations")
        for name, points in table.items():
            print(f"  {name:58s}", "  ".join(f"{n}: {error:.1e}" for n, error in points))
    plot(errors, distances, out)


def rms(x: Any) -> float:
    """Root of the mean square."""
    return float(jnp.sqrt(jnp.mean(jnp.square(x))))


def distance_to_data(draw: Callable, noise_fn: Callable, schedule: Any) -> list[tuple[int, float]]:
    """The Wasserstein-2 distance of many one-dimensional samples to as many draws from the data."""
    count = 100_000
    x_T = jax.random.normal(jax.random.key(1), (10, count // 10), jnp.float64)
    rng = np.random.default_rng(0)
    data = np.sort(rng.choice(MODES, count) + SPREAD * rng.standard_normal(count))
    key, chosen = jax.random.key(2), EVALUATIONS[::2]
    found = jax.jit(lambda x, key: [draw(noise_fn, x, schedule, n, key) for n in chosen])(x_T, key)
    return [(n, rms(np.sort(np.ravel(x)) - data)) for n, x in zip(chosen, found, strict=True)]


def plot(errors: dict[str, Any], distances: dict[str, Any], out: str) -> None:
    """Error over evaluations, the ODE solvers left, the stochastic ones right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for (name, points), colour in zip(errors.items(), colours[: len(errors)], strict=True):
        left.loglog(*zip(*points, strict=True), marker="o", markersize=3, label=name, color=colour)
    for name, points in distances.items():
        right.loglog(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    left.set(
        xlabel="network evaluations", ylabel="rms error of x at t_end", title="probability-flow ODE"
    )
    right.set(
        xlabel="network evaluations",
        ylabel="Wasserstein-2 distance to the data",
        title="reverse SDE",
    )
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=7)
    figure.savefig(out, dpi=110)
    print(f"wrote {out}")


def overhead(repeats: int) -> None:
    """Times 50-step samplers (1x32x32x3) of U-ViT-S and of no network, and their compilation."""
    from flax import nnx

    from uvit_jax.models.uvit import UViT
    from uvit_jax.models.uvit_config import UViTConfig

    config = UViTConfig(
        image_size=32, patch_size=2, embed_dim=512, depth=13, num_heads=8, dtype="float32"
    )
    graphdef, params = nnx.split(UViT(config, rngs=nnx.Rngs(0)))

    def network(params: Any, x: Any, t: Any, condition: Any) -> Any:
        return nnx.merge(graphdef, params)(x, t)

    def nothing(params: Any, x: Any, t: Any, condition: Any) -> Any:
        return 0.1 * x

    def sampler(of: Callable, **options: Any) -> Sampler:
        return Sampler(of, VPLinear(), (32, 32, 3), config=SamplerConfig(**options))

    print("solver overhead: 50 evaluations around no network, as a part of those of U-ViT-S")
    for options in (
        {"solver": "dpmsolver++", "order": 2},
        {"solver": "dpmsolver++", "order": 3, "method": "singlestep_fast"},
        {"solver": "sde-dpmsolver++"},
        {"solver": "euler_maruyama"},
    ):
        whole = seconds(sampler(network, steps=50, **options), params, 1)
        alone = seconds(sampler(nothing, steps=50, **options), params, repeats)
        print(f"  {options}: {1e3 * alone:.2f} ms of {whole:.2f} s = {100 * alone / whole:.3f} %")
    print("compile time, U-ViT-S, multistep 2")
    compiled = {steps: compile_seconds(network, params, steps) for steps in (5, 50)}
    ratio = compiled[50] / compiled[5]
    print(f"  5 steps {compiled[5]:.2f} s, 50 steps {compiled[50]:.2f} s: {ratio:.2f} times")


def seconds(one: Sampler, params: Any, repeats: int) -> float:
    """The least time of `repeats` calls after the one that compiles."""
    times = []
    for seed in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(one(params, seed=seed, indices=np.arange(1)))
        times.append(time.perf_counter() - start)
    return min(times[1:])


def compile_seconds(network: Callable, params: Any, steps: int) -> float:
    """The least time of three compilations, tracing included."""
    schedule, x_T = VPLinear(), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def program(params: Any, x: Any) -> Any:
        return sample(
            lambda x, t: network(params, x, schedule.model_time(t), None), x, schedule, steps=steps
        )

    times = []
    for _ in range(3):
        jax.clear_caches()
        start = time.perf_counter()
        jax.jit(program).lower(params, x_T).compile()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("accuracy", "overhead"))
    parser.add_argument(
        "--out", default="docs/solvers.png", help="where accuracy writes its picture"
    )
    parser.add_argument("--repeats", type=int, default=20, help="how often the overhead is timed")
    arguments = parser.parse_args()
    if arguments.what == "accuracy":
        accuracy(arguments.out)
    else:
        overhead(arguments.repeats)


if __name__ == "__main__":
    main()
