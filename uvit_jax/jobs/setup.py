"""What train and sample have in common: the parts of an experiment, checked against each other and put together."""

import dataclasses
from collections.abc import Callable, Sequence

from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from uvit_jax.diffusion.sampler import Sampler
from uvit_jax.jobs.config import Experiment, check_mesh
from uvit_jax.parallel.mesh import batch_sharding, make_mesh
from uvit_jax.training.network import Network, abstract_network
from uvit_jax.training.state import Params


@dataclasses.dataclass(frozen=True)
class Parts:
    """An experiment on this machine's devices.

    Attributes:
      experiment: its config.
      mesh: all devices.
      network: `network(params, x, model_time, condition)`.
      init_params: `init_params(key)`, fresh parameters.
      class_names: of the labels, for pictures.
    """

    experiment: Experiment
    mesh: Mesh
    network: Network
    init_params: Callable[[Array], Params]
    class_names: Sequence[str]

    @property
    def batch_sharding(self) -> NamedSharding:
        """How batches are laid over the mesh."""
        return batch_sharding(self.mesh)

    def sampler(self, *, return_trajectory: bool = False) -> Sampler:
        """The sampler that `config.sample` describes, its batch split over the mesh."""
        experiment = self.experiment
        return Sampler(
            self.network,
            experiment.diffusion.make_schedule(),
            experiment.model.sample_shape,
            config=experiment.sample.sampler(),
            prediction=experiment.diffusion.prediction,
            null_condition=experiment.null_label,
            sharding=self.batch_sharding,
            return_trajectory=return_trajectory,
        )


def assemble(experiment: Experiment, class_names: Sequence[str]) -> Parts:
    """The parts of an experiment; no array is made.

    Raises:
      UserError: where the mesh doesn't fit the devices, the batch or the heads.
    """
    mesh = make_mesh(experiment.mesh)
    check_mesh(experiment, experiment.mesh.sizes(mesh.size))
    _, network, init_params = abstract_network(experiment.model)
    return Parts(experiment, mesh, network, init_params, class_names)
