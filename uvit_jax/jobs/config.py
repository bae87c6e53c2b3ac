"""Forwards `default_config` to configs that were written for version 0.1."""

from uvit_jax.experiment.config import default_config

__all__ = ["default_config"]
