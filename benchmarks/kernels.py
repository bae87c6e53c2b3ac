"""Fused kernels against their XLA twins on a GPU: ms, GB/s and errors over a grid of tunings.

    python benchmarks/kernels.py --out kernels.json   # S/2, L/2, H/2 at batch 128, under 90 s
    python benchmarks/kernels.py --models H/2 --batch-size 192 --seconds 300
    python benchmarks/kernels.py --interpret          # tiny, on a CPU: does it run; no real times

Calls follow one another without a wait between them; one under some 20 us (row_sums of S/2) is
timed by its launch. GB/s counts each large input read once and each large output written once. The
error is ||out - ref|| / ||ref|| (the worst output) against the twin in float32 on the same bfloat16
inputs: about 2e-3 is bfloat16's rounding. Tunings that come after --seconds are left out, and the
last table says so.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.models.kernels import gelu, gelu_triton, norm, norm_triton
from uvit_jax.models.kernels.tiles import Tuning

# Tokens and width.
MODELS = {"H/2": (258, 1152), "L/2": (257, 1024), "S/2": (257, 512)}
WIDE, SMS = 4, 132


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation on one shape: reads and writes of large arrays, and tunings to try."""

    twin: Callable[..., Any]
    kernel: Callable[..., Any]
    inputs: tuple[str, ...]
    large: int
    width: int
    tunings: list[Tuning]


def norm_gradients(
    dr: jax.Array, dh: jax.Array, r: jax.Array, mean: jax.Array, rstd: jax.Array, scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Results of the norm's backward kernel by XLA: the transpose of the norm's tangent."""

    def tangent(dx: jax.Array, dscale: jax.Array, dshift: jax.Array) -> tuple[jax.Array, jax.Array]:
        return dx.astype(r.dtype), norm.norm_tangent(r, mean, rstd, scale, dx, dscale, dshift)

    wide = jax.ShapeDtypeStruct(r.shape, jnp.float32)
    dx, dscale, dshift = jax.linear_transpose(tangent, wide, scale, scale)((dr, dh))
    return dx.astype(r.dtype), jnp.stack([dscale, dshift, dx.sum(0)])


def cases(d: int = 1152) -> dict[str, Case]:
    """Every operation; the first tuning is the kernel's default for that width."""
    norms = [norm_triton.FORWARD]
    norms += [Tuning(rows=r, warps=w) for r, w in ((1, 4), (2, 4), (4, 8), (8, 8), (8, 4))]
    norms += [Tuning(rows=4, warps=4, row_pieces="pad"), Tuning(rows=4, warps=4, programs=SMS * 8)]
    back = [norm_triton.backward_tuning(d)]
    back += [
        Tuning(rows=r, warps=w, programs=SMS * k)
        for r, w, k in ((1, 4, 4), (1, 4, 6), (1, 4, 8), (2, 4, 4))
    ]
    back += [Tuning(rows=2, warps=8, programs=SMS * 4), Tuning(rows=4, warps=16, programs=SMS * 2)]
    back += [
        Tuning(rows=8, warps=16, programs=SMS),
        Tuning(rows=1, warps=4, programs=SMS * 4, row_pieces="pad"),
    ]
    gelu_forward = [gelu_triton.FORWARD]
    gelu_forward += [
        Tuning(rows=r, cols=c, warps=w)
        for r, c, w in ((1, 1024, 4), (2, 512, 4), (8, 512, 4), (8, 512, 8))
    ]
    gelu_back = [gelu_triton.BACKWARD]
    gelu_back += [
        Tuning(rows=r, cols=c, warps=w, programs=SMS * k)
        for r, c, w, k in (
            (2, 512, 4, 8),
            (4, 512, 4, 16),
            (8, 512, 8, 8),
            (4, 256, 4, 8),
            (8, 256, 4, 16),
            (2, 512, 4, 32),
        )
    ]
    sums = [norm_triton.SUMS]
    sums += [
        Tuning(rows=r, cols=c, warps=w, programs=SMS * k)
        for r, c, w, k in ((16, 128, 4, 16), (32, 128, 4, 8), (32, 64, 4, 16), (8, 256, 4, 8))
    ]
    return {
        "norm forward": Case(norm.norm_xla, norm_triton.norm_forward, ("x", "p", "p"), 2, 1, norms),
        "norm backward": Case(
            norm_gradients,
            lambda dr, *a, **k: norm_triton.norm_backward(dr, None, *a, with_bias=True, **k),
            ("x", "x", "x", "mean", "rstd", "p"),
            4,
            1,
            back,
        ),
        "bias_gelu forward": Case(
            gelu.bias_gelu_xla, gelu_triton.bias_gelu_forward, ("x", "p"), 2, WIDE, gelu_forward
        ),
        "bias_gelu backward": Case(
            lambda dg, u, bias: jax.vjp(gelu.bias_gelu_xla, u, bias)[1](dg),
            gelu_triton.bias_gelu_backward,
            ("x", "x", "p"),
            3,
            WIDE,
            gelu_back,
        ),
        "row_sums": Case(
            lambda x: x.astype(jnp.float32).sum(0), norm_triton.row_sums, ("x",), 1, 1, sums
        ),
    }


def make_inputs(kinds: tuple[str, ...], n: int, d: int, seed: int) -> list[jax.Array]:
    """Random arrays: "x" `[n, d]` bfloat16, "p" `[d]` float32, "mean" and "rstd" `[n]` float32."""
    keys = jax.random.split(jax.random.key(seed), len(kinds))
    shapes = {"x": (n, d), "p": (d,), "mean": (n,), "rstd": (n,)}
    out = []
    for kind, key in zip(kinds, keys, strict=True):
        a = jax.random.normal(key, shapes[kind], jnp.float32)
        out.append(
            {"x": 1.5 * a, "p": 1 + 0.3 * a, "mean": 0.1 * a, "rstd": 1 / (1 + 0.1 * abs(a))}[kind]
        )
    return [
        a.astype(jnp.bfloat16) if kind == "x" else a for a, kind in zip(out, kinds, strict=True)
    ]


def milliseconds(
    function: Callable[..., Any], sets: list[list[jax.Array]], calls: int, repeats: int = 3
) -> float:
    """Median time of one of `calls` calls in a row, over several sets of inputs in turn."""
    jax.block_until_ready(function(*sets[0]))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        for arguments in itertools.islice(itertools.cycle(sets), calls):
            out = function(*arguments)
        jax.block_until_ready(out)
        seconds.append((time.perf_counter() - began) / calls)
    return float(np.median(seconds)) * 1e3


@jax.jit
def relative_error(out: Any, ref: Any) -> jax.Array:
    """The worst output's ||out - ref|| / ||ref||."""
    pairs = zip(jax.tree.leaves(out), jax.tree.leaves(ref), strict=True)
    norm_of = lambda a: jnp.sqrt(jnp.sum(jnp.square(a.astype(jnp.float32))))  # noqa: E731
    return jnp.stack([norm_of(o.astype(jnp.float32) - r) / norm_of(r) for o, r in pairs]).max()


@jax.jit
def wide(arrays: list[jax.Array]) -> list[jax.Array]:
    """The same numbers in float32."""
    return [a.astype(jnp.float32) for a in arrays]


def last_line(error: Exception) -> str:
    """The error's type and the last line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:200] if lines else ''}"


def measure(
    function: Callable[..., Any], sets: list[list[jax.Array]], ref: Any, large: int, calls: int
) -> dict:
    """Time, rate and error of one implementation, or the error it ended with."""
    try:
        began = time.perf_counter()
        compiled = jax.jit(function)
        error = float(relative_error(compiled(*sets[0]), ref))
        compile_seconds = time.perf_counter() - began
        ms = milliseconds(compiled, sets, calls)
    except Exception as failure:
        return {"failed": last_line(failure)}
    moved = large * max(a.nbytes for a in sets[0])
    return {
        "ms": ms,
        "gb_per_sec": moved / ms / 1e6,
        "error": error,
        "first_call_seconds": compile_seconds,
    }


def public_gradients(implementation: norm.Implementation, batch: int, tokens: int, d: int) -> float:
    """Worst relative error of a sublayer's gradients, public functions against XLA in float32."""
    arrays = make_inputs(("x", "x", "p", "p", "p", "x"), batch * tokens, d, 7)
    shape = (batch, tokens, d)

    def loss(
        x: Any, y: Any, bias: Any, scale: Any, shift: Any, out: Any, *, how: norm.Implementation
    ) -> jax.Array:
        x, y, out = x.reshape(shape), y.reshape(shape), out.reshape(shape)
        r, h = norm.add_norm(x, y, bias, scale, shift, implementation=how)
        g = gelu.bias_gelu(h, bias, implementation=how)
        return jnp.sum(norm.residual_add(r, g, bias, implementation=how).astype(jnp.float32) * out)

    def gradients(how: norm.Implementation, arguments: list[jax.Array]) -> Any:
        return jax.jit(jax.grad(functools.partial(loss, how=how), argnums=(0, 1, 2, 3, 4)))(
            *arguments
        )

    return float(relative_error(gradients(implementation, arrays), gradients("xla", wide(arrays))))


def row(name: str, op: str, what: str, result: dict) -> str:
    """One line of the log."""
    head = f"{name:4} {op:28} {what:52}"
    if "failed" in result:
        return f"{head} {result['failed']}"
    return (
        f"{head} {result['ms']:8.3f} ms {result['gb_per_sec']:6.0f} GB/s  error "
        f"{result['error']:.1e}"
    )


def describe(tuning: Tuning) -> str:
    """The tuning in short."""
    programs = f" programs {tuning.programs // SMS}x{SMS}" if tuning.programs else ""
    cols = f"x{tuning.cols}" if tuning.cols else f" {tuning.row_pieces}"
    return f"rows {tuning.rows}{cols} warps {tuning.warps}{programs}"


def main() -> None:
    """Measures, prints, and writes everything as JSON where --out says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--ops", nargs="+", default=list(cases()), choices=list(cases()))
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--calls", type=int, default=20, help="calls in a row in one timing")
    parser.add_argument(
        "--seconds", type=float, default=80, help="no new tuning is begun after these"
    )
    parser.add_argument(
        "--interpret", action="store_true", help="tiny shapes by Pallas's interpreter"
    )
    parser.add_argument("--out", type=pathlib.Path, help="a file for the results as JSON")
    options = parser.parse_args()
    began = time.monotonic()
    batch, calls, sets_of_inputs = (
        (options.batch_size, options.calls, 2) if not options.interpret else (1, 1, 1)
    )
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, batch {batch}", flush=True)

    rows, left_out = [], 0
    copies = [make_inputs(("x",), batch * 258, WIDE * 1152, seed) for seed in range(2)]
    copy = milliseconds(jax.jit(lambda a: -a), copies, calls)
    copy_rate = 2 * copies[0][0].nbytes / copy / 1e6
    print(
        f"copy of {copies[0][0].nbytes / 1e6:.0f} MB: {copy:.3f} ms, {copy_rate:.0f} GB/s",
        flush=True,
    )
    del copies
    try:
        how: norm.Implementation = "interpret" if options.interpret else "triton"
        gradients = f"{public_gradients(how, 1 if options.interpret else 8, 258, 1152):.1e}"
    except Exception as failure:
        gradients = last_line(failure)
    print(f"gradients through the public functions, H/2, error: {gradients}", flush=True)

    # Every operation's twin and default first, so that little time still gives a whole picture.
    for some, name, op in itertools.product(
        (slice(0, 1), slice(1, None)), options.models, options.ops
    ):
        tokens, d = MODELS[name]
        case = cases(d)[op]
        tunings = case.tunings[some] if not options.interpret else case.tunings[some][:1]
        if not tunings:
            continue
        if time.monotonic() - began > options.seconds:
            left_out += len(tunings)
            continue
        sets = [
            make_inputs(
                case.inputs, 1 * 11 if options.interpret else batch * tokens, d * case.width, seed
            )
            for seed in range(sets_of_inputs)
        ]
        try:
            ref = jax.jit(case.twin)(*wide(sets[0]))
        except Exception as failure:
            print(f"{name} {op}: no reference: {last_line(failure)}", flush=True)
            continue
        tries: list[tuple[str, Tuning | None, Callable[..., Any]]] = []
        if some.start == 0:
            tries.append(("XLA twin", None, case.twin))
        for tuning in tunings:
            kernel = functools.partial(case.kernel, tuning=tuning, interpret=options.interpret)
            tries.append((describe(tuning), tuning, kernel))
        for what, tuning, function in tries:
            if time.monotonic() - began > options.seconds:
                left_out += 1
                continue
            result = measure(function, sets, ref, case.large, calls)
            rows.append({"model": name, "op": op, "what": what, **result})
            rows[-1]["tuning"] = dataclasses.asdict(tuning) if tuning else None
            print(row(name, op, what, result), flush=True)

    summarize(rows, copy_rate, left_out, time.monotonic() - began)
    if options.out:
        report = {
            "device": device.device_kind,
            "jax": jax.__version__,
            "batch": batch,
            "copy_gb_per_sec": copy_rate,
        }
        options.out.write_text(
            json.dumps({**report, "gradients": gradients, "rows": rows}, indent=1)
        )


def summarize(rows: list[dict], copy_rate: float, left_out: int, seconds: float) -> None:
    """The twin and the fastest kernel that is right, an operation a line."""
    print(f"\n{'':33}{'twin ms':>9}{'best ms':>9}{'GB/s':>7}{'of copy':>9}{'error':>10}  tuning")
    for (name, op), group in itertools.groupby(
        sorted(rows, key=lambda r: (r["model"], r["op"])), lambda r: (r["model"], r["op"])
    ):
        timed = [r for r in group if "ms" in r]
        twin = next((f"{r['ms']:.3f}" for r in timed if r["tuning"] is None), "-")
        # Twice bfloat16's rounding; NaN is never under it.
        right = [r for r in timed if r["tuning"] is not None and r["error"] < 1e-2]
        if not right:
            print(f"{name:4} {op:28}{twin:>9}{'-':>9}  no kernel that is right")
            continue
        best = min(right, key=lambda r: r["ms"])
        rate = best["gb_per_sec"]
        cells = f"{best['ms']:>9.3f}{rate:>7.0f}{rate / copy_rate:>9.0%}{best['error']:>10.1e}"
        print(f"{name:4} {op:28}{twin:>9}{cells}  {best['what']}")
    failed = sum("failed" in r for r in rows)
    print(f"{len(rows)} tried, {failed} failed, {left_out} left out for time, {seconds:.0f} s")


if __name__ == "__main__":
    main()
