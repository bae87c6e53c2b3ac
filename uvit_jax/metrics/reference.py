"""What samples are compared with: statistics of a data set, in our own files, ADM's or
pytorch-fid's.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

from uvit_jax.errors import UserError
from uvit_jax.files import atomic_write
from uvit_jax.metrics.features import FeatureExtractor
from uvit_jax.metrics.frechet import FrechetReference
from uvit_jax.metrics.moments import Moments
from uvit_jax.metrics.npz_file import read_npz

_FORMAT = "uvit_jax reference 1"
_EXPECTED = "an .npz of reference statistics"
_ARRAYS = ("mu", "sigma", "mu_s", "sigma_s", "features", "metadata")


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
      record: what the file says of itself: source, count, resolution, crop, extractor; empty for a
        foreign one.
    """

    path: pathlib.Path
    sha256: str
    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]
    spatial: tuple[Float[np.ndarray, " s"], Float[np.ndarray, "s s"]] | None = None
    features: Float[np.ndarray, "n d"] | None = dataclasses.field(default=None, repr=False)
    images: bool = False
    record: dict[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def gaussian(self) -> FrechetReference:
        """Of the "pool" features, decomposed once. Raises UserError for numbers that are no
        covariance.
        """
        return FrechetReference(self.mean, self.covariance)

    @functools.cached_property
    def spatial_gaussian(self) -> FrechetReference | None:
        """Of the "spatial" features, decomposed once. Raises UserError for numbers that are no
        covariance.
        """
        return None if self.spatial is None else FrechetReference(*self.spatial)


def read_reference(path: pathlib.Path, extractor: FeatureExtractor) -> Reference:
    """The statistics in an `.npz`: `mu` and `sigma` as pytorch-fid and U-ViT's code write them,
    with ADM's `mu_s`, `sigma_s` and `arr_0` (images), or with our own `features` and `metadata`.

    Raises:
      UserError: for a file of another layout, or of other features than the extractor's.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}), expected {_EXPECTED}") from None
    held, arrays = read_npz(path, _EXPECTED, _ARRAYS)
    if not {"mu", "sigma"} <= held:
        raise UserError(
            f"{path} holds {_list(held)}, expected the arrays mu and sigma: "
            "--config.evaluate.make_reference makes such a file of images"
        )
    mean, covariance = _moments(path, ("mu", "sigma"), arrays, extractor, "pool")
    spatial = None
    if "mu_s" in arrays and "spatial" in extractor.widths:
        spatial = _moments(path, ("mu_s", "sigma_s"), arrays, extractor, "spatial")
    reference = Reference(
        path=path,
        sha256=digest,
        mean=mean,
        covariance=covariance,
        spatial=spatial,
        features=_features(path, arrays, extractor),
        images="arr_0" in held,
        record=_record(path, arrays),
    )
    _check_extractor(reference, extractor)
    try:
        # Here, and not when all samples are drawn, is told what can be no covariance.
        reference.gaussian, reference.spatial_gaussian  # noqa: B018
    except UserError as error:
        raise UserError(f"{path} holds no statistics: {error}") from None
    return reference


def _moments(
    path: pathlib.Path,
    names: tuple[str, str],
    arrays: dict[str, np.ndarray],
    extractor: FeatureExtractor,
    kind: str,
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    width = extractor.widths[kind]
    for name, expected in zip(names, ((width,), (width, width)), strict=True):
        found = arrays[name].shape if name in arrays else "absent"
        if found != expected:
            raise UserError(
                f"{path} has {name} of shape {found}, expected {expected}, the features of "
                f"{extractor.name}"
            )
    mean, covariance = (_finite(path, name, arrays[name]) for name in names)
    return mean.astype(np.float64), covariance.astype(np.float64)


def _features(
    path: pathlib.Path, arrays: dict[str, np.ndarray], extractor: FeatureExtractor
) -> Float[np.ndarray, "n d"] | None:
    if "features" not in arrays:
        return None
    features, width = arrays["features"], extractor.widths["pool"]
    if features.ndim != 2 or features.shape[1] != width or not len(features):
        raise UserError(
            f"{path} has features of shape {features.shape}, expected (n, {width}), "
            f"{extractor.name}'s"
        )
    return _finite(path, "features", features).astype(np.float32, copy=False)


def _finite(path: pathlib.Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path} has {name} of dtype {array.dtype}, expected real numbers")
    if not np.isfinite(array).all():
        raise UserError(f"{path} has NaN or infinity in {name}, expected finite numbers")
    return array


def _record(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the file says of itself."""
    if "metadata" not in arrays:
        return {}
    try:
        record = json.loads(str(arrays["metadata"]))
        found = record.get("format")
    except (ValueError, AttributeError):
        raise UserError(
            f"{path} has metadata that are no JSON object, expected {_EXPECTED}"
        ) from None
    if found != _FORMAT:
        raise UserError(
            f"{path} is of the format {found!r}, expected {_FORMAT!r}: make it again, or update "
            f"uvit_jax"
        )
    return record


def _check_extractor(reference: Reference, extractor: FeatureExtractor) -> None:
    made_with = reference.record.get("extractor") or {}
    for field, value in extractor.identity.items():
        if made_with.get(field, value) != value:
            raise UserError(
                f"{reference.path} was made with {field} = {made_with[field]!r} of "
                f"{made_with.get('name')!r}, but {extractor.name!r} has {value!r} here: distances "
                "between the two mean nothing"
            )


def check_resolution(reference: Reference, shape: tuple[int, int, int]) -> None:
    """Raises a UserError where a reference that knows its images' size has another one than the
    samples.

    Grey images are as good as the same in RGB: extractors repeat them thrice.
    """
    found = reference.record.get("shape")
    if found and tuple(found)[:2] != shape[:2]:
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
    """Writes statistics that `read_reference`, pytorch-fid and ADM's evaluator read, whole or not
    at all.
    """
    arrays: dict[str, Any] = {
        "mu": pool.mean,
        "sigma": pool.covariance,
        "features": np.asarray(features, np.float32),
    }
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    with atomic_write(path) as file:
        np.savez(file, metadata=np.asarray(json.dumps({"format": _FORMAT, **record})), **arrays)


def _list(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)[:8]) or "nothing"
