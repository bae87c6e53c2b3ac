"""Samples of a model as a stream of images, which can be taken up at any sample."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Array, UInt8

from uvit_jax.diffusion.sampler import Sampler
from uvit_jax.errors import UserError
from uvit_jax.experiment.assembled import Assembled
from uvit_jax.experiment.job_sections import SampleConfig
from uvit_jax.experiment.sections import DiffusionConfig
from uvit_jax.jobs.sampling.conditions import Conditions
from uvit_jax.parallel.arrays import fetch
from uvit_jax.parallel.batches import one_ahead, round_up
from uvit_jax.parallel.mesh import batch_parts
from uvit_jax.telemetry.images import to_uint8
from uvit_jax.training.state import Params


@dataclasses.dataclass(frozen=True)
class Generation:
    """A stream of samples; another seed or guidance scale compiles nothing again.

    Attributes:
      sampler: draws samples of the network; its program is compiled at the first batch.
      decode: dispatches the decoding of samples to images in about [-1, 1].
      conditions: what sample i is of.
      seed: of the noise: sample i is a function of (seed, i).
      guidance_scale: the paper's s; 0 for none.
      batch_size: samples drawn at a time on all devices together, at most.
      row_multiple: divides every batch: the parts that the mesh splits one into.
    """

    sampler: Sampler
    decode: Callable[[Array], Array]
    conditions: Conditions
    seed: int
    guidance_scale: float
    batch_size: int
    row_multiple: int = 1

    def batches(
        self, params: Params, first: int, count: int
    ) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
        """Yields images number `first` to `count` - 1 as the bytes of a PNG, batch after batch.

        The devices draw the next batch while the host uses this one. Batches start at sample 0
        wherever `first` is, so that a stream taken up again gives the same bits. Fewer samples than
        a batch are a batch of their own; the last of several batches is as large as the others,
        since a second program costs more than the samples that are dropped. All hosts call this
        together and each gets all images.

        Raises:
          UserError: an image holds NaN; the sentence has the sample's number.
        """
        size = min(self.batch_size, round_up(count, self.row_multiple))
        begins = range(first - first % size, count, size)
        drawn = ((begin, self._draw(params, begin, size)) for begin in begins)
        for begin, images in one_ahead(drawn):
            yield _bytes(begin, images, first, count)

    def _draw(self, params: Params, begin: int, size: int) -> Array:
        """Dispatches one batch of images, from sample number `begin` on."""
        indices = np.arange(begin, begin + size, dtype=np.int32)
        samples = self.sampler(
            params,
            seed=self.seed,
            indices=indices,
            condition=self.conditions.of(indices),
            guidance_scale=self.guidance_scale,
        )
        assert not isinstance(samples, tuple)  # such a sampler keeps no trajectory
        return self.decode(samples)


def make_generation(
    assembled: Assembled,
    diffusion: DiffusionConfig,
    sample: SampleConfig,
    conditions: Conditions,
    *,
    batch_size: int | None = None,
) -> Generation:
    """Builds the generation that `config.sample` describes; batch_size: in place of its own."""
    return Generation(
        sampler=assembled.sampler(diffusion, sample, conditions.null),
        decode=assembled.decode,
        conditions=conditions,
        seed=sample.seed,
        guidance_scale=sample.guidance_scale,
        batch_size=sample.batch_size if batch_size is None else batch_size,
        row_multiple=batch_parts(assembled.mesh),
    )


def _bytes(begin: int, images: Array, first: int, count: int) -> UInt8[np.ndarray, "b h w c"]:
    """Fetches a batch from number `begin` on: its images from `first` on and before `count`."""
    skipped = max(first - begin, 0)
    wanted = fetch(images)[skipped : count - begin]
    bad = np.flatnonzero(np.isnan(wanted).any(axis=(1, 2, 3)))
    if len(bad):
        raise UserError(
            f"sample {begin + skipped + bad[0]} holds NaN ({len(bad)} of the {len(wanted)} in its "
            "batch do), expected numbers: the weights may be damaged, or config.model.dtype too "
            "narrow for them"
        )
    return to_uint8(wanted)
