"""Features of images: what an extractor is, and one at work on the mesh, a chunk of fixed size on
each device.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, UInt8

from uvit_jax.parallel.arrays import fetch, place
from uvit_jax.parallel.mesh import BATCH_AXES, batch_parts, batch_sharding, replicated

# Images that a device works on at a time. Always this many: a convolution's rounding depends on the
# size of its batch, and the numbers of an evaluation must not.
CHUNK = {"cpu": 16}
_CHUNK_ELSEWHERE = 128

Features = dict[str, Float[np.ndarray, "n d"]]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FeatureExtractor:
    """From images to vectors whose distributions are compared.

    Attributes:
      name: what reports call it.
      sha256: of its weights.
      prefix: what the names of its numbers begin with: empty for the published Inception-v3 alone,
        so that no other network's distance is ever called FID.
      widths: of each kind of feature it has: "pool" always; "spatial" (sFID's) and "logits" (IS's)
        perhaps.
      settings: how images are brought to it, for the record: resize, dtype.
      params: a tree of arrays.
      apply: `apply(params, images uint8 [b, h, w, c], kinds)` gives float32 `[b, d]` of each kind;
        called under jit.
    """

    name: str
    sha256: str
    prefix: str
    widths: Mapping[str, int]
    settings: Mapping[str, str]
    params: Any = dataclasses.field(repr=False)
    apply: Callable[[Any, Array, Sequence[str]], dict[str, Array]] = dataclasses.field(repr=False)

    @property
    def identity(self) -> dict[str, str]:
        """What must be the same for two sets of features to be comparable."""
        return {"name": self.name, "sha256": self.sha256, **self.settings}

    @property
    def reference_kinds(self) -> tuple[str, ...]:
        """The kinds that references are made of: all but the logits, which are of samples alone."""
        return tuple(kind for kind in self.widths if kind != "logits")


class Extraction:
    """An extractor on the mesh: every device holds it whole and works on its own images.

    Any number of images may be given; they are worked on `rows` at a time (`CHUNK` on each device
    that holds examples of its own), the last of them filled up, so that one program is compiled and
    an image's features do not depend on its batch.
    """

    def __init__(
        self, extractor: FeatureExtractor, mesh: Mesh, kinds: Sequence[str], *, chunk: int = 0
    ):
        """kinds: of features, some of `extractor.widths`. chunk: images of a device at a time; 0
        for `CHUNK`'s.
        """
        self.extractor, self.mesh = extractor, mesh
        # In one order everywhere: hosts fetch them kind by kind, together.
        self._kinds = tuple(kind for kind in extractor.widths if kind in kinds)
        self.rows = (
            chunk or CHUNK.get(mesh.devices.flat[0].platform, _CHUNK_ELSEWHERE)
        ) * batch_parts(mesh)
        self._params = place(extractor.params, replicated(mesh))
        batch = PartitionSpec(BATCH_AXES)
        # No collective is inside, so there is no replication to be checked.
        apply = jax.shard_map(
            lambda params, images: extractor.apply(params, images, self._kinds),
            mesh=mesh,
            in_specs=(PartitionSpec(), batch),
            out_specs=batch,
            check_vma=False,
        )
        self._program = jax.jit(apply)

    def start(self, images: UInt8[np.ndarray, "n h w c"]) -> "Pending":
        """Hands the images to the devices and does not wait for them; alpha has no part in their
        features.
        """
        images = images[..., : 3 if images.shape[-1] >= 3 else 1]
        parts = []
        for first in range(0, len(images), self.rows):
            chunk = images[first : first + self.rows]
            filled = chunk
            if len(chunk) < self.rows:
                filled = np.zeros((self.rows, *images.shape[1:]), np.uint8)
                filled[: len(chunk)] = chunk
            parts.append(
                (len(chunk), self._program(self._params, place(filled, batch_sharding(self.mesh))))
            )
        return Pending({kind: self.extractor.widths[kind] for kind in self._kinds}, parts)

    def __call__(self, images: UInt8[np.ndarray, "n h w c"]) -> Features:
        """The features of each image, float32, on the host; all hosts call this together, each with
        all images.
        """
        return self.start(images).wait()


@dataclasses.dataclass(frozen=True)
class Pending:
    """Features that the devices are at work on.

    Attributes:
      widths: of each kind.
      parts: of each chunk, how many of its rows are images, and the features of all.
    """

    widths: Mapping[str, int]
    parts: list[tuple[int, dict[str, Array]]]

    def wait(self) -> Features:
        """Each kind, on the host."""
        return {
            kind: np.concatenate(
                [
                    np.zeros((0, width), np.float32),
                    *(fetch(part[kind])[:n] for n, part in self.parts),
                ]
            )
            for kind, width in self.widths.items()
        }
