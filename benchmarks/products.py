"""Times of a block's matrix products: bfloat16, 8 bits, weight gradients in partial sums.

    python benchmarks/products.py    # U-ViT-H/2 at batch 192, half a minute on an H100
    python benchmarks/products.py --width 1024 --batch 256 --parts 1 2 3 4 6

A row is a product with all that it takes: casts and scales in 8 bits, the sum of the partial sums.
TFLOP/s count the product alone. "8-bit" says whether the compiled program holds cuBLASLt's 8-bit
product.
"""

import argparse
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from attention import median_ms

from uvit_jax.models.kernels.products import product, weight_tangent

TOKENS = 258


def weight_gradient(x: jax.Array, dy: jax.Array, parts: int) -> jax.Array:
    """x^T dy in so many partial sums."""
    weights = jax.ShapeDtypeStruct((x.shape[1], dy.shape[1]), x.dtype)
    return jax.linear_transpose(lambda kernel: weight_tangent(x, kernel, parts), weights)(dy)[0]


def cases(
    batch: int, width: int, parts: list[int]
) -> Iterator[tuple[str, Callable, list[tuple], float]]:
    """Name, function, two sets of inputs and FLOPs of each product."""
    rows = batch * TOKENS

    def random(*shapes: tuple[int, ...]) -> list[tuple]:
        keys = [jax.random.split(jax.random.key(i), len(shapes)) for i in range(2)]
        return [
            tuple(jax.random.normal(k, s, jnp.bfloat16) for k, s in zip(ks, shapes, strict=True))
            for ks in keys
        ]

    for name, k, m in (
        ("fc1", width, 4 * width),
        ("fc2", 4 * width, width),
        ("qkv", width, 3 * width),
        ("proj", width, width),
    ):
        flops = 2.0 * rows * k * m
        inputs = [(x, w.astype(jnp.float32)) for x, w in random((batch, TOKENS, k), (k, m))]
        for dtype in ("bfloat16", "fp8"):
            yield (
                f"{name} in {dtype}",
                lambda x, w, d=dtype: product(x, w, fp8=d == "fp8"),
                inputs,
                flops,
            )
        inputs = random((rows, k), (rows, m))
        for number in parts:
            if rows % number == 0:
                yield (
                    f"{name}'s gradient, {number} parts",
                    lambda x, dy, n=number: weight_gradient(x, dy, n),
                    inputs,
                    flops,
                )


def main() -> None:
    """Measures and prints a line a product."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--width", type=int, default=1152)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 3, 4])
    options = parser.parse_args()
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {options.batch} x {TOKENS} rows "
        f"of {options.width}"
    )
    for name, function, inputs, flops in cases(options.batch, options.width, options.parts):
        compiled = jax.jit(function).lower(*inputs[0]).compile()
        eight = "  8-bit" if "matmul$f8" in (compiled.as_text() or "") else ""
        ms = median_ms(compiled, inputs, 0.05)
        print(f"{name:28} {ms:8.3f} ms {flops / ms / 1e9:7.1f} TFLOP/s{eight}", flush=True)


if __name__ == "__main__":
    main()
