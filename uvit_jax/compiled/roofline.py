"""Lower bound on a program's time, from each chip's FLOPs, memory traffic and bytes sent."""

import dataclasses

from uvit_jax.parallel.chips import Chip


@dataclasses.dataclass(frozen=True)
class Work:
    """Work of one chip in one call of a program.

    Attributes:
      flops: FLOPs of its matrix products, with those of rematerialisation.
      hbm_bytes: bytes that must pass between memory and chip: arguments read and results written,
        once each. Activations are left out, since the compiler may keep them on the chip.
      ici_bytes: bytes sent to the other chips of its slice (GPUs: of its host).
      dcn_bytes: bytes sent to other slices.
    """

    flops: float | int
    hbm_bytes: float | int
    ici_bytes: float | int = 0
    dcn_bytes: float | int = 0


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Least seconds that each of a chip's resources needs; None where its speed is not known."""

    compute: float
    hbm: float
    ici: float | None
    dcn: float | None

    @property
    def bound(self) -> float:
        """Seconds of a call with perfect overlap: no run is faster."""
        return max(self._known.values())

    @property
    def no_overlap(self) -> float:
        """Seconds of a call without overlap."""
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
    """Times each part of the work at the chip's full speed (doi:10.1145/1498765.1498785).

    Bytes over a network of unknown speed take None seconds, and are left out of the bound.

    ici_bandwidth: bytes per second out of one chip, over all its links (`Topology.ici_bandwidth`);
      None if not known.
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
    """Returns the share of the chips' peak that a call reaches (Sec. 4.1 of arXiv:2204.02311).

    model_flops: FLOPs of the call on all chips, without those of rematerialisation.
    """
    return model_flops / (seconds * chips * chip.peak_flops)
