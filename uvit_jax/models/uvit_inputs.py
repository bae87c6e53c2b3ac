"""Checks of what a U-ViT is called with."""

import jax
import jax.numpy as jnp
import numpy as np

from uvit_jax.errors import UserError
from uvit_jax.models.uvit_config import UViTConfig

AnyArray = jax.Array | np.ndarray


def check_inputs(
    config: UViTConfig,
    x: AnyArray,
    t: AnyArray,
    label: AnyArray | None,
    context: AnyArray | None,
) -> None:
    """Raises a UserError that names the input that does not fit the config."""
    if tuple(x.shape[1:]) != config.sample_shape:
        raise UserError(
            f"x has shape {tuple(x.shape)}, expected (batch, "
            f"{', '.join(map(str, config.sample_shape))})"
        )
    rows = x.shape[0]
    if np.shape(t) != (rows,):
        raise UserError(f"t has shape {np.shape(t)}, expected ({rows},), a time for each row of x")
    for name, value, wanted in (
        ("label", label, bool(config.num_classes)),
        ("context", context, bool(config.context_dim)),
    ):
        if (value is not None) != wanted:
            raise UserError(
                f"{name} was {'missing' if wanted else 'given'}, but {_condition_of(config)}"
            )
    if context is not None:
        _check_context(config, context, x)
    if label is not None:
        _check_label(config, label, x)


def _check_context(config: UViTConfig, context: AnyArray, x: AnyArray) -> None:
    expected = (x.shape[0], config.context_length, config.context_dim)
    if np.shape(context) != expected:
        raise UserError(f"context has shape {np.shape(context)}, expected {expected}")


def _check_label(config: UViTConfig, label: AnyArray, x: AnyArray) -> None:
    if np.shape(label) != x.shape[:1]:
        raise UserError(
            f"label has shape {np.shape(label)}, expected ({x.shape[0]},), an id for each row of x"
        )
    if not jnp.issubdtype(jnp.asarray(label).dtype, jnp.integer):
        raise UserError(f"label is of {jnp.asarray(label).dtype}, expected integers")
    if not isinstance(label, jax.core.Tracer):
        check_labels(label, config.num_classes)


def check_labels(labels: AnyArray, num_classes: int) -> None:
    """Raises a UserError that names the first label outside 0..num_classes-1."""
    values = np.asarray(labels)
    outside = values[(values < 0) | (values >= num_classes)]
    if outside.size:
        raise UserError(
            f"label {outside.flat[0]} is outside the table, expected 0 to {num_classes - 1}"
        )


def _condition_of(config: UViTConfig) -> str:
    if config.num_classes:
        return (
            f"this model is conditioned on a label (num_classes = {config.num_classes}) and "
            "nothing else"
        )
    if config.context_dim:
        return (
            f"this model is conditioned on a text context (context_dim = {config.context_dim}) and "
            "nothing else"
        )
    return "this model is unconditional (num_classes = 0, context_dim = 0)"
