"""Networks that turn images into features, and their evaluation on a mesh in fixed chunks."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from uvit_jax.parallel.arrays import fetch, place
from uvit_jax.parallel.batches import padded
from uvit_jax.parallel.mesh import batch_parts, batch_sharding, replicated

# Images per device and call, by platform. The size is fixed: the rounding of a convolution depends
# on its batch size, and a metric must not.
CHUNK = {"cpu": 16}
_CHUNK_ELSEWHERE = 128

Features = dict[str, Float[np.ndarray, "n d"]]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FeatureNetwork:
    """A network that maps images to vectors whose distributions are compared.

    Attributes:
      name: name in reports.
      sha256: hash of its weights.
      prefix: prefix of its metrics' names. It is empty for the published Inception-v3 alone, so
        that no other network's distance is called FID.
      widths: width of each kind of feature: "pool" always; for some networks "spatial" (sFID) and
        "logits" (IS).
      settings: how images are brought to it, for the record: resize, dtype.
      params: a tree of arrays.
      apply: `apply(params, images uint8 [b, h, w, c], kinds)` returns float32 `[b, d]` of each
        kind; it is called under jit.
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
        """Fields that must agree for two sets of features to be comparable."""
        return {"name": self.name, "sha256": self.sha256, **self.settings}

    @property
    def reference_kinds(self) -> tuple[str, ...]:
        """Kinds that references hold: all but the logits, which only samples need."""
        return tuple(kind for kind in self.widths if kind != "logits")


class Extraction:
    """A feature network on a mesh, its parameters replicated and the images split over devices.

    Any number of images is processed `rows` at a time (`CHUNK` on each device that holds examples
    of its own), the last of them padded: one program is compiled, and an image's features do not
    depend on its batch.
    """

    def __init__(
        self, network: FeatureNetwork, mesh: Mesh, kinds: Sequence[str], *, chunk: int = 0
    ):
        """kinds: some of `network.widths`. chunk: images per device and call; 0 for `CHUNK`'s."""
        self.network, self.mesh = network, mesh
        # The same order on all hosts, which fetch them kind by kind in collectives.
        self._kinds = tuple(kind for kind in network.widths if kind in kinds)
        chunk = chunk or CHUNK.get(mesh.devices.flat[0].platform, _CHUNK_ELSEWHERE)
        self.rows = chunk * batch_parts(mesh)
        self._params = place(network.params, replicated(mesh))
        whole, batch = replicated(mesh).spec, batch_sharding(mesh).spec
        # Without a collective inside there is no replication to check.
        apply = jax.shard_map(
            lambda params, images: network.apply(params, images, self._kinds),
            mesh=mesh,
            in_specs=(whole, batch),
            out_specs=batch,
            check_vma=False,
        )
        self._program = jax.jit(apply)

    def start(self, images: UInt8[np.ndarray, "n h w c"]) -> "FutureFeatures":
        """Dispatches the images to the devices without waiting; an alpha channel is dropped."""
        images = images[..., : 3 if images.shape[-1] >= 3 else 1]
        parts = []
        for first in range(0, len(images), self.rows):
            chunk = images[first : first + self.rows]
            batch = place(padded(chunk, self.rows), batch_sharding(self.mesh))
            parts.append((len(chunk), self._program(self._params, batch)))
        return FutureFeatures({kind: self.network.widths[kind] for kind in self._kinds}, parts)

    def __call__(self, images: UInt8[np.ndarray, "n h w c"]) -> Features:
        """The features of each image, float32, on the host.

        All hosts call this together, each with all images.
        """
        return self.start(images).wait()


@dataclasses.dataclass(frozen=True)
class FutureFeatures:
    """Features that the devices are computing.

    Attributes:
      widths: width of each kind.
      parts: for each chunk, how many of its rows are images, and the features of all its rows.
    """

    widths: Mapping[str, int]
    parts: list[tuple[int, dict[str, Array]]]

    def wait(self) -> Features:
        """Waits for the features and returns each kind, float32, on the host."""
        return {
            kind: np.concatenate(
                [
                    np.zeros((0, width), np.float32),
                    *(fetch(part[kind])[:n] for n, part in self.parts),
                ]
            )
            for kind, width in self.widths.items()
        }
