"""A model ready to sample from Python: a published one by its name, or a run by its workdir."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from uvit_jax.errors import UserError, nearest
from uvit_jax.experiment.assembled import Assembled
from uvit_jax.experiment.config import Experiment, resolve, set_fields
from uvit_jax.experiment.config_file import own_config, read_config
from uvit_jax.experiment.opened import check_prompts, open_for_sampling, open_prompt_encoder
from uvit_jax.experiment.published import PUBLISHED, find_published_weights
from uvit_jax.experiment.saved_config import config_of_run
from uvit_jax.experiment.text_states import TextStates
from uvit_jax.experiment.weights import Weights, open_weights
from uvit_jax.jobs.sampling.conditions import open_conditions
from uvit_jax.jobs.sampling.generation import Generation, make_generation
from uvit_jax.models.uvit import UViT
from uvit_jax.training.network import abstract_network

Labels = int | str | Sequence[int | str] | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LoadedModel:
    """A network with its weights, and how it is sampled.

    Attributes:
      experiment: the config, `init_from` included.
      assembled: mesh, network, data card and codec.
      weights: on the mesh.
    """

    experiment: Experiment
    assembled: Assembled
    weights: Weights
    _generations: dict[Any, Generation] = dataclasses.field(default_factory=dict, init=False)

    def __repr__(self) -> str:
        # Not the millions of numbers, where a notebook shows its last value.
        height, width, channels = self.assembled.image_shape
        return f"LoadedModel({self.weights.title!r}, images {height}x{width}x{channels})"

    @functools.cached_property
    def network(self) -> UViT:
        """The network: `network(x, t, label=...)` predicts what `experiment.diffusion` says."""
        graphdef, _, _ = abstract_network(self.assembled.model)
        model: UViT = nnx.merge(graphdef, self.weights.params)
        return model

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, where the run's data have any."""
        return self.assembled.card.class_names

    def sample(
        self,
        *,
        labels: Labels | None = None,
        prompts: str | Sequence[str] | None = None,
        num_samples: int | None = None,
        seed: int | None = None,
        **fields: Any,
    ) -> UInt8[np.ndarray, "n h w c"]:
        """Draws images: those of `uvit-jax sample` with the same config, weights and numbers.

        The first call of each solver compiles its program; others with the same solver and batch
        size compile nothing.

        Args:
          labels: classes in turn, by number or name, as [0, "cat"] or "0, cat"; "all" for every
            class; "data" for as often as the data have them.
          prompts: texts in turn, for a model of text.
          num_samples: how many; None for one of each label or prompt, and without these for the
            config's number.
          seed: of the noise.
          **fields: other fields of `config.sample`, as steps=25 or guidance_scale=1.0; None for
            the config's.

        Raises:
          UserError: for an unknown class or field, or a value that the model has no use for.
        """
        given = {
            **fields,
            "labels": None if labels is None else _labels_text(labels),
            "prompts": None if prompts is None else _prompts_text(prompts),
            "num_samples": num_samples,
            "seed": seed,
        }
        experiment = self._experiment_with({k: v for k, v in given.items() if v is not None})
        sample = experiment.sample
        text = None
        if experiment.model.context_dim:
            check_prompts(sample.prompts)
            text = self._text
        conditions = open_conditions(
            experiment, self.assembled.card, count=sample.num_samples, text=text
        )
        count = sample.num_samples
        if num_samples is None and (prompts is not None or given["labels"] not in _EVERY):
            assert conditions.values is not None  # such a model is refused by now
            count = len(conditions.values)
        key = (sample.sampler(), sample.negative_prompt)
        if key not in self._generations:
            self._generations[key] = make_generation(
                self.assembled, experiment.diffusion, sample, conditions
            )
        generation = dataclasses.replace(
            self._generations[key],
            conditions=conditions,
            seed=sample.seed,
            guidance_scale=sample.guidance_scale,
            batch_size=sample.batch_size,
        )
        return np.concatenate(list(generation.batches(self.weights.params, 0, count)))

    def _experiment_with(self, fields: Mapping[str, Any]) -> Experiment:
        """The experiment with these fields of `config.sample`, checked as those of a command."""
        values = dataclasses.asdict(self.experiment)
        values["sample"].update(fields)
        return resolve(ml_collections.ConfigDict(values, type_safe=False))

    @functools.cached_property
    def _text(self) -> TextStates:
        """The text encoder, read when the first prompt comes."""
        assembled = self.assembled
        return open_prompt_encoder(self.experiment.text_encoder, assembled.card, assembled.mesh)


_EVERY = (None, "all", "data")


def load(
    name: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    hub: str | None = None,
    overrides: Mapping[str, str | None] | None = None,
) -> LoadedModel:
    """Loads a published model by its name, or a run by its workdir, ready to sample.

        model = uvit_jax.load("imagenet256-huge")
        images = model.sample(labels=["golden retriever", 207], seed=1)

    Args:
      name: of `published.PUBLISHED`, as "imagenet256-huge", "cifar10" or "mscoco256"; or the
        workdir of a run.
      weights: a file of weights, or a run to take them from; None looks for the published file
        (`published.find_published_weights`), and for a run takes its newest step's EMA.
      hub: repository "owner/repo" of the Hugging Face hub with the published file.
      overrides: values of config fields by their dotted names, as text:
        {"autoencoder.name": "vae/", "model.dtype": "float32"}.

    Raises:
      UserError: for an unknown name, weights that are nowhere or of another architecture, or a
        wrong field.
    """
    name = os.fspath(name)
    if name in PUBLISHED:
        workdir = pathlib.Path(weights or find_published_weights(name, hub=hub))
        config, init_from = read_config(own_config(PUBLISHED[name].config)), str(workdir)
    else:
        workdir = pathlib.Path(name).expanduser()
        _check_workdir(name, workdir)
        config, init_from = config_of_run(workdir), os.fspath(weights or "")
    if init_from:
        config.init_from = init_from
    set_fields(config, overrides or {})
    experiment = resolve(config)
    assembled = open_for_sampling(experiment, workdir, prompts=False).assembled
    return LoadedModel(experiment, assembled, open_weights(experiment, assembled, workdir))


def _check_workdir(name: str, workdir: pathlib.Path) -> None:
    """Raises a UserError for a folder without a run, with a published name that is near."""
    if (workdir / "config.json").is_file():
        return
    close = nearest(name, PUBLISHED)
    hint = f"did you mean {close!r}?" if close else f"expected one of {', '.join(PUBLISHED)}"
    raise UserError(
        f"{name!r} is neither a published model nor the workdir of a run (a folder with its "
        f"config.json): {hint}"
    )


def _labels_text(labels: Labels) -> str:
    """Labels as the text of `config.sample.labels`."""
    return labels if isinstance(labels, str) else ",".join(map(str, np.atleast_1d(labels).tolist()))


def _prompts_text(prompts: str | Sequence[str]) -> str:
    """Prompts as the text of `config.sample.prompts`.

    Raises:
      UserError: for one of several with a semicolon, which is between prompts there.
    """
    if isinstance(prompts, str):
        return prompts
    for prompt in prompts:
        if ";" in prompt:
            raise UserError(f"prompts has {prompt!r}, expected texts without semicolons")
    return "; ".join(prompts)
