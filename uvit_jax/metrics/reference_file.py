"""Reference statistics of a data set in an .npz: our own format, ADM's or pytorch-fid's."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float

from uvit_jax.errors import UserError
from uvit_jax.files import atomic_write
from uvit_jax.fingerprints import sha256_of_file
from uvit_jax.metrics.feature_network import FeatureNetwork
from uvit_jax.metrics.frechet import FrechetReference
from uvit_jax.metrics.moments import Moments
from uvit_jax.metrics.npz_file import read_npz

_FORMAT = "uvit_jax reference 1"
_EXPECTED = "an .npz of reference statistics"
_ARRAYS = ("mu", "sigma", "mu_s", "sigma_s", "features", "metadata")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Reference:
    """Statistics of the data set that samples are compared with.

    Attributes:
      path: the file.
      sha256: hash of the file.
      mean, covariance: of the "pool" features.
      spatial: mean and covariance of the "spatial" features; None if the file has none.
      features: "pool" features of images of the data set; None if the file has none.
      images: True if the file holds images (ADM's), from which features can be computed.
      record: the file's metadata: source, count, shape, crop, extractor; empty for a foreign file.
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
        """The "pool" features' Gaussian, decomposed once. Raises UserError for a bad covariance."""
        return FrechetReference(self.mean, self.covariance)

    @functools.cached_property
    def spatial_gaussian(self) -> FrechetReference | None:
        """The "spatial" features' Gaussian; None if the file has none. Errors as `gaussian`."""
        return None if self.spatial is None else FrechetReference(*self.spatial)


def read_reference(path: pathlib.Path, network: FeatureNetwork) -> Reference:
    """Reads the statistics in an `.npz`.

    Its arrays are `mu` and `sigma`, as pytorch-fid and U-ViT's code write them; with them ADM's
    `mu_s`, `sigma_s` and `arr_0` (images), or our own `features` and `metadata`.

    Raises:
      UserError: for a file of another layout, or of other features than the network's.
    """
    try:
        digest = sha256_of_file(path)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}), expected {_EXPECTED}") from None
    held, arrays = read_npz(path, _EXPECTED, _ARRAYS)
    if not {"mu", "sigma"} <= held:
        raise UserError(
            f"{path} holds {_list(held)}, expected the arrays mu and sigma: "
            "--config.evaluate.make_reference makes such a file of images"
        )
    mean, covariance = _moments(path, ("mu", "sigma"), arrays, network, "pool")
    spatial = None
    if "mu_s" in arrays and "spatial" in network.widths:
        spatial = _moments(path, ("mu_s", "sigma_s"), arrays, network, "spatial")
    reference = Reference(
        path=path,
        sha256=digest,
        mean=mean,
        covariance=covariance,
        spatial=spatial,
        features=_features(path, arrays, network),
        images="arr_0" in held,
        record=_record(path, arrays),
    )
    _check_network(reference, network)
    try:
        # A matrix that is not a covariance is refused here, before any samples are drawn.
        reference.gaussian, reference.spatial_gaussian  # noqa: B018
    except UserError as error:
        raise UserError(f"{path} holds no statistics: {error}") from None
    return reference


def _moments(
    path: pathlib.Path,
    names: tuple[str, str],
    arrays: dict[str, np.ndarray],
    network: FeatureNetwork,
    kind: str,
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    width = network.widths[kind]
    for name, expected in zip(names, ((width,), (width, width)), strict=True):
        found = arrays[name].shape if name in arrays else "absent"
        if found != expected:
            raise UserError(
                f"{path} has {name} of shape {found}, expected {expected}, the features of "
                f"{network.name}"
            )
    mean, covariance = (_finite(path, name, arrays[name]) for name in names)
    return mean.astype(np.float64), covariance.astype(np.float64)


def _features(
    path: pathlib.Path, arrays: dict[str, np.ndarray], network: FeatureNetwork
) -> Float[np.ndarray, "n d"] | None:
    if "features" not in arrays:
        return None
    features, width = arrays["features"], network.widths["pool"]
    if features.ndim != 2 or features.shape[1] != width or not len(features):
        raise UserError(
            f"{path} has features of shape {features.shape}, expected (n, {width}), "
            f"{network.name}'s"
        )
    return _finite(path, "features", features).astype(np.float32, copy=False)


def _finite(path: pathlib.Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path} has {name} of dtype {array.dtype}, expected real numbers")
    if not np.isfinite(array).all():
        raise UserError(f"{path} has NaN or infinity in {name}, expected finite numbers")
    return array


def _record(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The file's metadata; empty for a foreign file."""
    if "metadata" not in arrays:
        return {}
    try:
        record: dict[str, Any] = json.loads(str(arrays["metadata"]))
        found = record.get("format")
    except (ValueError, AttributeError):
        raise UserError(
            f"{path} has metadata that are not a JSON object, expected {_EXPECTED}"
        ) from None
    if found != _FORMAT:
        raise UserError(
            f"{path} is of the format {found!r}, expected {_FORMAT!r}: make it again, or update "
            "uvit_jax"
        )
    return record


def _check_network(reference: Reference, network: FeatureNetwork) -> None:
    made_with = reference.record.get("extractor") or {}
    for field, value in network.identity.items():
        if made_with.get(field, value) != value:
            raise UserError(
                f"{reference.path} was made with {field} = {made_with[field]!r} of "
                f"{made_with.get('name')!r}, but {network.name!r} has {value!r} here: distances "
                "between the two mean nothing"
            )


def check_resolution(reference: Reference, shape: tuple[int, int, int]) -> None:
    """Raises UserError if the reference's images are known to be of another size than the samples.

    Grey and RGB images can be compared: networks repeat the grey channel three times.
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
    """Writes a file that `read_reference`, pytorch-fid and ADM's evaluator read, atomically."""
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
