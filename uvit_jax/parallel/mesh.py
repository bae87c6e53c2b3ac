"""The one mesh, axes ("data", "fsdp", "tensor"), for a core, a GPU or a pod slice."""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from uvit_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
# A batch is split over both: fsdp is data parallelism whose parameters are split too.
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh; their product is the number of devices, and one of them may be -1, the rest.

    Attributes:
      data: replicas of the model, each with its own part of the batch.
      fsdp: parts into which parameters, optimizer and EMA are split, each with its own part of the batch.
      tensor: parts into which heads and hidden channels of each layer are split.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        for axis in AXES:
            size = getattr(self, axis)
            if size < 1 and size != -1:
                raise UserError(f"{axis} is {size}, expected a positive number, or -1 for the rest of the devices")
        if sum(getattr(self, axis) == -1 for axis in AXES) > 1:
            raise UserError("data, fsdp and tensor have more than one -1, expected at most one to take the rest")

    def sizes(self, num_devices: int) -> tuple[int, int, int]:
        """The size of each axis on this many devices.

        Raises:
          UserError: if the sizes don't multiply to num_devices.
        """
        wanted = [getattr(self, axis) for axis in AXES]
        known = math.prod(size for size in wanted if size != -1)
        rest, left_over = divmod(num_devices, known)
        data, fsdp, tensor = (rest if size == -1 else size for size in wanted)
        if left_over or data * fsdp * tensor != num_devices:
            asked = ", ".join(f"{axis} = {size}" for axis, size in zip(AXES, wanted, strict=True))
            raise UserError(f"{asked} don't multiply to the number of devices, {num_devices}")
        return data, fsdp, tensor


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over these devices (default: all there are), laid out along the hardware's own topology.

    Raises:
      UserError: if the sizes don't multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(config.sizes(len(devices)), AXES, (AxisType.Auto,) * len(AXES), devices=devices)


def batch_parts(mesh: Mesh) -> int:
    """The number of parts a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first dimension over all devices that hold different examples."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())
