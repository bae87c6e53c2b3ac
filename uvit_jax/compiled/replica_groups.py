"""Groups of devices in a collective of a compiled program, from every form that XLA writes."""

import itertools
import math
import re

import numpy as np

from uvit_jax.compiled.hlo_text import Instruction, Module

Groups = tuple[tuple[int, ...], ...]

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}")
_AXIS = re.compile(r"'([^']*)'(?::\((\d+)\)(\d+))?")


def replica_groups(module: Module, instruction: Instruction) -> Groups:
    """Returns the partition numbers of each group; for a permute the (source, target) of each pair.

    Forms are `{{0,1},{2,3}}`, `[2,2]<=[4]` and `[2,2]<=[2,2]T(1,0)`, `mesh['a'=2,'b'=2] {'a'}`, and
    `{}` for one group of all. An unknown form counts as one group of all, too.
    """
    if pairs := instruction.attribute("source_target_pairs"):
        return braces(pairs)
    if mesh := _MESH.search(instruction.attributes):
        return _mesh_groups(*mesh.groups(default=""))
    text = (instruction.attribute("replica_groups") or "").strip('"')
    if iota := _IOTA.fullmatch(text):
        shape, source, order = (numbers(part or "") for part in iota.groups())
        return _rows(
            np.arange(math.prod(source)).reshape(source).transpose(order or None).reshape(shape)
        )
    return braces(text) or (tuple(range(max(module.num_partitions, module.num_replicas))),)


def _mesh_groups(axes: str, device_ids: str, grouped: str) -> Groups:
    """Returns the groups along some of a mesh's named axes.

    `'a':(2)4` is a part of axis a: its length is split into 2 x 4 x the rest, and the group runs
    along the 4. Device ids are in order unless given, as a list or as `[2,4]T(1,0)`, counted along
    a transposed array.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)}
    total = math.prod(sizes.values())
    wanted = [
        (m[1], int(m[2] or 1), int(m[3] or sizes.get(m[1], 1))) for m in _AXIS.finditer(grouped)
    ]
    devices = np.arange(total)
    if transposed := re.fullmatch(r"\[([\d,]+)\]T\(([\d,]+)\)", device_ids):
        devices = (
            devices.reshape(numbers(transposed[1])).transpose(numbers(transposed[2])).reshape(-1)
        )
    elif device_ids:
        devices = np.asarray(numbers(device_ids))
    # Each axis is cut where a part of it begins or ends. Every piece has a name, the number of
    # elements before its cut, and a size.
    pieces: list[tuple[str, int]] = []
    shape: list[int] = []
    for name, size in sizes.items():
        cuts = sorted(
            {
                1,
                size,
                *(cut for n, pre, length in wanted if n == name for cut in (pre, pre * length)),
            }
        )
        pieces += [(name, cut) for cut in cuts[:-1]]
        shape += [after // before for before, after in itertools.pairwise(cuts)]
    along = [
        i
        for n, pre, length in wanted
        for i, (name, cut) in enumerate(pieces)
        if name == n and pre <= cut < pre * length
    ]
    across = [i for i in range(len(pieces)) if i not in along]
    group_size = math.prod(shape[i] for i in along)
    return _rows(devices.reshape(shape).transpose(across + along).reshape(-1, group_size))


def braces(text: str) -> Groups:
    """Parses "{{0,1},{2,3}}", or pairs written "{{0->1},{2->3}}", as ((0, 1), (2, 3))."""
    groups = (
        tuple(int(n) for n in re.findall(r"\d+", group))
        for group in re.findall(r"\{([^{}]*)\}", text)
    )
    return tuple(group for group in groups if group)


def numbers(text: str) -> tuple[int, ...]:
    """Parses "0:2,5" as (0, 1, 2, 5)."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition(":")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def _rows(array: np.ndarray) -> Groups:
    return tuple(tuple(row) for row in array.tolist())
