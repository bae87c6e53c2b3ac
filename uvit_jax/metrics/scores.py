"""All scores of a set of samples: gathered batch by batch, saved on the way, compared with a
reference at the end.
"""

import json
import pathlib
from collections.abc import Collection
from typing import Any

import numpy as np
from jaxtyping import Float

from uvit_jax.errors import UserError
from uvit_jax.files import atomic_write
from uvit_jax.metrics.clip_score import ClipScore
from uvit_jax.metrics.features import FeatureExtractor, Features
from uvit_jax.metrics.frechet import frechet_bias
from uvit_jax.metrics.inception_score import InceptionScore
from uvit_jax.metrics.kid import kid
from uvit_jax.metrics.metric_names import METRICS, OF_SAMPLES
from uvit_jax.metrics.moments import Moments, SplitMoments
from uvit_jax.metrics.npz_file import read_npz
from uvit_jax.metrics.precision_recall import density_coverage, precision_recall
from uvit_jax.metrics.reference import Reference
from uvit_jax.metrics.stored_rows import StoredRows

_STATE, _ROWS = "state.npz", "pool.rows"
_SPLITS = 10
_KID_SUBSET = 1000


def kinds(metrics: Collection[str]) -> tuple[str, ...]:
    """The kinds of features that these metrics need, and always "pool"."""
    return tuple(dict.fromkeys(["pool", *(kind for name in metrics for kind in METRICS[name])]))


class Scores:
    """Accumulators of the metrics asked for, of samples 0, 1, 2, ... in turn.

    Attributes:
      metrics: which, some of `METRICS`.
      num_samples: how many there will be.
      count: samples seen.
      clip: the CLIP score's accumulator.
    """

    def __init__(
        self,
        metrics: Collection[str],
        extractor: FeatureExtractor,
        num_samples: int,
        folder: pathlib.Path | None,
    ):
        """folder: where features are kept until the end, and the state to go on from; None for
        neither.

        A folder with a state goes on after the last sample that was saved.

        Raises:
          UserError: for too few samples for a metric, a folder that can't be written to, or a state
            in it that is damaged or of other scores.
        """
        self.metrics, self.num_samples, self.count = tuple(metrics), num_samples, 0
        self._extractor, self._folder = extractor, folder
        self._pool = SplitMoments(extractor.widths["pool"])
        self._spatial = Moments(extractor.widths["spatial"]) if "sfid" in metrics else None
        self._logits = InceptionScore(num_samples, _SPLITS) if "is" in metrics else None
        self.clip = ClipScore() if "clip" in metrics else None
        if folder is not None and (folder / _STATE).exists():
            self._load(folder / _STATE)
        self._rows: StoredRows | None = None
        if any(name in OF_SAMPLES for name in metrics):
            if folder is None:
                raise UserError(
                    f"{', '.join(OF_SAMPLES)} need a folder for the samples' features, found none"
                )
            self._rows = StoredRows(
                folder / _ROWS, (extractor.widths["pool"],), np.float32, count=self.count
            )

    def update(self, features: Features) -> None:
        """Takes in the features of the samples that follow those seen, `[n, d]` of each kind.

        Raises:
          UserError: features that are NaN or infinite, or a full disk.
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
        """Leaves in the folder what the next run goes on from, whole or not at all."""
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
        """Every metric by its name, which begins with the extractor's prefix; all samples must have
        been seen.

        `<name>_bias` estimates by how much the Frechet distance lies above that of infinitely many
        samples, `<name>_std` is over the splits or subsets of the published definition.

        Raises:
          UserError: for fewer samples than a metric needs.
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
            found |= self._of_samples(self._rows.read(), reference)
        if self.clip is not None:
            found["clip"] = self.clip.result()
        return {metric_name(name, self._extractor): value for name, value in found.items()}

    def definitions(self, reference: Reference) -> dict[str, str]:
        """What each metric was taken with where its definition leaves a choice."""
        found = {}
        if "is" in self.metrics:
            found["is"] = f"{_SPLITS} parts in order, logits without the bias"
        if "kid" in self.metrics:
            found["kid"] = f"100 subsets of {self._kid_subset(reference):,}, seed 2020"
        for names, said in ((("precision", "recall"), "k = 3"), (("density", "coverage"), "k = 5")):
            found |= {name: said for name in names if name in self.metrics}
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

    def _of_samples(
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

    def _parts(self) -> dict[str, Any]:
        parts = {
            "pool": self._pool,
            "spatial": self._spatial,
            "logits": self._logits,
            "clip": self.clip,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _about(self) -> dict[str, Any]:
        """What a state must be of for these scores to go on from it."""
        return {
            "metrics": list(self.metrics),
            "num_samples": self.num_samples,
            "features": self._extractor.identity,
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
                        f"deleted"
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
                f"{path} is no state of an evaluation ({error!r}), expected one, or its folder "
                f"deleted"
            ) from None


def metric_name(name: str, extractor: FeatureExtractor) -> str:
    """What a metric is called with this extractor: FID, sFID, IS and KID are the published
    Inception-v3's alone.
    """
    base, _, suffix = name.partition("_")
    if base == "clip":
        return "clip_score"
    if extractor.prefix:
        base = {"fid": "fd", "sfid": "sfd", "kid": "kd", "is": "score"}.get(base, base)
    return extractor.prefix + base + (f"_{suffix}" if suffix else "")
