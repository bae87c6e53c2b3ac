"""The device mesh, axes ("data", "fsdp", "tensor"), the same for a CPU, a GPU or a pod slice."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from uvit_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
# A batch is split over both: fsdp is data parallelism whose parameters are split too.
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh; their product is the number of devices.

    One size may be -1, which takes the devices that are left.

    Attributes:
      data: replicas of the model, each with its own part of the batch.
      fsdp: parts into which parameters, optimizer and EMA are split, each with its own part of the
        batch.
      tensor: parts into which heads and hidden channels of each layer are split.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        for axis in AXES:
            size = getattr(self, axis)
            if size < 1 and size != -1:
                raise UserError(
                    f"{axis} is {size}, expected a positive number, or -1 for the rest of the "
                    "devices"
                )
        if sum(getattr(self, axis) == -1 for axis in AXES) > 1:
            raise UserError(
                "data, fsdp and tensor have more than one -1, expected at most one to take the rest"
            )

    def sizes(self, num_devices: int, *, prefix: str = "") -> tuple[int, int, int]:
        """Returns the size of each axis on this many devices.

        Args:
          prefix: goes before the names of the fields in errors, as "config.mesh.".

        Raises:
          UserError: if the sizes don't multiply to num_devices.
        """
        wanted = [getattr(self, axis) for axis in AXES]
        known = math.prod(size for size in wanted if size != -1)
        rest, left_over = divmod(num_devices, known)
        data, fsdp, tensor = (rest if size == -1 else size for size in wanted)
        if left_over or data * fsdp * tensor != num_devices:
            asked = ", ".join(
                f"{prefix}{axis} = {size}" for axis, size in zip(AXES, wanted, strict=True)
            )
            raise UserError(
                f"{asked} don't multiply to the number of devices, expected a product of "
                f"{num_devices}: --{prefix}data=-1 --{prefix}fsdp=1 --{prefix}tensor=1 takes all "
                "there are"
            )
        return data, fsdp, tensor


def make_mesh(
    config: MeshConfig, devices: Sequence[jax.Device] | None = None, *, prefix: str = ""
) -> Mesh:
    """Returns the mesh over these devices, laid out along the hardware's topology.

    Several slices (of GPUs: several NVLink domains) are joined by the data center's network, which
    is slower. The data axis goes over it, fsdp only as far as data is too small, tensor never.

    Args:
      devices: default all devices of the run.
      prefix: goes before the names of the config's fields in errors, as "config.mesh.".

    Raises:
      UserError: if the sizes don't multiply to the number of devices, or can't be laid over the
        slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices), prefix=prefix)
    slices = len({slice_index(device) for device in devices})
    if slices == 1:
        grid = _lay_out(sizes, devices)
    else:
        grid = _lay_over_slices(sizes, slices, devices, prefix)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def slice_index(device: jax.Device) -> int:
    """Returns the number of a device's slice; 0 on platforms without slices."""
    return getattr(device, "slice_index", 0) or 0


def _lay_out(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    try:
        return mesh_utils.create_device_mesh(sizes, devices)
    except NotImplementedError:  # no assignment of whole physical axes
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def _lay_over_slices(
    sizes: tuple[int, int, int], slices: int, devices: Sequence[jax.Device], prefix: str
) -> np.ndarray:
    data, fsdp, tensor = sizes
    over_data = math.gcd(data, slices)
    over_fsdp = slices // over_data
    if fsdp % over_fsdp:
        raise UserError(
            f"{prefix}data = {data}, {prefix}fsdp = {fsdp}, {prefix}tensor = {tensor} can't be "
            f"laid over {slices} slices, expected data * fsdp to be a multiple of {slices}: tensor "
            "must stay within a slice"
        )
    inner = (data // over_data, fsdp // over_fsdp, tensor)
    return mesh_utils.create_hybrid_device_mesh(
        inner, (over_data, over_fsdp, 1), devices, allow_split_physical_axes=True
    )


def batch_parts(mesh: Mesh) -> int:
    """Number of parts a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding that splits the first dimension over data and fsdp, which split a batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding that keeps the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())
