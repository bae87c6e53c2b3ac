"""Small prepared data sets for tests."""

import ml_dtypes  # noqa: F401
import numpy as np

from uvit_jax.data.manifest import Manifest
from uvit_jax.data.records import ShardWriter


def arrays(count, shape, dtype, seed=0):
    """Random examples, and other arrays in place of their mirror images, `[count, 2, *shape]`."""
    rng = np.random.default_rng(seed)
    if dtype == "uint8":
        return rng.integers(256, size=(count, 2, *shape), dtype=np.uint8)
    return rng.standard_normal((count, 2, *shape)).astype(np.dtype(dtype))


def prepare(folder, sizes=(5, 7, 3), *, kind="moments", shape=(4, 4, 8), dtype="float16", mirror=False, classes=10):
    """Writes shards of these numbers of examples; returns their arrays and labels."""
    x = arrays(sum(sizes), shape, dtype)
    labels = np.arange(len(x), dtype=np.int32) % classes if classes else np.full(len(x), -1, np.int32)
    shards, first = [], 0
    for number, size in enumerate(sizes):
        with ShardWriter(folder, f"{number:05d}.array_record", shape, dtype, mirror=mirror) as writer:
            for i in range(first, first + size):
                writer.write(int(labels[i]), x[i, 0], *([x[i, 1]] if mirror else []))
        shards.append(writer.shard)
        first += size
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
        text_encoder="",
        crop="none",
        skipped=0,
        shards=tuple(shards),
    ).save(folder)
    return x, labels
