"""Small prepared data sets for tests."""

import ml_dtypes  # noqa: F401
import numpy as np

from uvit_jax.data.prepared.empty_context import save_empty_context
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.shard_writer import ShardWriter

CONTEXT = (5, 6)  # tokens and width of the captions' states


def arrays(count, shape, dtype, seed=0):
    """Random examples, and other arrays in place of their mirror images, `[count, 2, *shape]`."""
    rng = np.random.default_rng(seed)
    if dtype == "uint8":
        return rng.integers(256, size=(count, 2, *shape), dtype=np.uint8)
    return rng.standard_normal((count, 2, *shape)).astype(np.dtype(dtype))


def captions_of(example, dtype="float16"):
    """The captions of this example, 1 to 4: states full of 10 * example + caption, and texts."""
    return [
        (
            np.full(CONTEXT, 10 * example + which, np.dtype(dtype)),
            f"Žába {example}, said {which}\n" + "x" * which,
        )
        for which in range(1 + example % 4)
    ]


def prepare(
    folder,
    sizes=(5, 7, 3),
    *,
    kind="moments",
    shape=(4, 4, 8),
    dtype="float16",
    mirror=False,
    classes=10,
    context_dtype="",
):
    """Writes shards of these numbers of examples; returns their arrays and labels.

    With a context_dtype it is a text data set, whose captions are those of `captions_of`.
    """
    x = arrays(sum(sizes), shape, dtype)
    labels = (
        np.arange(len(x), dtype=np.int32) % classes if classes else np.full(len(x), -1, np.int32)
    )
    text = {"context_shape": CONTEXT, "context_dtype": context_dtype} if context_dtype else {}
    shards, first = [], 0
    for number, size in enumerate(sizes):
        with ShardWriter(
            folder, f"{number:05d}.array_record", shape, dtype, mirror=mirror, **text
        ) as writer:
            for i in range(first, first + size):
                captions = {"captions": captions_of(i, context_dtype)} if text else {}
                writer.write(int(labels[i]), x[i, 0], *([x[i, 1]] if mirror else []), **captions)
        shards.append(writer.shard)
        first += size
    if text:
        empty = np.full(CONTEXT, -0.5, np.dtype(context_dtype))
        text |= {
            "text_encoder_sha256": "c" * 64,
            "empty_context_sha256": save_empty_context(folder, empty),
        }
    channels = shape[-1] // (2 if kind == "moments" else 1)
    Manifest(
        source="random",
        split="train",
        kind=kind,
        image_size=32,
        shape=shape,
        dtype=dtype,
        mirror=mirror,
        class_names=(),
        num_classes=classes,
        autoencoder="",
        autoencoder_sha256="",
        scale=None,
        shift=0.0,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        text_encoder="words" if text else "",
        crop="none",
        skipped=0,
        shards=tuple(shards),
        **text,
    ).save(folder)
    return x, labels
