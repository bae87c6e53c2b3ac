"""What samples are compared with: statistics of a data set, in our own files, ADM's or pytorch-fid's."""

import dataclasses
import hashlib
import json
import pathlib
import zipfile
from typing import Any

import numpy as np
from jaxtyping import Float

from uvit_jax.errors import UserError
from uvit_jax.metrics.features import FeatureExtractor
from uvit_jax.metrics.moments import Moments
from uvit_jax.telemetry.atomic import atomic_write

_FORMAT = "uvit_jax reference 1"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Reference:
    """A data set as metrics see it.

    Attributes:
      path: its file.
      sha256: of the file.
      mean, covariance: of the "pool" features.
      spatial: mean and covariance of the "spatial" features; None where the file has none.
      features: "pool" features of images of the data set; None where the file has none.
      images: whether the file holds images (ADM's), of which features can be made.
      record: what the file says of itself: source, count, resolution, crop, extractor; empty for a foreign one.
    """

    path: pathlib.Path
    sha256: str
    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]
    spatial: tuple[Float[np.ndarray, " s"], Float[np.ndarray, "s s"]] | None = None
    features: Float[np.ndarray, "n d"] | None = dataclasses.field(default=None, repr=False)
    images: bool = False
    record: dict[str, Any] = dataclasses.field(default_factory=dict)


def read_reference(path: pathlib.Path, extractor: FeatureExtractor) -> Reference:
    """The statistics in an `.npz`: `mu` and `sigma` as pytorch-fid and U-ViT's code write them, with ADM's `mu_s`,
    `sigma_s` and `arr_0` (images), or with our own `features` and `metadata`.

    Raises:
      UserError: for a file of another layout, or of other features than the extractor's.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}), expected an .npz of reference statistics") from None
    digest = hashlib.sha256(content).hexdigest()
    del content
    try:
        with np.load(path, allow_pickle=False) as file:
            held = set(file.files)
            if not {"mu", "sigma"} <= held:
                raise UserError(
                    f"{path} holds {_list(held)}, expected the arrays mu and sigma: "
                    "--config.evaluate.make_reference makes such a file of images"
                )
            arrays = {name: file[name] for name in ("mu", "sigma", "mu_s", "sigma_s", "features") if name in held}
            record = json.loads(str(file["metadata"])) if "metadata" in held else {}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} can't be read ({error}), expected an .npz of reference statistics") from None
    spatial = None
    _check_moments(path, "mu", "sigma", arrays, extractor, "pool")
    if "mu_s" in arrays and "spatial" in extractor.widths:
        _check_moments(path, "mu_s", "sigma_s", arrays, extractor, "spatial")
        spatial = arrays["mu_s"].astype(np.float64), arrays["sigma_s"].astype(np.float64)
    reference = Reference(
        path=path,
        sha256=digest,
        mean=arrays["mu"].astype(np.float64),
        covariance=arrays["sigma"].astype(np.float64),
        spatial=spatial,
        features=arrays.get("features"),
        images="arr_0" in held,
        record=record,
    )
    _check_extractor(reference, extractor)
    return reference


def _check_moments(
    path: pathlib.Path,
    mean: str,
    covariance: str,
    arrays: dict[str, np.ndarray],
    extractor: FeatureExtractor,
    kind: str,
) -> None:
    width = extractor.widths[kind]
    for name, expected in ((mean, (width,)), (covariance, (width, width))):
        found = arrays[name].shape if name in arrays else "absent"
        if found != expected:
            raise UserError(
                f"{path} has {name} of shape {found}, expected {expected}, the features of {extractor.name}"
            )
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"{path} has NaN or infinity in {name}, expected finite numbers")


def _check_extractor(reference: Reference, extractor: FeatureExtractor) -> None:
    made_with = reference.record.get("extractor") or {}
    for field, value in extractor.identity.items():
        if made_with.get(field, value) != value:
            raise UserError(
                f"{reference.path} was made with {field} = {made_with[field]!r} of {made_with.get('name')!r}, but "
                f"{extractor.name!r} has {value!r} here: distances between the two mean nothing"
            )


def check_resolution(reference: Reference, shape: tuple[int, int, int]) -> None:
    """Raises a UserError where a reference that knows its images' size has another one than the samples."""
    found = reference.record.get("shape")
    if found and tuple(found) != shape:
        raise UserError(
            f"{reference.path} is of images of {'x'.join(map(str, found))}, but the samples have "
            f"{'x'.join(map(str, shape))}: expected a reference of their size"
        )


def write_reference(
    path: pathlib.Path,
    pool: Moments,
    spatial: Moments | None,
    features: Float[np.ndarray, "n d"],
    record: dict[str, Any],
) -> None:
    """Writes statistics that `read_reference`, pytorch-fid and ADM's evaluator read, whole or not at all."""
    arrays: dict[str, Any] = {"mu": pool.mean, "sigma": pool.covariance, "features": np.asarray(features, np.float32)}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    with atomic_write(path) as file:
        np.savez(file, metadata=np.asarray(json.dumps({"format": _FORMAT, **record})), **arrays)


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names)[:8]) or "nothing"
