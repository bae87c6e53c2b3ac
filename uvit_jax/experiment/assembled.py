"""Mesh, network, data card and codec built from one config, and checked against each other."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from uvit_jax.diffusion.sampler import Sampler
from uvit_jax.errors import UserError
from uvit_jax.experiment.checks import check_batch, check_latents, check_mesh
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.data_card import DataCard
from uvit_jax.experiment.job_sections import SampleConfig
from uvit_jax.experiment.sections import DiffusionConfig
from uvit_jax.interop.autoencoder import Autoencoder
from uvit_jax.models.uvit_config import UViTConfig
from uvit_jax.models.uvit_sharding import RULES
from uvit_jax.parallel.arrays import fetch
from uvit_jax.parallel.compiler import compiler_options
from uvit_jax.parallel.mesh import batch_sharding, make_mesh
from uvit_jax.parallel.sharding import tree_shardings
from uvit_jax.training.codec import Codec
from uvit_jax.training.network import Network, abstract_network
from uvit_jax.training.state import Params


@dataclasses.dataclass(frozen=True)
class Assembled:
    """Mesh, network, data card and codec built from one config.

    Attributes:
      model: the network's config.
      mesh: the devices.
      network: `network(params, x, model_time, condition)`, as training runs it.
      init_params: `init_params(key)` returns fresh parameters.
      card: the data set that the model learned or learns.
      codec: between images and the network's latents; None for a model of pixels, or where no
        autoencoder is named.
    """

    model: UViTConfig
    mesh: Mesh
    network: Network
    init_params: Callable[[Array], Params]
    card: DataCard
    codec: Codec | None

    @functools.cached_property
    def sampling_network(self) -> Network:
        """The network without rematerialisation, for programs that take no gradient."""
        if self.model.remat == "none":
            return self.network
        return abstract_network(dataclasses.replace(self.model, remat="none"), self.mesh)[1]

    @property
    def batch_sharding(self) -> NamedSharding:
        """Sharding of a batch over the mesh."""
        return batch_sharding(self.mesh)

    @property
    def abstract_params(self) -> Params:
        """Shapes, dtypes and shardings of the parameters, with no array made."""
        shapes = jax.eval_shape(self.init_params, jax.random.key(0))
        placed: Params = jax.tree.map(
            lambda leaf, sharding: leaf.update(sharding=sharding),
            shapes,
            tree_shardings(shapes, self.mesh, RULES),
        )
        return placed

    def sampler(
        self,
        diffusion: DiffusionConfig,
        sample: SampleConfig,
        null_condition: Any,
        *,
        return_trajectory: bool = False,
    ) -> Sampler:
        """Builds the sampler that these sections describe, its batch split over the mesh."""
        return Sampler(
            self.sampling_network,
            diffusion.make_schedule(),
            self.model.sample_shape,
            config=sample.sampler(),
            prediction=diffusion.prediction,
            null_condition=null_condition,
            sharding=self.batch_sharding,
            return_trajectory=return_trajectory,
            compiler_options=compiler_options(self.mesh, overlap="none"),
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (h, w, c) of a decoded sample."""
        h, w, c = self.model.sample_shape
        if self.codec is None:
            return (h, w, c) if self.card.normalization is None else (h, w, _colours(c))
        factor = self.codec.autoencoder.factor
        return h * factor, w * factor, 3

    def decode(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        """Dispatches the decoding of samples to images, float32 in about [-1, 1].

        Pixels are returned as they are, latents are decoded. Latents without an autoencoder are
        shown by their first three channels (or the first one), two standard deviations each way.
        """
        if self.codec is not None:
            return self.codec.decoder(self.codec.params, jax.device_put(x, self.batch_sharding))
        if self.card.normalization is not None:
            return x[..., : _colours(x.shape[-1])] / 2
        return x

    def to_images(self, x: Float[Array, "b h w c"]) -> Float[np.ndarray, "b i j d"]:
        """Images of `decode`, fetched to the host."""
        return fetch(self.decode(x))

    def check_decoder(self) -> None:
        """Raises a UserError for latents without an autoencoder: samples need a decoder."""
        if self.card.normalization is not None and self.codec is None:
            raise UserError(
                f"config.autoencoder.name is empty, expected {self.card.autoencoder!r} or another "
                "decoder of its latents: a hub name, a folder or a weights file"
            )


def _colours(channels: int) -> int:
    return 3 if channels >= 3 else 1


def assemble(
    experiment: Experiment,
    card: DataCard,
    autoencoder: Autoencoder | None = None,
    devices: Sequence[jax.Device] | None = None,
    *,
    section: Literal["train", "sample"] = "train",
) -> Assembled:
    """Builds the mesh and network on these devices (default: all); no array is made.

    section: the section whose batch size the mesh has to divide.

    Raises:
      UserError: where the mesh doesn't fit the devices, the batch or the heads, or the autoencoder
        doesn't fit the model.
    """
    model, train = experiment.model, experiment.train
    mesh = make_mesh(experiment.mesh, devices, prefix="config.mesh.")
    sizes = experiment.mesh.sizes(mesh.size)
    if section == "train":
        check_batch("train", train.batch_size, sizes, train.microbatches)
    else:
        check_batch("sample", experiment.sample.batch_size, sizes)
    check_mesh(model, sizes)
    codec = None
    if autoencoder is not None:
        check_latents(model, autoencoder)
        card.check(autoencoder)
        codec = Codec(autoencoder, mesh, experiment.autoencoder.batch_size, card.normalization)
    _, network, init_params = abstract_network(model, mesh)
    return Assembled(model, mesh, network, init_params, card, codec)
