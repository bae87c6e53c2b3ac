"""U-ViT in JAX: prepare, train, sample and evaluate with one command each, from core to pod.

The names in `__all__` are the public ones. Each is imported when it is first asked for, so that
`import uvit_jax` costs nothing and imports neither jax nor flax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uvit_jax.diffusion import dpm_solver
    from uvit_jax.diffusion.guidance import classifier_free
    from uvit_jax.diffusion.losses import denoising_loss
    from uvit_jax.diffusion.sampler import Sampler
    from uvit_jax.diffusion.sampler_config import SamplerConfig
    from uvit_jax.diffusion.schedules import RectifiedFlow, Schedule, VPCosine, VPDiscrete, VPLinear
    from uvit_jax.errors import UserError
    from uvit_jax.experiment.config import Experiment, load_experiment
    from uvit_jax.experiment.load import load_model
    from uvit_jax.interop.autoencoder import open_autoencoder
    from uvit_jax.jobs.sampling.loaded_model import load
    from uvit_jax.metrics.frechet import frechet_distance
    from uvit_jax.metrics.inception_score import InceptionScore
    from uvit_jax.metrics.kid import kid
    from uvit_jax.metrics.precision_recall import density_coverage, precision_recall
    from uvit_jax.models.uvit import UViT
    from uvit_jax.models.uvit_config import UViTConfig

    __version__: str

# The module that each name is in.
_HOMES = {
    "Experiment": "experiment.config",
    "InceptionScore": "metrics.inception_score",
    "RectifiedFlow": "diffusion.schedules",
    "Sampler": "diffusion.sampler",
    "SamplerConfig": "diffusion.sampler_config",
    "Schedule": "diffusion.schedules",
    "UViT": "models.uvit",
    "UViTConfig": "models.uvit_config",
    "UserError": "errors",
    "VPCosine": "diffusion.schedules",
    "VPDiscrete": "diffusion.schedules",
    "VPLinear": "diffusion.schedules",
    "classifier_free": "diffusion.guidance",
    "denoising_loss": "diffusion.losses",
    "density_coverage": "metrics.precision_recall",
    "frechet_distance": "metrics.frechet",
    "kid": "metrics.kid",
    "load": "jobs.sampling.loaded_model",
    "load_experiment": "experiment.config",
    "load_model": "experiment.load",
    "open_autoencoder": "interop.autoencoder",
    "precision_recall": "metrics.precision_recall",
}
__all__ = [
    "Experiment",
    "InceptionScore",
    "RectifiedFlow",
    "Sampler",
    "SamplerConfig",
    "Schedule",
    "UViT",
    "UViTConfig",
    "UserError",
    "VPCosine",
    "VPDiscrete",
    "VPLinear",
    "__version__",
    "classifier_free",
    "denoising_loss",
    "density_coverage",
    "dpm_solver",
    "frechet_distance",
    "kid",
    "load",
    "load_experiment",
    "load_model",
    "open_autoencoder",
    "precision_recall",
]


if not TYPE_CHECKING:  # which would take any name for one of these

    def __getattr__(name: str) -> Any:
        value: Any
        if name == "__version__":
            value = _version()
        elif name == "dpm_solver":
            value = importlib.import_module("uvit_jax.diffusion.dpm_solver")
        elif name in _HOMES:
            value = getattr(importlib.import_module(f"uvit_jax.{_HOMES[name]}"), name)
        else:
            raise AttributeError(f"module 'uvit_jax' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The installed version, pyproject.toml's; "unknown" for a clone that is not installed."""
    from importlib import metadata

    try:
        return metadata.version("uvit-jax")
    except metadata.PackageNotFoundError:
        return "unknown"
