"""Checks before any device works: model against data, batch against mesh."""

from uvit_jax.data.prepared.prepared_data import PreparedData
from uvit_jax.data.training_data import TrainingData
from uvit_jax.errors import UserError, counted
from uvit_jax.experiment.config import Experiment
from uvit_jax.interop.autoencoder import Autoencoder
from uvit_jax.models.uvit_config import UViTConfig


def check_source(experiment: Experiment, source: TrainingData) -> None:
    """Raises a UserError where the model's input or labels are not the data's."""
    model = experiment.model
    if model.context_dim:
        if not source.context_shape:
            raise UserError(
                f"config.model.context_dim is {model.context_dim}, but {source.name!r} has no "
                f"captions"
            )
        check_context(model, source.context_shape, f"the captions of {source.name!r} have")
    manifest = source.manifest if isinstance(source, PreparedData) else None
    latents = manifest is not None and manifest.kind != "pixels"
    # Pixels are encoded in the step where there is an autoencoder: `check_latents` knows their
    # shape then.
    if latents or not experiment.autoencoder.name:
        shape = source.sample_shape
        if manifest is not None and manifest.kind == "moments":
            shape = (*shape[:2], shape[2] // 2)
        if shape != model.sample_shape:
            made = "latents" if latents else "images"
            raise UserError(
                f"config.model makes {made} of shape {model.sample_shape}, but {source.name!r} has "
                f"{shape} (config.model.image_size and in_channels must fit config.data.source)"
            )
    if model.num_classes and experiment.num_real_classes != source.num_classes:
        dropped = experiment.diffusion.p_uncond > 0 and source.num_classes > 0
        extra = (
            ", and one row is for the empty label as config.diffusion.p_uncond is above 0"
            if dropped
            else ""
        )
        raise UserError(
            f"config.model.num_classes is {model.num_classes}, expected "
            f"{source.num_classes + dropped}: {source.name!r} has "
            f"{counted(source.num_classes, 'class', 'classes')}{extra}"
        )
    if experiment.data.flip and not source.can_mirror:
        raise UserError(
            f"config.data.flip is True, but {source.name!r} holds no mirror images of its latents: "
            "prepare it with config.prepare.mirror=True"
        )


def check_latents(model: UViTConfig, autoencoder: Autoencoder) -> None:
    """Raises a UserError where the autoencoder can't decode what the model makes."""
    if model.in_channels != autoencoder.latent_channels:
        raise UserError(
            f"config.model.in_channels is {model.in_channels}, expected "
            f"{autoencoder.latent_channels}, the latent channels of {autoencoder.name!r} "
            "(config.autoencoder.name)"
        )


def check_encoded(model: UViTConfig, source: TrainingData, autoencoder: Autoencoder) -> None:
    """Raises a UserError where images encoded in the train step don't fit the model."""
    h, w, c = source.sample_shape
    factor = autoencoder.factor
    found = (h // factor, w // factor, autoencoder.latent_channels)
    if c != 3 or h % factor or w % factor or found != model.sample_shape:
        raise UserError(
            f"config.model makes latents of shape {model.sample_shape}, but "
            f"{autoencoder.name!r} makes {found} of the {h}x{w}x{c} images of {source.name!r}"
        )


def check_context(model: UViTConfig, shape: tuple[int, ...], what: str) -> None:
    """Raises a UserError where states of texts are of another length or width than the model's."""
    expected = (model.context_length, model.context_dim)
    if tuple(shape) != expected:
        raise UserError(
            f"config.model has context_length, context_dim = {expected}, but {what} states of "
            f"shape {tuple(shape)}"
        )


def check_batch(
    section: str, batch_size: int, sizes: tuple[int, int, int], microbatches: int = 1
) -> None:
    """Raises a UserError where the batch of config.`section` can't be split over the mesh.

    sizes: of the mesh's axes data, fsdp and tensor. microbatches: parts of each device's batch.
    """
    data, fsdp, _ = sizes
    if batch_size % (data * fsdp):
        raise UserError(
            f"config.{section}.batch_size is {batch_size}, expected a multiple of mesh.data * "
            f"mesh.fsdp = {data * fsdp}"
        )
    if batch_size % (data * fsdp * microbatches):
        raise UserError(
            f"config.{section}.microbatches is {microbatches}, but config.{section}.batch_size / "
            f"(mesh.data * mesh.fsdp) is {batch_size // (data * fsdp)}, expected a divisor of it"
        )


def check_mesh(model: UViTConfig, sizes: tuple[int, int, int]) -> None:
    """Raises a UserError where the heads or the channels can't be split over the mesh.

    sizes: of the mesh's axes data, fsdp and tensor.
    """
    _, fsdp, tensor = sizes
    for field, value, axis, size in (
        ("num_heads", model.num_heads, "tensor", tensor),
        ("embed_dim * mlp_ratio", int(model.embed_dim * model.mlp_ratio), "tensor", tensor),
        ("embed_dim", model.embed_dim, "tensor", tensor),
        # Else the parameters would silently stay whole.
        ("embed_dim", model.embed_dim, "fsdp", fsdp),
    ):
        if value % size:
            raise UserError(
                f"config.model.{field} is {value}, expected a multiple of mesh.{axis} = {size}"
            )
