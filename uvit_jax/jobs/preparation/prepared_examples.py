"""The examples that `prepare` stores, whatever they are made from."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.data.prepared.shard_writer import Caption
from uvit_jax.jobs.preparation.plan import Plan


@dataclasses.dataclass(frozen=True)
class Example:
    """One image as it is stored.

    Attributes:
      label: its class; -1 for none.
      arrays: its array and, where stored, that of its mirror image.
      captions: states and text of each; () where the data set has none.
    """

    label: int
    arrays: tuple[np.ndarray, ...]
    captions: tuple[Caption, ...] = ()


@dataclasses.dataclass(frozen=True)
class PreparedExamples:
    """Yields the examples of a range of images, and the empty caption's states.

    Attributes:
      plan: how they are stored.
      class_names: one for each class; () where there are no labels or no names.
      examples: `examples(images)` yields lists of examples in order, each list with the errors of
        the images that were left out.
      empty_context: computes the states of the empty caption; None without captions.
    """

    plan: Plan
    class_names: tuple[str, ...]
    examples: Callable[[range], Iterator[tuple[list[Example], list[str]]]]
    empty_context: Callable[[], Float[np.ndarray, "l d"]] | None = None

    def __len__(self) -> int:
        return self.plan.num_images

    def manifest(self, **rest: Any) -> Manifest:
        """The manifest: the plan's fields, and `rest`, which is known once all shards are made."""
        names = {field.name for field in dataclasses.fields(Manifest)}
        planned = dataclasses.asdict(self.plan)
        fields = {name: value for name, value in planned.items() if name in names}
        return Manifest(**fields, class_names=self.class_names, **rest)
