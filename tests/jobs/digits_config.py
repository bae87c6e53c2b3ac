"""The digits config with some fields changed."""

from configs import digits
from uvit_jax.experiment.config import Experiment, resolve

# Fields of a config that drops no labels, and so can't be guided, with ten labels and with none.
KEEPING = {"diffusion__p_uncond": 0.0, "sample__guidance_scale": 0.0, "model__num_classes": 10}
UNCONDITIONAL = KEEPING | {"model__num_classes": 0}


def experiment(**changes) -> Experiment:
    """The digits config with some fields changed, as `model__depth=3`."""
    config = digits.get_config()
    for name, value in changes.items():
        section, field = name.split("__")
        config[section][field] = value
    return resolve(config)
