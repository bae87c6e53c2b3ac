"""All metrics of a set of samples: accumulated by batches, saved, compared with a reference."""

import json
import pathlib
from collections.abc import Collection
from typing import Any

import numpy as np
from jaxtyping import Float

from uvit_jax.errors import UserError
from uvit_jax.files import atomic_write
from uvit_jax.metrics.clip_score import ClipScore
from uvit_jax.metrics.feature_network import FeatureNetwork, Features
from uvit_jax.metrics.frechet import frechet_bias
from uvit_jax.metrics.inception_score import InceptionScore
from uvit_jax.metrics.kid import kid
from uvit_jax.metrics.metric_names import METRICS, SAMPLE_METRICS
from uvit_jax.metrics.moments import Moments, SplitMoments
from uvit_jax.metrics.npz_file import read_npz
from uvit_jax.metrics.precision_recall import density_coverage, precision_recall
from uvit_jax.metrics.reference_file import Reference
from uvit_jax.metrics.stored_rows import StoredRows

_STATE, _ROWS = "state.npz", "pool.rows"
_SPLITS = 10
_KID_SUBSET = 1000


def kinds(metrics: Collection[str]) -> tuple[str, ...]:
    """The kinds of features that these metrics need; "pool" always."""
    return tuple(dict.fromkeys(["pool", *(kind for name in metrics for kind in METRICS[name])]))


class Scores:
    """Accumulators of some metrics, for samples 0, 1, 2, ... in order.

    Attributes:
      metrics: some of `METRICS`.
      num_samples: samples that there will be.
      count: samples seen.
      clip: the CLIP score's accumulator.
    """

    def __init__(
        self,
        metrics: Collection[str],
        network: FeatureNetwork,
        num_samples: int,
        folder: pathlib.Path | None,
    ):
        """Starts at sample 0, or after the last sample whose state `folder` holds.

        folder: keeps the features until the end, and the state; None for neither.

        Raises:
          UserError: for too few samples for a metric, a folder that can't be written to, or a state
            that is damaged or of other scores.
        """
        self.metrics, self.num_samples, self.count = tuple(metrics), num_samples, 0
        self._network, self._folder = network, folder
        self._pool = SplitMoments(network.widths["pool"])
        self._spatial = Moments(network.widths["spatial"]) if "sfid" in metrics else None
        self._logits = InceptionScore(num_samples, _SPLITS) if "is" in metrics else None
        self.clip = ClipScore() if "clip" in metrics else None
        if folder is not None and (folder / _STATE).exists():
            self._load(folder / _STATE)
        self._rows: StoredRows | None = None
        if any(name in SAMPLE_METRICS for name in metrics):
            if folder is None:
                names = ", ".join(SAMPLE_METRICS)
                raise UserError(f"{names} need a folder for the samples' features, found none")
            self._rows = StoredRows(
                folder / _ROWS, (network.widths["pool"],), np.float32, count=self.count
            )

    def update(self, features: Features) -> None:
        """Adds the features of the next samples, `[n, d]` of each kind.

        Raises:
          UserError: for NaN or infinity in the features, or a full disk.
        """
        first = self.count
        self._pool.update(features["pool"], first)
        if self._spatial is not None:
            self._spatial.update(features["spatial"])
        if self._logits is not None:
            self._logits.update(features["logits"], first)
        if self._rows is not None:
            self._rows.append(features["pool"])
        self.count += len(features["pool"])

    def save(self) -> None:
        """Writes the state to the folder, atomically."""
        assert self._folder is not None
        if self._rows is not None:
            self._rows.sync()
        arrays: dict[str, Any] = {
            f"{part}/{name}": array
            for part, held in self._parts().items()
            for name, array in held.arrays().items()
        }
        with atomic_write(self._folder / _STATE) as file:
            np.savez(
                file,
                count=np.asarray(self.count),
                about=np.asarray(json.dumps(self._about())),
                **arrays,
            )

    def results(self, reference: Reference) -> dict[str, float]:
        """Every metric by its name, which begins with the network's prefix.

        `<name>_bias` estimates how far the Frechet distance exceeds that of infinitely many
        samples. `<name>_std` is over the splits or subsets of the published definition.

        Raises:
          UserError: if not all samples were seen, or for fewer than a metric needs.
        """
        if self.count != self.num_samples:
            raise UserError(f"{self.count} samples were seen, expected {self.num_samples}")
        found: dict[str, float] = {}
        if "fid" in self.metrics:
            whole = self._pool.whole
            found["fid"] = reference.gaussian.distance(whole.mean, whole.covariance)
            if self.count >= 4:
                found["fid_bias"] = frechet_bias(reference.gaussian, self._pool, found["fid"])
        if self._spatial is not None:
            assert reference.spatial_gaussian is not None
            found["sfid"] = reference.spatial_gaussian.distance(
                self._spatial.mean, self._spatial.covariance
            )
        if self._logits is not None:
            found["is"], found["is_std"] = self._logits.result()
        if self._rows is not None:
            found |= self._sample_metrics(self._rows.read(), reference)
        if self.clip is not None:
            found["clip"] = self.clip.result()
        return {metric_name(name, self._network): value for name, value in found.items()}

    def definitions(self, reference: Reference) -> dict[str, str]:
        """The choices that the metrics' definitions leave open, for the report."""
        found = {}
        if "is" in self.metrics:
            found["is"] = f"{_SPLITS} parts in order, logits without the bias"
        if "kid" in self.metrics:
            found["kid"] = f"100 subsets of {self._kid_subset(reference):,}, seed 2020"
        for names, choice in (
            (("precision", "recall"), "k = 3"),
            (("density", "coverage"), "k = 5"),
        ):
            found |= {name: choice for name in names if name in self.metrics}
        if self.clip is not None:
            found["clip"] = "mean of max(100 cos, 0)"
        return found

    def _kid_subset(self, reference: Reference) -> int:
        kept = 0 if reference.features is None else len(reference.features)
        return min(_KID_SUBSET, kept, self.num_samples)

    def close(self) -> None:
        """Closes its files."""
        if self._rows is not None:
            self._rows.close()

    def _sample_metrics(
        self, features: Float[np.ndarray, "n d"], reference: Reference
    ) -> dict[str, float]:
        assert reference.features is not None
        real, found = reference.features, {}
        if "kid" in self.metrics:
            found["kid"], found["kid_std"] = kid(
                real, features, subset_size=self._kid_subset(reference)
            )
        if "precision" in self.metrics or "recall" in self.metrics:
            found["precision"], found["recall"] = precision_recall(real, features)
        if "density" in self.metrics or "coverage" in self.metrics:
            found["density"], found["coverage"] = density_coverage(real, features)
        return {
            name: value
            for name, value in found.items()
            if name.removesuffix("_std") in self.metrics
        }

    def _parts(self) -> dict[str, SplitMoments | Moments | InceptionScore | ClipScore]:
        parts = {
            "pool": self._pool,
            "spatial": self._spatial,
            "logits": self._logits,
            "clip": self.clip,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _about(self) -> dict[str, object]:
        """Fields that a state must share with these scores, for them to go on from it."""
        return {
            "metrics": list(self.metrics),
            "num_samples": self.num_samples,
            "features": self._network.identity,
        }

    def _load(self, path: pathlib.Path) -> None:
        _, arrays = read_npz(path, "the state of an evaluation: delete its folder to start again")
        held: dict[str, dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            part, _, field = name.partition("/")
            held.setdefault(part, {})[field] = array
        try:
            about, count = json.loads(str(arrays["about"])), int(arrays["count"])
            for name, wanted in self._about().items():
                if about[name] != wanted:
                    raise UserError(
                        f"{path} is of {name} = {about[name]}, expected {wanted}, or its folder "
                        "deleted"
                    )
            self.count = count
            self._pool = SplitMoments.from_arrays(held["pool"])
            if self._spatial is not None:
                self._spatial = Moments.from_arrays(held["spatial"])
            if self._logits is not None:
                self._logits = InceptionScore.from_arrays(held["logits"])
            if self.clip is not None:
                self.clip = ClipScore.from_arrays(held["clip"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(
                f"{path} is not the state of an evaluation ({error!r}), expected one, or its "
                "folder deleted"
            ) from None


def metric_name(name: str, network: FeatureNetwork) -> str:
    """The name of a metric with this network.

    FID, sFID, IS and KID are the published Inception-v3's alone: other names have a prefix.
    """
    base, _, suffix = name.partition("_")
    if base == "clip":
        return "clip_score"
    if network.prefix:
        base = {"fid": "fd", "sfid": "sfd", "kid": "kd", "is": "score"}.get(base, base)
    return network.prefix + base + (f"_{suffix}" if suffix else "")
