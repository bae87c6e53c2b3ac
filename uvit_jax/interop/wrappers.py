"""Finds a network's arrays in a file, under the names that training and pipelines put around.

A checkpoint may hold `model` and `ema`, DDP puts `module.` in front, torch.compile `_orig_mod.`,
Lightning the attribute's name, Stable Diffusion `first_stage_model.`: a network is found by the
name of an array that each of its kind has; the prefix of that name is the network's place.
"""

import logging
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence

from uvit_jax.errors import UserError

LOG = logging.getLogger("uvit_jax")

# Names that torch.compile, FSDP and checkpointing insert anywhere; no network has them.
_INSERTED = re.compile(
    r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
# Counters that latent-diffusion saves beside its average.
_COUNTERS = ("model_ema.decay", "model_ema.num_updates")
_EMA = re.compile(r"(^|[._])ema([._]|$)", re.IGNORECASE)


def own_names(
    names: Collection[str],
    anchors: Sequence[str],
    path: pathlib.Path,
    *,
    weights: str | None = None,
) -> Mapping[str, str]:
    """The arrays of the network in a file: {name in the file: the network's own name}.

    Args:
      names: of all arrays in the file.
      anchors: names that every network of the kind has one of; the longest first, where one ends
        as another.
      path: the file, named in errors and the log.
      weights: "ema" or "params": which are taken if the file holds both; None: neither.

    Returns:
      All arrays, if the file holds no anchor: the network's reader then names the fault.

    Raises:
      UserError: if the file holds several networks and it is not clear which one to take.
    """
    plain = {name: _INSERTED.sub("", name) for name in names}
    averaged = _averaged_names(plain.values())
    plain = {
        theirs: averaged.get(name, name) for theirs, name in plain.items() if name not in _COUNTERS
    }
    found = _places(plain.values(), anchors)
    if not found:
        wrapped = plain and all(name.startswith("module.") for name in plain.values())
        return {
            theirs: name.removeprefix("module.") if wrapped else name
            for theirs, name in plain.items()
        }
    place = _choose(found, path, weights)
    chosen = [name for name in plain.values() if name.startswith(place)]
    averaged_only = [
        name for name in plain.values() if not name.startswith(place) and _EMA.search(name)
    ]
    if weights == "ema" and not _EMA.search(place) and 2 * len(averaged_only) >= len(chosen):
        raise UserError(
            f"{path} holds trained weights at {place.removesuffix('.')!r} and an average whose "
            f"arrays don't have their names ({averaged_only[0]}, ...), expected one of both by its "
            "names: save the one that is meant by itself"
        )
    others = tuple(other for other in found if other != place and other.startswith(place))
    return {
        theirs: name.removeprefix(place)
        for theirs, name in plain.items()
        if name.startswith(place) and not name.startswith(others)
    }


def _places(names: Collection[str], anchors: Sequence[str]) -> list[str]:
    """The prefixes of anchors among the names, each once, in the order of the names."""
    found: dict[str, None] = {}  # an ordered set
    for name in names:
        for anchor in anchors:
            if name == anchor or name.endswith(f".{anchor}"):
                found[name.removesuffix(anchor)] = None
                break
    return list(found)


def _averaged_names(names: Collection[str]) -> dict[str, str]:
    """latent-diffusion's names of an EMA, which have no dots, as the averaged arrays' names."""
    own = (name.removeprefix("model.") for name in names if not name.startswith("model_ema."))
    dotless = {f"model_ema.{name.replace('.', '')}": f"model_ema.{name}" for name in own}
    return {name: dotless[name] for name in names if name in dotless}


def _choose(places: Sequence[str], path: pathlib.Path, weights: str | None) -> str:
    if len(places) == 1:
        return places[0]
    shown = " and ".join(repr(place.removesuffix(".")) if place else "the top" for place in places)
    averages = [place for place in places if _EMA.search(place)]
    trained = [place for place in places if place not in averages]
    if weights is None or len(averages) != 1 or len(trained) != 1:
        raise UserError(
            f"{path} holds {len(places)} networks of this kind, at {shown}, expected one: save the "
            "one that is meant by itself, as torch.save(torch.load(FILE)['NAME'], 'one.pth')"
        )
    (taken,) = averages if weights == "ema" else trained
    LOG.info(
        "%s holds weights at %s: %s is taken",
        path,
        shown,
        repr(taken.removesuffix(".")) if taken else "the top",
    )
    return taken
