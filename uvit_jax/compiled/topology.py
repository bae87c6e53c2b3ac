"""TPU slices by name, and their devices, to compile for on a machine without TPUs."""

import dataclasses
import importlib.util
import itertools
import math
import os
import re
from collections.abc import Collection, Sequence

import jax
from jax.experimental import topologies

from uvit_jax.errors import UserError
from uvit_jax.extras import install_command
from uvit_jax.parallel.chips import TPUS, Chip

# https://cloud.google.com/tpu/docs/v5e and /v6e: every slice of a two-dimensional pod.
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# https://cloud.google.com/tpu/docs/v4 and /v5p: parts of a cube of 4x4x4. Larger slices are made
# of whole cubes, with sides in ascending order, up to the largest job that can be scheduled.
_PARTS_OF_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_MOST_CHIPS = {"v4": 4096, "v5p": 6144}
# Accelerator types use other names for chips, and count chips with two cores by their cores.
_ALIASES = {"v5litepod": "v5e"}
_CORES_PER_CHIP = {"v4": 2, "v5p": 2}

# libtpu asks the machine for its kind of TPU; these answer on a machine without one. Since it only
# compiles here, another process may have it loaded, or have a TPU in use.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: chips of one kind, each linked to its neighbours.

    Attributes:
      chip: the kind of chip.
      shape: chips along each dimension.
    """

    chip: Chip
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_chips(self) -> int:
        """Number of chips of one slice."""
        return math.prod(self.shape)

    @property
    def wrap(self) -> tuple[bool, ...]:
        """True for each dimension that closes to a ring.

        In a flat pod these are the dimensions that span it; in a slice of whole cubes, all.
        """
        if self.chip.dimensions == 2:
            return tuple(side == 16 for side in self.shape)
        return (all(side % 4 == 0 for side in self.shape),) * len(self.shape)

    @property
    def ici_bandwidth(self) -> float:
        """Bytes per second over all links of the chip that has the fewest in the slice.

        A chip at the end of a dimension that is not a ring has one link there, and every ring of
        chips over the slice passes it.
        """
        return self.group_bandwidth([range(side) for side in self.shape])

    def group_bandwidth(self, extent: Sequence[Collection[int]]) -> float:
        """Bytes per second over all links within a group, of the chip that has the fewest.

        extent: the places of the group's chips along each dimension; a ring closes only if they are
          all of them.
        """
        links = 0
        for places, side, wrap in zip(extent, self.shape, self.wrap, strict=True):
            links += (len(places) > 1) + (len(places) == side > 2 and wrap)
        return links * self.chip.link_bandwidth


def parse_topology(text: str) -> Topology:
    """Parses a slice as "v5e:16x16", or an accelerator type as "v5litepod-256", "v4-1024" (cores).

    Raises:
      UserError: for another chip, or a shape or size that does not exist.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)|(\w+)-(\d+)", text.strip())
    name = (match[1] or match[3]) if match else ""
    name = _ALIASES.get(name, name)
    if match is None or name not in TPUS:
        raise UserError(
            f"topology is {text!r}, expected {', '.join([*TPUS][:-1])} or {[*TPUS][-1]} with a "
            "shape, as v5e:16x16"
        )
    chip = TPUS[name]
    if match[2]:
        shape = tuple(map(int, match[2].split("x")))
        if not _is_made(chip, shape):
            raise UserError(f"topology is {text!r}, expected {name} with {_shapes(chip)}")
        return Topology(chip, shape)
    chips, rest = divmod(int(match[4]), _CORES_PER_CHIP.get(name, 1))
    found = None if rest else _usual_shape(chip, chips)
    if found is None:
        counted = f"{name} counted by its cores, two a chip," if name in _CORES_PER_CHIP else name
        raise UserError(
            f"topology is {text!r}, expected the size of a slice of {counted} with {_shapes(chip)}"
        )
    return Topology(chip, found)


def _is_made(chip: Chip, shape: tuple[int, ...]) -> bool:
    if chip.dimensions == 2:
        return shape in _FLAT
    if len(shape) != 3:
        return False
    cubes = all(side and side % 4 == 0 for side in shape) and list(shape) == sorted(shape)
    return shape in _PARTS_OF_CUBE or (cubes and math.prod(shape) <= _MOST_CHIPS[chip.name])


def _usual_shape(chip: Chip, chips: int) -> tuple[int, ...] | None:
    """Returns the shape of a slice of this size: the one nearest to a cube, None if none exists."""
    if chip.dimensions == 2:
        return next((shape for shape in _FLAT if math.prod(shape) == chips), None)
    for shape in _PARTS_OF_CUBE:
        if math.prod(shape) == chips:
            return shape
    sides = range(4, 4 * _MOST_CHIPS[chip.name] // 64 + 1, 4)
    whole, rest = divmod(chips, 64)
    if rest or not whole:
        return None
    pairs = (
        (a, b) for a, b in itertools.combinations_with_replacement(sides, 2) if a * a * b <= chips
    )
    made = [(a, b, chips // (a * b)) for a, b in pairs if chips % (a * b) == 0]
    return min((shape for shape in made if _is_made(chip, shape)), key=sum, default=None)


def _shapes(chip: Chip) -> str:
    if chip.dimensions == 2:
        names = ["x".join(map(str, shape)) for shape in _FLAT]
        return f"{', '.join(names[:-1])} or {names[-1]}"
    names = ["x".join(map(str, shape)) for shape in _PARTS_OF_CUBE]
    return (
        f"{', '.join(names)} or three multiples of 4 in ascending order that make up to "
        f"{_MOST_CHIPS[chip.name]} chips"
    )


def topology_devices(topology: Topology, num_slices: int = 1) -> list[jax.Device]:
    """Returns devices to compile for but not to run on, one for each chip of these slices.

    From here on this process computes on its CPU: a TPU of this machine stays free for others.

    Raises:
      UserError: without libtpu, or if libtpu does not know the slice.
    """
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise UserError(
            f"topology is '{topology}', which needs TPU's compiler, libtpu, found none: "
            + install_command("tpu")
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    shape = topology.shape + (1,) * (3 - len(topology.shape))
    options = {
        # One device per chip: a v4's two cores driven as one.
        **({"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}),
        "chips_per_host_bounds": tuple(
            min(side, most) for side, most in zip(shape, (2, 2, 1), strict=True)
        ),
        "wrap": topology.wrap + (False,) * (3 - len(topology.wrap)),
        **({"num_slices": num_slices} if num_slices > 1 else {}),
    }
    try:
        return list(topologies.get_topology_desc(str(topology), "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"topology is '{topology}', which libtpu doesn't know: {' '.join(str(error).split())}"
        ) from None
