"""Examples from the official repository's features: moments that are stored as they are."""

import concurrent.futures
import logging
import pathlib
from collections.abc import Iterator

from uvit_jax.data.image_sources.official_features import OfficialFeatures
from uvit_jax.data.threaded_map import threaded_map
from uvit_jax.experiment.job_sections import PrepareConfig
from uvit_jax.experiment.sections import AutoencoderSection
from uvit_jax.jobs.preparation.plan import NO_TEXT, Plan, square_or_sides
from uvit_jax.jobs.preparation.prepared_examples import Example, PreparedExamples

LOG = logging.getLogger("uvit_jax")

# The factor of the official repository's latents, except for COCO's.
_OFFICIAL_SCALE = 0.18215


def open_feature_examples(
    prepare: PrepareConfig, autoencoder: AutoencoderSection
) -> PreparedExamples:
    """The examples of the folder of features `prepare.source`; its first file is read.

    Raises:
      UserError: for a folder with a gap, or a first file that is not a feature.
    """
    features = OfficialFeatures(prepare.source)
    if first_label := features[0][1]:  # They are in the order of their classes.
        LOG.warning(
            "the labels of %s begin with %d, so that the classes below are without images, which "
            "the model has rows for: labels are kept as they are, expected from 0 on",
            prepare.source,
            first_label,
        )
    plan = Plan(
        source=f"official features: {pathlib.Path(prepare.source).name}",
        split=prepare.split,
        kind="moments",
        image_size=square_or_sides(8 * features.shape[0], 8 * features.shape[1]),
        shape=features.shape,
        dtype=prepare.dtype,
        mirror=prepare.mirror,
        autoencoder=autoencoder.name or "autoencoder_kl",
        autoencoder_sha256="",
        autoencoder_dtype="",
        scale=autoencoder.scale or _OFFICIAL_SCALE,
        shift=0.0,
        crop="adm",
        **NO_TEXT,
        num_images=len(features),
        images_per_shard=prepare.images_per_shard,
        listing_sha256="",
    )

    def examples(images: range) -> Iterator[tuple[list[Example], list[str]]]:
        threads = prepare.threads
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for moments, label in threaded_map(pool, features.__getitem__, images, 4 * threads):
                stored = moments.astype(plan.stored_dtype)
                yield [Example(int(label), tuple(stored) if plan.mirror else (stored[0],))], []

    return PreparedExamples(plan, (), examples)
