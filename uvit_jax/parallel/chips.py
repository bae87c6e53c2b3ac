"""Published speed and memory of TPU and GPU chips: FLOP/s, memory, and the networks between them.

The only table of peaks: MFU (`telemetry.throughput`) and the roofline (`compiled.roofline`) are
both computed from it.
"""

import dataclasses
from collections.abc import Iterable

GiB = 2**30
# Google's pages give networks in gigabits per second, NVIDIA's datasheets in gigabytes per second,
# both directions added.
_GBIT = 1e9 / 8

# Peak dense bfloat16 FLOP/s of one jax device, by `jax.Device.device_kind`. "TPU page x" is
# https://cloud.google.com/tpu/docs/x. NVIDIA's datasheets print twice the dense number where they
# say "with sparsity".
PEAK_FLOPS = {
    "TPU v3": 123e12 / 2,  # TPU page v3: 123 TFLOPS a chip; a jax device is one of its two cores
    "TPU v4": 275e12,  # TPU page v4: 275 TFLOPS a chip; from v4 to v6e a jax device is a chip
    "TPU v5 lite": 197e12,  # TPU page v5e: 197 TFLOPS a chip
    "TPU v5e": 197e12,  # the same chip under the name that some runtimes give
    "TPU v5": 459e12,  # TPU page v5p: 459 TFLOPS a chip
    "TPU v5p": 459e12,  # the same chip under the name that some runtimes give
    "TPU v6 lite": 918e12,  # TPU page v6e: 918 TFLOPS a chip
    "TPU v6e": 918e12,  # the same chip under the name that some runtimes give
    # TPU page tpu7x: 2307 TFLOPS a chip; a jax device is one of its two chiplets.
    "TPU7x": 2307e12 / 2,
    "NVIDIA A100-SXM4-40GB": 312e12,  # NVIDIA A100 datasheet: 312 TFLOPS dense, all forms alike
    "NVIDIA A100-SXM4-80GB": 312e12,  # as above
    "NVIDIA A100-PCIE-40GB": 312e12,  # as above
    "NVIDIA A100 80GB PCIe": 312e12,  # as above
    "NVIDIA H100 80GB HBM3": 1979e12 / 2,  # NVIDIA H100 datasheet, SXM: 1,979 TFLOPS with sparsity
    "NVIDIA H100 PCIe": 1513e12 / 2,  # NVIDIA H100 datasheet, PCIe: 1,513 TFLOPS with sparsity
    "NVIDIA H100 NVL": 1671e12 / 2,  # NVIDIA H100 datasheet, NVL: 1,671 TFLOPS with sparsity
    "NVIDIA H200": 1979e12 / 2,  # NVIDIA H200 datasheet, SXM: 1,979 TFLOPS with sparsity
    "NVIDIA B200": 4500e12 / 2,  # NVIDIA HGX B200 datasheet: 4.5 PFLOPS a GPU with sparsity
    "NVIDIA L4": 242e12 / 2,  # NVIDIA L4 datasheet: 242 TFLOPS with sparsity
    "NVIDIA L40S": 733e12 / 2,  # NVIDIA L40S datasheet: 733 TFLOPS with sparsity
}


def peak_flops(device_kinds: Iterable[str]) -> float | None:
    """Peak dense bfloat16 FLOP/s of these devices together, by each one's `device_kind`.

    Names are matched whole, so that a slice of a GPU ("... MIG 1g.10gb") is unknown rather than a
    whole GPU.

    Returns:
      FLOP/s; None without devices, or where one of them is not in `PEAK_FLOPS` (a CPU, say).
    """
    peaks = [PEAK_FLOPS.get(kind) for kind in device_kinds]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if known and len(known) == len(peaks) else None


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip that is one jax device (a v4 as a megacore, its two cores driven as one).

    Attributes:
      name: "v5e", or a GPU's `device_kind`.
      device_kinds: the values that `jax.Device.device_kind` has for it.
      peak_flops: dense bfloat16 FLOP/s, of `PEAK_FLOPS`.
      hbm: bytes that a program can fill. For a TPU this is the compiler's limit: the chip's memory
        less what the runtime keeps.
      hbm_bandwidth: bytes per second between memory and chip.
      link_bandwidth: bytes per second out of one link to a neighbour (a TPU's ICI), or out of all
        links together (a GPU's NVLink or PCIe: behind a switch every chip is a neighbour).
      dimensions: number of dimensions of the torus that the links form, with two links for each;
        0 for a switch.
      dcn_bandwidth: bytes per second that one chip's share of its host sends over the data center's
        network; None where that depends on the data center.
      clock: cycles per second of a TPU's cores; None where it is not known.
    """

    name: str
    device_kinds: tuple[str, ...]
    peak_flops: float
    hbm: int
    hbm_bandwidth: float
    link_bandwidth: float
    dimensions: int = 0
    dcn_bandwidth: float | None = None
    clock: float | None = None


def _tpu(
    name: str,
    *kinds: str,
    gib: float,
    gbps: int,
    links: int,
    link_gbit: int,
    dcn_gbit: int,
    mxus: int | None = None,
) -> Chip:
    peak = PEAK_FLOPS[kinds[0]]
    return Chip(
        name,
        kinds,
        peak,
        hbm=int(gib * GiB),
        hbm_bandwidth=gbps * 1e9,
        link_bandwidth=link_gbit * _GBIT,
        dimensions=links // 2,
        dcn_bandwidth=dcn_gbit * _GBIT,
        clock=mxus and peak / (2 * 128 * 128 * mxus),
    )


# `gib` is the limit that the compiler states ("exceeds available HBM (15.75G)"): the smaller of
# libtpu 0.0.42's and 0.0.50's. A clock follows from the peak: each matrix unit does 128 x 128
# multiply-adds a cycle, and each core has four units (1.05, 1.5, 1.75 GHz).
TPUS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        # 32 GiB, 1200 GBps (1228 measured at its clock: arXiv:2304.01433, table 4), six links of
        # 50 GB/s (table 4). The page gives no network: four chips share a host's 200 Gbit/s, as on
        # v5p.
        _tpu(
            "v4",
            "TPU v4",
            gib=30.75,
            gbps=1228,
            links=6,
            link_gbit=400,
            dcn_gbit=50,
            mxus=8,
        ),
        # 16 GB, 819 GBps, four ICI ports with 1600 Gbps in all one way (400 GBps both ways), hosts
        # of eight chips with 2 x 100 Gbps.
        _tpu(
            "v5e",
            "TPU v5 lite",
            "TPU v5e",
            gib=15.75,
            gbps=819,
            links=4,
            link_gbit=400,
            dcn_gbit=25,
            mxus=4,
        ),
        # 95 GiB, 2765 GBps, six links with 4800 Gbps in all one way (1200 GBps both ways), 50 Gbps
        # of data center network a chip.
        _tpu(
            "v5p",
            "TPU v5",
            "TPU v5p",
            gib=95.73,
            gbps=2765,
            links=6,
            link_gbit=800,
            dcn_gbit=50,
            mxus=8,
        ),
        # 32 GB, 1640 GBps (1600 on newer versions of the page), four ICI ports with 3200 Gbps in
        # all one way (800 GBps both ways; older versions say 3584), hosts of eight chips with
        # 4 x 200 Gbps.
        _tpu(
            "v6e",
            "TPU v6 lite",
            "TPU v6e",
            gib=31.24,
            gbps=1640,
            links=4,
            link_gbit=800,
            dcn_gbit=100,
        ),
    )
}


def _gpu(kind: str, gb: int, gbps: int, both_ways: int) -> Chip:
    return Chip(kind, (kind,), PEAK_FLOPS[kind], int(gb * 1e9), gbps * 1e9, both_ways / 2 * 1e9)


# NVIDIA's datasheets: GB and GB/s of memory, GB/s of NVLink (PCIe where there is none) both ways.
# A GPU of this machine says itself how much memory it has.
GPUS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        _gpu("NVIDIA A100-SXM4-40GB", 40, 1555, 600),
        _gpu("NVIDIA A100-SXM4-80GB", 80, 2039, 600),
        _gpu("NVIDIA A100-PCIE-40GB", 40, 1555, 64),
        _gpu("NVIDIA A100 80GB PCIe", 80, 1935, 64),
        _gpu("NVIDIA H100 80GB HBM3", 80, 3350, 900),
        _gpu("NVIDIA H100 PCIe", 80, 2000, 128),
        _gpu("NVIDIA H100 NVL", 94, 3900, 600),
        _gpu("NVIDIA H200", 141, 4800, 900),
        _gpu("NVIDIA B200", 180, 8000, 1800),
        _gpu("NVIDIA L4", 24, 300, 64),
        _gpu("NVIDIA L40S", 48, 864, 64),
    )
}

_BY_KIND = {kind: chip for chip in (*TPUS.values(), *GPUS.values()) for kind in chip.device_kinds}


def find_chip(device_kind: str) -> Chip | None:
    """Returns the chip of a `jax.Device.device_kind`; None for one not in the tables (a CPU)."""
    return _BY_KIND.get(device_kind)
