"""What jobs have in common: the parts of an experiment, checked against each other and put
together.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from uvit_jax.data.prepared.record_source import RecordSource
from uvit_jax.data.sources import SOURCES, Source, load_source
from uvit_jax.diffusion.sampler import Sampler
from uvit_jax.errors import UserError
from uvit_jax.experiment.checks import check_latents, check_mesh
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.data_card import DataCard
from uvit_jax.interop.autoencoder import Autoencoder, open_autoencoder
from uvit_jax.parallel.arrays import fetch
from uvit_jax.parallel.compiler import compiler_options
from uvit_jax.parallel.mesh import batch_sharding, make_mesh
from uvit_jax.parallel.sharding import tree_shardings
from uvit_jax.training.codec import Codec
from uvit_jax.training.inputs import Inputs
from uvit_jax.training.network import Network, abstract_network
from uvit_jax.training.state import Params
from uvit_jax.training.step import Objective, make_train_step


@dataclasses.dataclass(frozen=True)
class Parts:
    """An experiment on this machine's devices.

    Attributes:
      experiment: its config.
      mesh: all devices.
      network: `network(params, x, model_time, condition)`, as training runs it.
      init_params: `init_params(key)`, fresh parameters.
      card: the data the model is of.
      codec: between images and the network's latents; None for pixels, or where no autoencoder is
        named.
    """

    experiment: Experiment
    mesh: Mesh
    network: Network
    init_params: Callable[[Array], Params]
    card: DataCard
    codec: Codec | None

    @property
    def sampling_network(self) -> Network:
        """The network for what takes no gradient: it computes nothing twice, whatever `model.remat`
        says.
        """
        if self.experiment.model.remat == "none":
            return self.network
        return abstract_network(
            dataclasses.replace(self.experiment.model, remat="none"), self.mesh
        )[1]

    @property
    def batch_sharding(self) -> NamedSharding:
        """How batches are laid over the mesh."""
        return batch_sharding(self.mesh)

    @property
    def abstract_params(self) -> Params:
        """Shapes, dtypes and shardings of the parameters, with no array made."""
        shapes = jax.eval_shape(self.init_params, jax.random.key(0))
        return jax.tree.map(
            lambda leaf, sharding: leaf.update(sharding=sharding),
            shapes,
            tree_shardings(shapes, self.mesh),
        )

    def train_step(
        self, optimizer: optax.GradientTransformation, inputs: Inputs, null_condition: Any = None
    ) -> Callable:
        """`train_step(state, batch, frozen) -> (state, metrics)` as the config describes it, not
        yet jitted.

        null_condition: the states of the empty text; a model of labels has its own empty one.
        """
        experiment = self.experiment
        objective = Objective(
            experiment.diffusion.make_schedule(),
            prediction=experiment.diffusion.prediction,
            weighting=experiment.diffusion.weighting,
            p_uncond=experiment.diffusion.p_uncond,
            null_condition=experiment.null_label if null_condition is None else null_condition,
        )
        return make_train_step(
            self.network,
            objective,
            optimizer,
            ema_rate=experiment.ema.rate,
            seed=experiment.train.seed,
            inputs=inputs,
            microbatches=experiment.train.microbatches,
        )

    def sampler(self, null_condition: Any, *, return_trajectory: bool = False) -> Sampler:
        """The sampler that `config.sample` describes, its batch split over the mesh."""
        experiment = self.experiment
        return Sampler(
            self.sampling_network,
            experiment.diffusion.make_schedule(),
            experiment.model.sample_shape,
            config=experiment.sample.sampler(),
            prediction=experiment.diffusion.prediction,
            null_condition=null_condition,
            sharding=self.batch_sharding,
            return_trajectory=return_trajectory,
            compiler_options=compiler_options(self.mesh, overlap="none"),
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (h, w, c) of the images that samples become."""
        h, w, c = self.experiment.model.sample_shape
        if self.codec is None:
            return (h, w, c) if self.card.normalization is None else (h, w, _colours(c))
        factor = self.codec.autoencoder.factor
        return h * factor, w * factor, 3

    def decoded(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        """What samples of the network look like, on the devices, float32 in about [-1, 1]; waits
        for nothing.

        Pixels are what they are, latents are decoded; without an autoencoder their first three
        channels (or the first) stand for colours, two standard deviations each way.
        """
        if self.codec is not None:
            return self.codec.decoder(self.codec.params, jax.device_put(x, self.batch_sharding))
        if self.card.normalization is not None:
            return x[..., : _colours(x.shape[-1])] / 2
        return x

    def to_images(self, x: Float[Array, "b h w c"]) -> Float[np.ndarray, "b i j d"]:
        """`decoded` samples, brought to the host."""
        return fetch(self.decoded(x))


def _colours(channels: int) -> int:
    return 3 if channels >= 3 else 1


def open_source(experiment: Experiment) -> Source:
    """The data set that `config.data.source` names, opened.

    Raises:
      UserError: for a name that is neither built in nor the folder of a prepared data set.
    """
    name = experiment.data.source
    if name in SOURCES:
        return load_source(name)
    if not pathlib.Path(name).is_dir():
        raise UserError(
            f"config.data.source is {name!r}, expected {', '.join(map(repr, SOURCES))} or the "
            "folder of a prepared data set: --job prepare makes one from images"
        )
    return RecordSource(pathlib.Path(name))


def open_experiment_autoencoder(experiment: Experiment) -> Autoencoder | None:
    """The autoencoder that the config names, its weights read; None where it names none."""
    section = experiment.autoencoder
    if not section.name:
        return None
    try:
        return open_autoencoder(section.name, dtype=section.dtype)
    except UserError as error:
        raise UserError(f"config.autoencoder.name is {section.name!r}: {error}") from None


def assemble(
    experiment: Experiment,
    card: DataCard,
    autoencoder: Autoencoder | None = None,
    devices: Sequence[jax.Device] | None = None,
    *,
    section: Literal["train", "sample"] = "train",
) -> Parts:
    """The parts of an experiment on these devices (default: all there are); no array is made.

    section: whose batches the mesh has to divide.

    Raises:
      UserError: where the mesh doesn't fit the devices, the batch or the heads, or the autoencoder
        not the model.
    """
    mesh = make_mesh(experiment.mesh, devices, prefix="config.mesh.")
    check_mesh(experiment, experiment.mesh.sizes(mesh.size), section)
    codec = None
    if autoencoder is not None:
        check_latents(experiment, autoencoder)
        card.check(autoencoder)
        codec = Codec(autoencoder, mesh, experiment.autoencoder.batch_size, card.normalization)
    _, network, init_params = abstract_network(experiment.model, mesh)
    return Parts(experiment, mesh, network, init_params, card, codec)
