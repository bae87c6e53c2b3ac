import unittest.mock

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from uvit_jax.errors import UserError
from uvit_jax.parallel.mesh import (
    AXES,
    MeshConfig,
    batch_parts,
    batch_sharding,
    make_mesh,
    replicated,
)


def fake_mesh(data: int, fsdp: int, tensor: int) -> Mesh:
    """A mesh of one device many times over: enough to ask what would be split how."""
    return Mesh(
        np.array(jax.devices()[:1] * (data * fsdp * tensor)).reshape(data, fsdp, tensor), AXES
    )


@pytest.mark.parametrize(
    ("config", "devices", "sizes"),
    [
        (MeshConfig(), 1, (1, 1, 1)),
        (MeshConfig(), 8, (8, 1, 1)),
        (MeshConfig(fsdp=4), 8, (2, 4, 1)),
        (MeshConfig(data=2, fsdp=-1), 8, (2, 4, 1)),
        (MeshConfig(data=1, fsdp=2, tensor=-1), 8, (1, 2, 4)),
        (MeshConfig(data=2, fsdp=2, tensor=2), 8, (2, 2, 2)),
        (MeshConfig(data=-1, fsdp=4, tensor=2), 8, (1, 4, 2)),
    ],
)
def test_minus_one_takes_the_rest_of_the_devices(config, devices, sizes):
    assert config.sizes(devices) == sizes


@pytest.mark.parametrize(
    ("config", "devices"),
    [
        (MeshConfig(fsdp=3), 8),
        (MeshConfig(data=2, fsdp=2, tensor=1), 8),
        (MeshConfig(data=4, fsdp=4), 8),
        (MeshConfig(fsdp=16), 8),
    ],
)
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(config, devices):
    sizes = (
        f"config.mesh.data = {config.data}, config.mesh.fsdp = {config.fsdp}, "
        f"config.mesh.tensor = {config.tensor}"
    )
    message = (
        f"^{sizes} don't multiply .* expected a product of 8: --config.mesh.data=-1 "
        f"--config.mesh.fsdp=1 .* takes"
    )
    with pytest.raises(UserError, match=message):
        config.sizes(devices, prefix="config.mesh.")


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("size", [0, -2])
def test_a_size_that_cannot_be_is_refused_by_name(axis, size):
    with pytest.raises(UserError, match=f"^{axis} is {size}, expected a positive number, or -1"):
        MeshConfig(**{axis: size})


def test_only_one_axis_can_take_the_rest():
    with pytest.raises(UserError, match="more than one -1"):
        MeshConfig(data=-1, fsdp=-1)


def test_the_mesh_has_the_three_axes_over_all_devices():
    mesh = make_mesh(MeshConfig())
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert set(mesh.devices.flatten()) == set(jax.devices())
    with pytest.raises(UserError, match="don't multiply"):
        make_mesh(MeshConfig(data=2), jax.devices()[:1])


def test_a_batch_is_split_over_data_and_fsdp_and_not_over_tensor():
    mesh = fake_mesh(2, 4, 3)
    assert batch_parts(mesh) == 8
    assert batch_sharding(mesh).shard_shape((16, 5)) == (2, 5)
    assert replicated(mesh).spec == PartitionSpec()
    assert replicated(mesh).shard_shape((16, 5)) == (16, 5)


def slice_device(id: int, slice_index: int):
    """A device as one of several slices has them; enough to be laid out."""
    device = unittest.mock.Mock(spec=jax.Device)
    device.platform, device.device_kind = "cpu", "cpu"
    device.id, device.slice_index, device.process_index = id, slice_index, slice_index
    return device


def slices_along(config: MeshConfig, slices: int, each: int) -> list[set[int]]:
    """For each axis, how many slices a line of devices along it crosses."""
    devices = [slice_device(i, i // each) for i in range(slices * each)]
    laid_out = np.vectorize(lambda device: device.slice_index)(make_mesh(config, devices).devices)
    return [
        {len(set(line)) for line in np.moveaxis(laid_out, i, -1).reshape(-1, laid_out.shape[i])}
        for i in range(3)
    ]


@pytest.mark.parametrize(
    ("config", "slices", "crossed"),
    [
        (MeshConfig(fsdp=4), 2, [2, 1, 1]),
        (MeshConfig(fsdp=2, tensor=2), 4, [4, 1, 1]),
        (MeshConfig(data=2, fsdp=8), 4, [2, 2, 1]),
        (MeshConfig(data=1, fsdp=8, tensor=2), 2, [1, 2, 1]),
    ],
)
def test_data_goes_over_slices_then_fsdp_and_never_tensor(config, slices, crossed):
    assert slices_along(config, slices, 16 // slices) == [{n} for n in crossed]


def test_a_mesh_whose_tensor_axis_would_cross_slices_is_refused():
    message = (
        r"^data = 1, fsdp = 2, tensor = 8 can't be laid over 4 slices, expected data \* fsdp to be"
    )
    with pytest.raises(UserError, match=message):
        slices_along(MeshConfig(data=1, fsdp=2, tensor=8), 4, 4)
