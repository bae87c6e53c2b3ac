"""Reading of prepared data: records a second on one core and on all, memory, time to open.

python benchmarks/data.py [--records 200000] [--folder /tmp]

Writes a synthetic set of moments (32x32x8 float16, 16 KiB a record, 3.3 GB by default) and one of
2.5 million tiny records, measures in processes of their own, prints a table and deletes both. The
files have just been written, so what is measured is the machine and not its disk, unless they don't
fit into its memory.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from uvit_jax.data.pipeline import train_batches
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.data.prepared.shard import Shard
from uvit_jax.data.prepared.shard_writer import ShardWriter
from uvit_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh

MOMENTS, TINY = (32, 32, 8), (1, 1, 2)
SHARD, BATCH, CLASSES, EPOCHS = 8192, 256, 1000, 3


def write(folder: str, records: int, shape: tuple[int, int, int]) -> float:
    """Writes a prepared data set of Gaussian moments; returns the seconds that took."""
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((256, *shape)).astype(np.float16)
    shards: list[Shard] = []
    start = time.perf_counter()
    for first in range(0, records, SHARD):
        with ShardWriter(
            folder, f"{len(shards):05d}.array_record", shape, "float16", mirror=False
        ) as writer:
            for i in range(first, min(first + SHARD, records)):
                writer.write(i % CLASSES, pool[i % len(pool)])
        shards.append(writer.shard)
    channels = shape[-1] // 2
    Manifest(
        source="synthetic",
        split="train",
        kind="moments",
        image_size=8 * shape[0],
        shape=shape,
        dtype="float16",
        mirror=False,
        class_names=(),
        num_classes=CLASSES,
        autoencoder="none",
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
    return time.perf_counter() - start


def open_seconds(folder: str) -> float:
    """The time to open a data set and read one record of it."""
    start = time.perf_counter()
    PreparedData(folder).read(np.arange(1), np.zeros(1, bool))
    return time.perf_counter() - start


def source_rate(folder: str, seconds: float, cores: int = 1) -> float:
    """Records a second of `PreparedData.read` alone, random batches, on that many cores."""
    _use_cores(cores)
    source, rng = PreparedData(folder), np.random.default_rng(0)
    mirrored = np.zeros(BATCH, bool)

    def read() -> None:
        source.read(rng.integers(len(source), size=BATCH), mirrored)

    return _rate(read, seconds)


def pipeline_rate(
    folder: str, seconds: float, cores: int, workers: int, prefetch: int = 2
) -> float:
    """Records a second of `train_batches`, shuffled, as arrays on JAX's CPU device."""
    _use_cores(cores)
    batches = _batches(folder, workers, prefetch)
    rate = _rate(lambda: next(batches), seconds)
    batches.close()
    return rate


def memory(folder: str) -> list[dict[str, float]]:
    """MiB of this process, anonymous and resident, after a tenth of an epoch and each epoch."""
    batches = _batches(folder, workers=0, prefetch=2)
    epoch = max(10, len(PreparedData(folder)) // BATCH)
    found, done = [], 0
    for until in (max(1, epoch // 10), *(epoch * n for n in range(1, EPOCHS + 1))):
        for _ in range(done, until):
            next(batches)["x"].block_until_ready()
        done = until
        status = pathlib.Path("/proc/self/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in status)
        found.append({name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "VmRSS")})
    batches.close()
    return found


def _batches(folder: str, workers: int, prefetch: int) -> Any:
    return train_batches(
        PreparedData(folder),
        fields=("x", "label"),
        batch_size=BATCH,
        seed=0,
        sharding=batch_sharding(make_mesh(MeshConfig(), jax.devices()[:1])),
        prefetch=prefetch,
        workers=workers,
    )


def _rate(step: Callable[[], Any], seconds: float) -> float:
    for _ in range(10):
        step()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        step()
        steps += 1
    return steps * BATCH / (time.perf_counter() - start)


def _use_cores(count: int) -> None:
    """Keeps this process to its first cores; call it before XLA and NumPy start threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def alone(measure: Callable[..., Any], *arguments: Any) -> Any:
    """The measurement in a fresh process: without another's memory, threads or affinity."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, *arguments).result()


def run(parent: str, records: int, tiny_records: int, seconds: float) -> None:
    """Measures and prints all of it."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        large, tiny = os.path.join(folder, "large"), os.path.join(folder, "tiny")
        took = write(large, records, MOMENTS)
        size = records * np.prod(MOMENTS) * 2
        print(
            f"wrote {records:,} records of {size / records:,.0f} bytes in {took:.1f} s, "
            f"{size / took / 1e9:.2f} GB/s"
        )

        def show(what: str, rate: float) -> None:
            print(f"  {what:58s} {rate:10,.0f} records/s  {rate * size / records / 1e9:6.2f} GB/s")

        show("one core, PreparedData.read", alone(source_rate, large, seconds))
        show("one core, train_batches", alone(pipeline_rate, large, seconds, 1, 0))
        show(
            f"{cores} cores, train_batches, {cores} threads",
            alone(pipeline_rate, large, seconds, cores, 0, cores),
        )
        show(
            f"{cores} cores, train_batches, {cores} workers",
            alone(pipeline_rate, large, seconds, cores, cores),
        )
        for number, found in enumerate(alone(memory, large)):
            when = f"after {number} epochs" if number else "after a tenth of an epoch"
            print(
                f"  {when:58s} RssAnon {found['RssAnon']:7.1f} MiB  VmRSS {found['VmRSS']:7.1f} MiB"
            )
        write(tiny, tiny_records, TINY)
        opened, files = alone(open_seconds, tiny), len(os.listdir(tiny)) - 1
        what = f"opening {tiny_records:,} records in {files} shards and reading one"
        print(f"  {what:58s} {opened:10.3f} s")


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--records", type=int, default=200_000, help="of the large set, 16 KiB each"
    )
    parser.add_argument(
        "--tiny-records", type=int, default=2_500_000, help="of the set that is only opened"
    )
    parser.add_argument("--seconds", type=float, default=20, help="how long each rate is measured")
    parser.add_argument("--folder", help="where the temporary files go (default: the system's)")
    arguments = parser.parse_args()
    run(arguments.folder, arguments.records, arguments.tiny_records, arguments.seconds)


if __name__ == "__main__":
    main()
