"""The least time a program can take, from what each chip computes, reads, writes and sends: a
bound, no prediction.
"""

import dataclasses

from uvit_jax.parallel.chips import Chip


@dataclasses.dataclass(frozen=True)
class Work:
    """What one chip does in one call of a program.

    Attributes:
      flops: of its matrix products, those of rematerialisation included.
      hbm_bytes: that must pass between memory and chip: arguments read and results written, once
        each. What else a program moves, its activations, depends on what the compiler keeps on the
        chip.
      ici_bytes: sent to the other chips of its slice (GPUs: of its host).
      dcn_bytes: sent to other slices.
    """

    flops: float | int
    hbm_bytes: float | int
    ici_bytes: float | int = 0
    dcn_bytes: float | int = 0


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that each of a chip's resources needs at least; None where its speed isn't known."""

    compute: float
    hbm: float
    ici: float | None
    dcn: float | None

    @property
    def bound(self) -> float:
        """Seconds of a call in which everything overlaps perfectly: no run is faster."""
        return max(self._known.values())

    @property
    def no_overlap(self) -> float:
        """Seconds of a call in which nothing overlaps."""
        return sum(self._known.values())

    @property
    def limit(self) -> str:
        """The resource that sets the bound: "compute", "hbm", "ici" or "dcn"."""
        return max(self._known, key=lambda name: self._known[name])

    @property
    def _known(self) -> dict[str, float]:
        return {
            name: seconds
            for name, seconds in dataclasses.asdict(self).items()
            if seconds is not None
        }


def roofline(work: Work, chip: Chip, ici_bandwidth: float | None) -> Roofline:
    """Each part of the work at the chip's full speed (the roofline model,
    doi:10.1145/1498765.1498785).

    ici_bandwidth: bytes a second out of one chip, all its links at once (`Topology.ici_bandwidth`);
    None where that isn't known. Bytes without a network of known speed take None seconds, and are
    left out of the bound.
    """
    return Roofline(
        compute=work.flops / chip.peak_flops,
        hbm=work.hbm_bytes / chip.hbm_bandwidth,
        ici=_seconds(work.ici_bytes, ici_bandwidth),
        dcn=_seconds(work.dcn_bytes, chip.dcn_bandwidth),
    )


def _seconds(sent: float | int, bandwidth: float | None) -> float | None:
    if not sent:
        return 0.0
    return sent / bandwidth if bandwidth else None


def mfu(model_flops: float | int, seconds: float, chips: int, chip: Chip) -> float:
    """The share of the chips' peak that a call of this many seconds reaches, its FLOPs counted
    without rematerialisation (Sec. 4.1 of arXiv:2204.02311).
    """
    return model_flops / (seconds * chips * chip.peak_flops)
