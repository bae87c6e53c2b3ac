"""What one TPU or GPU can hold and move: its memory, and the bandwidths of that and of its
networks.

Peak FLOP/s stand here too, beside the bandwidths that a roofline compares them with;
`telemetry.throughput` has the same numbers by `device_kind` for MFU.
"""

import dataclasses

GiB = 2**30
# Google's pages give networks in gigabits a second, NVIDIA's sheets in gigabytes, both directions
# together.
_GBIT = 1e9 / 8


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, which is one jax device (a v4 as a megacore, its two cores driven as one).

    Attributes:
      name: "v5e", or a GPU's `device_kind`.
      device_kinds: what `jax.Device.device_kind` calls it.
      peak_flops: dense bfloat16 FLOP/s.
      hbm: bytes that a program can fill: of a TPU the compiler's own limit, what the runtime keeps
        taken off.
      hbm_bandwidth: bytes a second between memory and the chip.
      link_bandwidth: bytes a second out of one link to a neighbour (a TPU's ICI), or out of all
        links together (a GPU's NVLink or PCIe: behind a switch every chip is a neighbour).
      dimensions: of the torus that the links form, two links a dimension; 0 for a switch.
      dcn_bandwidth: bytes a second that one chip's share of its host sends over the data center's
        network; None where that is the data center's choice.
      clock: cycles a second of a TPU's cores; None where that isn't known.
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
    tflops: int,
    gib: float,
    gbps: int,
    links: int,
    link_gbit: int,
    dcn_gbit: int,
    mxus: int | None = None,
) -> Chip:
    hbm, dimensions = int(gib * GiB), links // 2
    dcn = dcn_gbit * _GBIT
    clock = mxus and tflops * 1e12 / (2 * 128 * 128 * mxus)
    return Chip(
        name, kinds, tflops * 1e12, hbm, gbps * 1e9, link_gbit * _GBIT, dimensions, dcn, clock
    )


# Pages are https://cloud.google.com/tpu/docs/<name>; `gib` is the limit that the compiler states
# ("exceeds available HBM (15.75G)"), the chip's own memory less what the runtime keeps: the lesser
# of libtpu 0.0.42's and 0.0.50's. A clock follows from the peak: 128 x 128 multiply-adds a cycle of
# each matrix unit, four a core (1.05, 1.5, 1.75 GHz).
TPUS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        # 275 TFLOPS, 32 GiB, 1200 GBps (1228 measured at its clock: arXiv:2304.01433, table 4), six
        # links of 50 GB/s (table 4). The page gives no network: four chips share a host's 200
        # Gbit/s, as on v5p.
        _tpu(
            "v4",
            "TPU v4",
            tflops=275,
            gib=30.75,
            gbps=1228,
            links=6,
            link_gbit=400,
            dcn_gbit=50,
            mxus=8,
        ),
        # 197 TFLOPS, 16 GB, 819 GBps, four ICI ports of together 1600 Gbps one way (400 GBps both
        # ways), hosts of eight chips with 2 x 100 Gbps.
        _tpu(
            "v5e",
            "TPU v5 lite",
            "TPU v5e",
            tflops=197,
            gib=15.75,
            gbps=819,
            links=4,
            link_gbit=400,
            dcn_gbit=25,
            mxus=4,
        ),
        # 459 TFLOPS, 95 GiB, 2765 GBps, six links of together 4800 Gbps one way (1200 GBps both
        # ways), 50 Gbps of data center network a chip.
        _tpu(
            "v5p",
            "TPU v5",
            "TPU v5p",
            tflops=459,
            gib=95.73,
            gbps=2765,
            links=6,
            link_gbit=800,
            dcn_gbit=50,
            mxus=8,
        ),
        # 918 TFLOPS, 32 GB, 1640 GBps (1600 on newer versions of the page), four ICI ports of
        # together 3200 Gbps one way (800 GBps both ways; older versions say 3584), hosts of eight
        # chips with 4 x 200 Gbps.
        _tpu(
            "v6e",
            "TPU v6 lite",
            "TPU v6e",
            tflops=918,
            gib=31.24,
            gbps=1640,
            links=4,
            link_gbit=800,
            dcn_gbit=100,
        ),
    )
}


def _gpu(kind: str, tflops: float | int, gb: int, gbps: int, both_ways: int) -> Chip:
    return Chip(kind, (kind,), tflops * 1e12, int(gb * 1e9), gbps * 1e9, both_ways / 2 * 1e9)


# NVIDIA's datasheets: TFLOPS (halved where they count sparsity), GB, GB/s of memory, GB/s of NVLink
# (PCIe where there is none) both ways. A GPU that is there says itself how much memory it has.
GPUS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        _gpu("NVIDIA A100-SXM4-40GB", 312, 40, 1555, 600),
        _gpu("NVIDIA A100-SXM4-80GB", 312, 80, 2039, 600),
        _gpu("NVIDIA A100-PCIE-40GB", 312, 40, 1555, 64),
        _gpu("NVIDIA A100 80GB PCIe", 312, 80, 1935, 64),
        _gpu("NVIDIA H100 80GB HBM3", 1979 / 2, 80, 3350, 900),
        _gpu("NVIDIA H100 PCIe", 1513 / 2, 80, 2000, 128),
        _gpu("NVIDIA H100 NVL", 1671 / 2, 94, 3900, 600),
        _gpu("NVIDIA H200", 1979 / 2, 141, 4800, 900),
        _gpu("NVIDIA B200", 4500 / 2, 180, 8000, 1800),
        _gpu("NVIDIA L4", 242 / 2, 24, 300, 64),
        _gpu("NVIDIA L40S", 733 / 2, 48, 864, 64),
    )
}

_BY_KIND = {kind: chip for chip in (*TPUS.values(), *GPUS.values()) for kind in chip.device_kinds}


def find_chip(device_kind: str) -> Chip | None:
    """The chip that `jax.Device.device_kind` names; None for one that isn't in the tables (a CPU,
    say).
    """
    return _BY_KIND.get(device_kind)
