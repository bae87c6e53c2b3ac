"""Small configs of the job `prepare`, and what a killed run of one leaves."""

import pathlib

import numpy as np

from configs import digits
from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.experiment.config import Experiment, resolve
from uvit_jax.jobs import prepare


def experiment(source: pathlib.Path, out: pathlib.Path, **changes) -> Experiment:
    """A job of images of 16x16 pixels, five to a shard; fields as `prepare__crop="none"`."""
    config = digits.get_config()
    config.model.image_size = 16
    config.model.in_channels = 3
    config.prepare.source = str(source)
    config.prepare.out = str(out)
    config.prepare.images_per_shard = 5
    config.prepare.batch_size = 4
    config.prepare.threads = 2
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return resolve(config)


def all_of(folder: pathlib.Path, mirrored: bool = False) -> dict[str, np.ndarray]:
    source = PreparedData(folder)
    return source.read(np.arange(len(source)), np.full(len(source), mirrored))


def latents(kl: str, **changes) -> dict:
    return {"autoencoder__name": kl, "model__image_size": 4, "model__in_channels": 4, **changes}


def half_made(job: Experiment) -> pathlib.Path:
    """A folder whose first shard of three is made, as a run that was killed leaves it."""
    out = pathlib.Path(job.prepare.out)
    prepare.run(job, out)
    for path in [*sorted(out.glob("*.array_record"))[1:], out / "manifest.json"]:
        path.unlink()
    return out
