"""Forwards to `uvit_jax.experiment.config`, which configs written for version 0.1 import from here."""

from uvit_jax.experiment.config import default_config

__all__ = ["default_config"]
