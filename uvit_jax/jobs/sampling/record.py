"""Everything that decides the pixels of drawn samples, for a report and for a folder's hash."""

import dataclasses
import hashlib
import pathlib
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from uvit_jax.experiment.assembled import Assembled
from uvit_jax.experiment.config import Experiment
from uvit_jax.experiment.data_card import DataCard, identity
from uvit_jax.experiment.job_sections import SampleConfig
from uvit_jax.experiment.saved_config import EXECUTION_FIELDS
from uvit_jax.experiment.weights import Weights
from uvit_jax.interop.state_dict import sha256_of
from uvit_jax.jobs.sampling.conditions import Conditions
from uvit_jax.models.uvit_config import UViTConfig
from uvit_jax.parallel import hosts

_ROUNDING = "8 bits a channel, to nearest, a half upwards, as in a PNG"
# Fields of `config.sample` that do not change a sample's pixels, or that are recorded by what was
# found in them; left out of the folder's hash.
NOT_HASHED = (
    "num_samples",
    "batch_size",
    "format",
    "out",
    "weights",
    "step",
    "prompts",
    "negative_prompt",
    "labels",
)


def drawn_samples(
    experiment: Experiment,
    assembled: Assembled,
    conditions: Conditions,
    weights: Weights,
    *,
    count: int,
    captions: str = "",
) -> dict[str, Any]:
    """Describes samples drawn from a model; all hosts call this together.

    count: of samples. captions: name of the prepared data set whose captions they are of, if any.
    """
    sample, model = experiment.sample, assembled.model
    decoder: dict[str, Any] = {}
    if assembled.codec is not None:
        normalization = assembled.card.normalization
        decoder = {
            "latents normalized by": dataclasses.asdict(normalization) if normalization else {},
            "decoder": experiment.autoencoder.name,
            "decoder sha256": sha256_of(dict(flatten_dict(assembled.codec.autoencoder.params))),
            "decoder dtype": experiment.autoencoder.dtype,
        }
    evaluations = sample.evaluations
    return {
        "count": count,
        "weights": {**weights.record, "sha256": weights.sha256},
        **_asked(model, sample, experiment.data.source, conditions, count, captions),
        "sampler": _without(dataclasses.asdict(sample), NOT_HASHED),
        "network evaluations": "chosen by the solver" if evaluations is None else evaluations,
        "schedule": experiment.diffusion.schedule,
        "prediction": experiment.diffusion.prediction,
        "model": _without(dataclasses.asdict(model), EXECUTION_FIELDS),
        "network dtype": model.dtype,
        **decoder,
        "rounding": _ROUNDING,
    }


def agree_on_samples(
    card: DataCard, prompts: tuple[str, ...], init_from: str, workdir: pathlib.Path
) -> None:
    """Compares what the hosts read: the data's description, prompts and names of checkpoints.

    Raises:
      SharedError: naming the first in which they differ.
    """
    folders = {"--workdir": str(workdir), "config.init_from": init_from}
    steps = {
        f"the content of {name}": sorted(
            path.name for path in pathlib.Path(folder).glob("checkpoints/[0-9]*")
        )
        for name, folder in folders.items()
        if folder
    }
    hosts.agree({**identity(card), "config.sample.prompts": prompts, **steps})


def _asked(
    model: UViTConfig,
    sample: SampleConfig,
    source: str,
    conditions: Conditions,
    count: int,
    captions: str,
) -> dict[str, Any]:
    """Describes what samples are of.

    Files of prompts and data sets may change, hence a hash of what was found in them.
    """
    if model.context_dim:
        texts = {"captions": captions} if captions else {"prompts": sample.prompts}
        return {
            **texts,
            "texts sha256": hashlib.sha256("\n".join(conditions.names).encode()).hexdigest(),
            "negative prompt": sample.negative_prompt,
            **conditions.record,
        }
    if not model.num_classes:
        return {}
    if sample.labels.strip() == "all":
        return {"labels": sample.labels}
    if sample.labels.strip() != "data":
        # By their numbers: a class's name and its number are the same request.
        return {"labels": ",".join(map(str, np.asarray(conditions.values).tolist()))}
    labels = np.asarray(conditions.of(np.arange(count)), np.int32)
    return {
        "labels": f"as in {source}",
        "labels sha256": hashlib.sha256(labels.tobytes()).hexdigest(),
    }


def _without(fields: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}
