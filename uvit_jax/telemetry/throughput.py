"""How fast a run is: images per second, and the share of the hardware's peak that this is (MFU)."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

# A backward pass is two forward passes' worth of matrix products (one for the inputs' gradients,
# one for the weights').
_PASSES_PER_TRAIN_STEP = 3

# Peak dense bfloat16 FLOP/s of one jax device, by `device.device_kind`. "TPU" pages are
# https://cloud.google.com/tpu/docs/<page>. NVIDIA's sheets print twice the dense number where they
# say "with sparsity".
PEAK_BF16_FLOPS = {
    "TPU v3": 123e12 / 2,  # TPU page v3: 123 TFLOPS a chip; a jax device is one of its two cores
    "TPU v4": 275e12,  # TPU page v4: 275 TFLOPS a chip; from here to v6e a jax device is a chip
    "TPU v5 lite": 197e12,  # TPU page v5e: 197 TFLOPS a chip
    "TPU v5e": 197e12,  # the same chip under the name some runtimes give
    "TPU v5": 459e12,  # TPU page v5p: 459 TFLOPS a chip
    "TPU v5p": 459e12,  # the same chip under the name some runtimes give
    "TPU v6 lite": 918e12,  # TPU page v6e: 918 TFLOPS a chip
    "TPU v6e": 918e12,  # the same chip under the name some runtimes give
    "TPU7x": 2307e12
    / 2,  # TPU page tpu7x: 2307 TFLOPS a chip; a jax device is one of its two chiplets
    "NVIDIA A100-SXM4-40GB": 312e12,  # NVIDIA A100 datasheet: 312 TFLOPS dense, all forms alike
    "NVIDIA A100-SXM4-80GB": 312e12,  # as above
    "NVIDIA A100-PCIE-40GB": 312e12,  # as above
    "NVIDIA A100 80GB PCIe": 312e12,  # as above
    "NVIDIA H100 80GB HBM3": 1979e12 / 2,  # NVIDIA H100 datasheet, SXM: 1,979 TFLOPS with sparsity
    "NVIDIA H100 PCIe": 1513e12 / 2,  # NVIDIA H100 datasheet, PCIe: 1,513 TFLOPS with sparsity
    "NVIDIA H100 NVL": 1671e12 / 2,  # NVIDIA H100 datasheet, NVL: 1,671 TFLOPS with sparsity
    "NVIDIA H200": 1979e12 / 2,  # NVIDIA H200 datasheet, SXM: 1,979 TFLOPS with sparsity
    "NVIDIA B200": 4500e12 / 2,  # NVIDIA HGX B200 datasheet: 4.5 PFLOPS with sparsity
    "NVIDIA L4": 242e12 / 2,  # NVIDIA L4 datasheet: 242 TFLOPS with sparsity
    "NVIDIA L40S": 733e12 / 2,  # NVIDIA L40S datasheet: 733 TFLOPS with sparsity
}


@runtime_checkable
class Device(Protocol):
    """What is asked of a jax device here."""

    @property
    def device_kind(self) -> str:
        """The hardware's name, as `jax.Device.device_kind`."""
        ...


def peak_flops(devices: Sequence[Device]) -> float | None:
    """The devices' peak dense bfloat16 FLOP/s together; None if there are none or one of them isn't
    in the table.

    Names are matched whole, so that a slice of a GPU ("... MIG 1g.10gb") is unknown rather than a
    whole GPU.
    """
    peaks = [PEAK_BF16_FLOPS.get(device.device_kind) for device in devices]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if known and len(known) == len(peaks) else None


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Turns windows of training into images per second and MFU.

    MFU, model FLOPs utilisation (Sec. 4.1 and appendix B of arXiv:2204.02311), is

        3 * forward_flops_per_image * images / (seconds * peak FLOP/s of all devices)

    with 3 for one forward pass and a backward pass of twice its cost. FLOPs that rematerialisation
    spends on running the forward pass again are not counted: they make a step slower, so MFU lower.
    The peak is that of dense bfloat16 matrix products, whatever the run computes in.

    Attributes:
      forward_flops_per_image: FLOPs of one forward pass for one image, a multiply-add being 2; None
        if unknown.
      devices: all devices of the run, those of other hosts included (`jax.devices()`).
    """

    forward_flops_per_image: float | int | None = None
    devices: Sequence[Device] = ()

    def window(self, *, steps: int, images: int, seconds: float | int) -> dict[str, float | None]:
        """`images_per_sec`, `steps_per_sec` and `mfu` of a window of train steps over all devices.

        `images` counts the images of all steps and hosts in the window, `seconds` its wall time.
        `mfu` is in [0, 1], and None where the FLOPs or the peak of a device (a CPU's, say) are
        unknown.

        Raises:
          ValueError: `seconds` isn't positive.
        """
        if seconds <= 0:
            raise ValueError(f"window: seconds is {seconds}, expected more than 0")
        peak = peak_flops(self.devices)
        mfu = None
        if peak is not None and self.forward_flops_per_image is not None:
            mfu = _PASSES_PER_TRAIN_STEP * self.forward_flops_per_image * images / (seconds * peak)
        return {"images_per_sec": images / seconds, "steps_per_sec": steps / seconds, "mfu": mfu}
