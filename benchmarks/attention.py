"""Times of packed self-attention on a GPU: Triton's and Hopper's kernels by tiling, cuDNN, XLA.

    python benchmarks/attention.py --out attention.json   # two minutes on an H100

Times are of one layer at the given batch. TFLOP/s count 4 t^2 d a forward pass and 2.5 times that a
backward pass, with the shape's own tokens and channels, whatever a kernel pads them to.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.models.kernels import hopper_tiling
from uvit_jax.models.kernels.attention import hopper_attention, packed_attention, triton_attention
from uvit_jax.models.kernels.attention_triton import Tiling, Tuning

# (tokens, heads, head_dim)
SHAPES = {"H/2": (258, 16, 72), "L/2": (258, 16, 64), "S/2": (257, 8, 64), "COCO S/2": (334, 8, 64)}
# All are tried on the first shape, one kernel at a time; the others take the best three and the
# defaults.
FORWARD = (
    Tiling(64, 64, 64, 4, 2),
    Tiling(64, 64, 64, 4, 3),
    Tiling(64, 64, 64, 4, 4),
    Tiling(64, 64, 16, 4, 2),
    Tiling(64, 32, 64, 4, 4),
    Tiling(64, 128, 64, 4, 2),
    Tiling(64, 256, 64, 8, 1),
    Tiling(128, 64, 128, 8, 2),
)
QUERY_GRAD = (
    Tiling(64, 64, 64, 4, 2),
    Tiling(64, 64, 64, 4, 3),
    Tiling(64, 32, 64, 4, 3),
    Tiling(64, 32, 64, 4, 4),
    Tiling(64, 64, 64, 8, 2),
    Tiling(64, 128, 64, 4, 2),
    Tiling(128, 64, 128, 8, 2),
)
KEY_VALUE_GRAD = (
    Tiling(64, 32, 64, 4, 3),
    Tiling(64, 32, 64, 4, 4),
    Tiling(64, 16, 64, 4, 4),
    Tiling(64, 64, 64, 4, 2),
    Tiling(64, 64, 64, 4, 3),
    Tiling(64, 64, 64, 8, 2),
    Tiling(128, 32, 128, 8, 2),
)
HOPPER = [hopper_tiling.Tiling(programs, stages) for programs, stages in ((1, 2), (2, 2), (2, 3))]
KERNELS = {"forward": FORWARD, "query_grad": QUERY_GRAD, "key_value_grad": KEY_VALUE_GRAD}
SETS = 3  # of inputs, in turn: one alone could stay in the cache
Row = dict[str, Any]


def median_ms(function: Callable[..., Any], inputs: list[tuple], budget: float) -> float:
    """Milliseconds a call, the median of five rounds over the sets of inputs after a warm-up."""
    for args in inputs:
        jax.block_until_ready(function(*args))
    start = time.perf_counter()
    jax.block_until_ready([function(*args) for args in inputs])
    calls = max(1, int(budget / 5 / max(time.perf_counter() - start, 1e-5)))
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls):
            out = [function(*args) for args in inputs]
        jax.block_until_ready(out)
        rounds.append((time.perf_counter() - start) / (calls * len(inputs)))
    return 1e3 * float(np.median(rounds))


def gradient(attend: Callable) -> Callable:
    """Forward and backward pass: (inputs ..., d_out) to the output and the inputs' gradients."""

    def run(*args: Any) -> Any:
        out, vjp = jax.vjp(attend, *args[:-1])
        return out, vjp(args[-1].astype(out.dtype))

    return run


def exact(qkv: Any) -> Any:
    """Attention in float32, products too."""
    query, key, value = jnp.moveaxis(qkv.astype(jnp.float32), 2, 0)
    with jax.default_matmul_precision("highest"):
        logits = jnp.einsum("bqhk,bshk->bhqs", query, key) / qkv.shape[-1] ** 0.5
        return jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(logits), value)


EXACT = jax.jit(gradient(exact))


def error(found: Any, expected: Any) -> float:
    """||found - expected|| / ||expected||."""
    return float(jnp.linalg.norm(found.astype(jnp.float32) - expected) / jnp.linalg.norm(expected))


def ends(x: Any) -> Any:
    """The first two examples and the last two."""
    return jnp.concatenate([x[:2], x[-2:]])


def errors(both: Callable, qkv: Any, d_out: Any) -> list[float]:
    """Errors of the output and the gradients of q, k and v, on the first and the last examples."""
    out, (d_qkv,) = jax.tree.map(ends, both(qkv, d_out))
    with jax.default_matmul_precision("highest"):
        wanted, (d_wanted,) = EXACT(ends(qkv).astype(jnp.float32), ends(d_out))
    return [error(out, wanted), *(error(d_qkv[:, :, i], d_wanted[:, :, i]) for i in range(3))]


def apart(tokens: int) -> Callable:
    """cuDNN's attention on three arrays, padded to an even number of tokens: nothing to copy."""

    def attend(query: Any, key: Any, value: Any) -> Any:
        lengths = (
            jnp.full((query.shape[0],), tokens, jnp.int32) if query.shape[1] != tokens else None
        )
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            implementation="cudnn",
        )

    return attend


def measured(row: Row, forward: Callable, inputs: list[tuple], flops: float, budget: float) -> Row:
    """A row of errors (packed inputs), times and TFLOP/s of the passes; d_out is the last input."""
    both = jax.jit(gradient(forward))
    if len(inputs[0]) == 2:
        row["errors"] = errors(both, *inputs[0])
    row["forward_ms"] = median_ms(jax.jit(forward), [args[:-1] for args in inputs], budget)
    row["both_ms"] = median_ms(both, inputs, budget)
    row["forward_tflops"] = flops / row["forward_ms"] / 1e9
    row["backward_ms"] = row["both_ms"] - row["forward_ms"]
    row["backward_tflops"] = 2.5 * flops / row["backward_ms"] / 1e9
    return row


def attempt(row: Row, run: Callable[[Row], Row]) -> Row:
    """The row that `run` fills, or with the last line of what went wrong."""
    try:
        row = run(row)
    except Exception as problem:  # One case must not end the others.
        row["error"] = (str(problem).strip().splitlines() or [type(problem).__name__])[-1][:160]
    print(json.dumps(row), flush=True)
    return row


def short(tiling: Tiling) -> str:
    """Rows x columns / smallest tail, w warps, s stages."""
    return f"{tiling.rows}x{tiling.columns}/{tiling.row_tail}w{tiling.warps}s{tiling.stages}"


def tilings(tuning: Tuning) -> str:
    """Those of the three kernels."""
    return " ".join(short(getattr(tuning, kernel)) for kernel in KERNELS)


def search(inputs: list[tuple], deadline: float, budget: float) -> Iterator[Row]:
    """Each kernel's tilings with the others at their defaults: forward alone, or both passes."""
    for kernel, candidates in KERNELS.items():
        default = getattr(Tuning(), kernel)
        for tiling in (default, *(x for x in candidates if x != default)):
            if time.perf_counter() > deadline:
                return
            tuning = Tuning(**{kernel: tiling})

            def attend(qkv: Any, tuning: Tuning = tuning) -> Any:
                return triton_attention(qkv, tuning, False)

            function = jax.jit(attend if kernel == "forward" else gradient(attend))
            given = [args[:1] for args in inputs] if kernel == "forward" else inputs

            def run(row: Row, function: Callable = function, given: list[tuple] = given) -> Row:
                row["ms"] = median_ms(function, given, budget)
                return row

            yield attempt({"kernel": kernel, "tiling": tiling.__dict__}, run)


def best(found: list[Row]) -> Tuning:
    """The fastest tiling of each kernel."""
    picked = {}
    for kernel in KERNELS:
        rows = [row for row in found if row["kernel"] == kernel and "ms" in row]
        if rows:
            picked[kernel] = Tiling(**min(rows, key=lambda row: row["ms"])["tiling"])
    return Tuning(**picked)


def compare(
    name: str, batch: int, tunings: list[Tuning], inputs: list[tuple], budget: float
) -> Iterator[Row]:
    """All implementations on one shape, from the packed array and from three."""
    tokens, heads, head_dim = SHAPES[name]
    flops = 4.0 * batch * tokens**2 * heads * head_dim
    cases: dict[str, Callable] = {}
    for tuning in tunings:
        cases[f"triton {tilings(tuning)}"] = functools.partial(
            lambda qkv, tuning: triton_attention(qkv, tuning, False), tuning=tuning
        )
    for tiling in HOPPER:
        tuned = hopper_tiling.Tuning(tiling, tiling)
        cases[f"hopper {tiling.programs} programs {tiling.stages} stages"] = functools.partial(
            lambda qkv, tuned: hopper_attention(qkv, tuned, False), tuned=tuned
        )
    cases["cudnn packed"] = functools.partial(packed_attention, implementation="cudnn")
    cases["xla packed"] = functools.partial(packed_attention, implementation="xla")
    for label, attend in cases.items():

        def run(row: Row, attend: Callable = attend) -> Row:
            return measured(row, attend, inputs, flops, budget)

        yield attempt({"shape": name, "what": label}, run)

    even = tokens + tokens % 2
    split = []
    for qkv, d_out in inputs:
        pad = ((0, 0), (0, even - tokens), (0, 0), (0, 0))
        split.append(
            tuple(jnp.pad(a, pad) for a in (qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], d_out))
        )
    attend = apart(tokens)
    yield attempt(
        {"shape": name, "what": "cudnn apart"},
        lambda row: measured(row, attend, split, flops, budget),
    )


def table(rows: list[Row]) -> str:
    """The measurements as text, a line a case."""
    lines = [
        f"{'shape':9} {'fwd ms':>7} {'bwd ms':>7} {'both':>7} {'TF fwd':>6} {'TF bwd':>6} "
        f"{'worst error':>11}  what"
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"{row['shape']:9} {row['what']}: {row['error']}")
            continue
        worst = f"{max(row['errors']):.5f}" if "errors" in row else "-"
        lines.append(
            f"{row['shape']:9} {row['forward_ms']:7.3f} {row['backward_ms']:7.3f} "
            f"{row['both_ms']:7.3f} {row['forward_tflops']:6.0f} {row['backward_tflops']:6.0f} "
            f"{worst:>11}  {row['what']}"
        )
    return "\n".join(lines)


def main() -> None:
    """Searches on the first shape, compares on all, prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", help="write all rows there as JSON")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument(
        "--seconds", type=float, default=140.0, help="start no new case after that many"
    )
    args = parser.parse_args()
    start, budget = time.perf_counter(), 0.05
    found: list[Row] = []
    rows: list[Row] = []
    for name in args.shapes:
        tokens, heads, head_dim = SHAPES[name]
        inputs = []
        for seed in range(SETS):
            qkv, d_out = jax.random.split(jax.random.key(seed))
            inputs.append(
                (
                    jax.random.normal(qkv, (args.batch, tokens, 3, heads, head_dim), jnp.bfloat16),
                    jax.random.normal(d_out, (args.batch, tokens, heads, head_dim), jnp.bfloat16),
                )
            )
        if not found:
            found = list(search(inputs, start + 0.5 * args.seconds, budget))
        for row in compare(
            name, args.batch, list(dict.fromkeys([best(found), Tuning()])), inputs, budget
        ):
            rows.append(row)
            if time.perf_counter() - start > args.seconds:
                break
        if time.perf_counter() - start > args.seconds:
            break
    if args.out:
        with open(args.out, "w") as file:
            json.dump(
                {
                    "device": str(jax.devices()[0]),
                    "batch": args.batch,
                    "search": found,
                    "rows": rows,
                },
                file,
            )
    for kernel in KERNELS:
        times = sorted(
            (row for row in found if row["kernel"] == kernel), key=lambda row: row.get("ms", 1e9)
        )
        shown = (
            f"{short(Tiling(**row['tiling']))} {row.get('ms', float('nan')):.3f}" for row in times
        )
        print(f"{kernel} (ms; the gradients' with both passes): {', '.join(shown)}")
    print(table(rows))


if __name__ == "__main__":
    main()
