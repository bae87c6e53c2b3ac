import importlib.util

import pytest

from uvit_jax.compiled.topology import parse_topology, topology_devices
from uvit_jax.errors import UserError

KNOWN = "v4, v5e, v5p or v6e"


@pytest.mark.parametrize(
    ("text", "name", "chips"),
    [
        ("v5e:16x16", "v5e:16x16", 256),
        (" v6e:2x4 ", "v6e:2x4", 8),
        ("v4:8x8x8", "v4:8x8x8", 512),
        ("v5p:16x16x24", "v5p:16x16x24", 6144),
        # The accelerator types of https://cloud.google.com/tpu/docs/v4 and its neighbours; v4 and
        # v5p count cores.
        ("v5litepod-256", "v5e:16x16", 256),
        ("v5e-8", "v5e:2x4", 8),
        ("v6e-64", "v6e:8x8", 64),
        ("v4-8", "v4:2x2x1", 4),
        ("v4-384", "v4:4x4x12", 192),
        ("v4-1024", "v4:8x8x8", 512),
        ("v5p-256", "v5p:4x4x8", 128),
        ("v5p-4096", "v5p:8x16x16", 2048),
    ],
)
def test_a_slice_is_known_by_its_shape_and_by_its_accelerator_type(text, name, chips):
    topology = parse_topology(text)
    assert (str(topology), topology.num_chips) == (name, chips)
    assert parse_topology(str(topology)) == topology


@pytest.mark.parametrize("text", ["v7:2x2", "v5e", "256", "", "v5e:axb", "tpu v5e:2x2", "h100-8"])
def test_an_unknown_chip_is_refused_with_the_known_ones(text):
    with pytest.raises(UserError) as error:
        parse_topology(text)
    assert str(error.value) == f"topology is {text!r}, expected {KNOWN} with a shape, as v5e:16x16"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v5e:3x3", "v5e with 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16"),
        ("v6e:32x32", "v6e with 1x1, "),
        ("v4:2x2", "v4 with 2x2x1, 2x2x2, 2x2x4, 2x4x4 or three multiples of 4 in ascending order"),
        ("v5p:8x4x4", "v5p with 2x2x1, "),
        ("v5p:0x4x4", "v5p with 2x2x1, "),
        ("v4:16x16x24", "make up to 4096 chips"),
        ("v5e-7", "the size of a slice of v5e with 1x1, "),
        ("v4-7", "the size of a slice of v4 counted by its cores, two a chip, with 2x2x1, "),
        ("v4-200", "counted by its cores"),
    ],
)
def test_a_slice_that_is_not_made_is_refused_with_those_that_are(text, expected):
    with pytest.raises(UserError) as error:
        parse_topology(text)
    assert str(error.value).startswith(f"topology is {text!r}, expected ")
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("text", "wrap", "gigabytes"),
    [
        # Links of 50 GB/s on v4 and v5e, 100 on v5p and v6e; a ring gives a chip two a dimension, a
        # row's end has one.
        ("v5e:16x16", (True, True), 4 * 50),
        ("v5e:8x16", (False, True), 3 * 50),
        ("v5e:2x2", (False, False), 2 * 50),
        ("v5e:1x1", (False, False), 0),
        ("v6e:8x8", (False, False), 2 * 100),
        ("v4:8x8x8", (True, True, True), 6 * 50),
        ("v4:2x2x1", (False, False, False), 2 * 50),
        ("v5p:2x4x4", (False, False, False), 3 * 100),
    ],
)
def test_the_bandwidth_of_a_slice_is_that_of_its_worst_placed_chip(text, wrap, gigabytes):
    topology = parse_topology(text)
    assert topology.wrap == wrap
    assert topology.ici_bandwidth == pytest.approx(gigabytes * 1e9)


@pytest.mark.parametrize(
    ("text", "extent", "links"),
    [
        # A ring of a whole dimension, a pair within one, a part of one, two dimensions, a chip
        # alone.
        ("v5p:4x4x8", ((0,), (0, 1, 2, 3), (5,)), 2),
        ("v5p:4x4x8", ((0,), (2, 3), (5,)), 1),
        ("v5p:4x4x8", ((0,), (1,), (4, 5, 6, 7)), 1),
        ("v5p:4x4x8", (range(4), (1,), range(8)), 4),
        ("v5p:2x2x2", (range(2), range(2), (0,)), 2),
        ("v5e:8x16", (range(8), (0,)), 1),
        ("v5e:8x16", ((0,), range(16)), 2),
        ("v5e:8x16", ((0,), (0,)), 0),
    ],
)
def test_a_group_has_the_links_between_its_own_chips(text, extent, links):
    topology = parse_topology(text)
    assert topology.group_bandwidth(extent) == links * topology.chip.link_bandwidth


def test_without_libtpu_its_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(
        UserError,
        match=r"'v5e:2x2', which needs .* libtpu, found none: pip install 'uvit-jax\[tpu\]'",
    ):
        topology_devices(parse_topology("v5e:2x2"))


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("text", "slices", "chips", "kind"),
    [
        ("v5e:1x1", 1, 1, "TPU v5 lite"),
        ("v5e:16x16", 1, 256, "TPU v5 lite"),
        ("v6e:2x4", 2, 16, "TPU v6 lite"),
        ("v5p:4x4x8", 1, 128, "TPU v5"),
        ("v4:8x8x8", 1, 512, "TPU v4"),
        ("v4:2x2x2", 3, 24, "TPU v4"),
    ],
)
def test_there_is_one_device_a_chip(text, slices, chips, kind):
    pytest.importorskip("libtpu")
    topology = parse_topology(text)
    devices = topology_devices(topology, slices)
    assert len(devices) == chips == slices * topology.num_chips
    assert {device.device_kind for device in devices} == {kind}
    assert len({getattr(device, "slice_index", 0) for device in devices}) == slices
    sides = [max(device.coords[i] for device in devices) + 1 for i in range(len(topology.shape))]
    assert tuple(sides) == topology.shape
