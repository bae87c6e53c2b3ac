"""Speed of a run: images per second, and the share of the hardware's peak that this is (MFU)."""

import dataclasses

# A backward pass is two forward passes' worth of matrix products (one for the inputs' gradients,
# one for the weights').
_PASSES_PER_TRAIN_STEP = 3


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
      peak_flops: FLOP/s of all devices of the run together, those of other hosts included; None if
        unknown (`parallel.chips.peak_flops`).
    """

    forward_flops_per_image: float | int | None = None
    peak_flops: float | None = None

    def window(self, *, steps: int, images: int, seconds: float | int) -> dict[str, float | None]:
        """`images_per_sec`, `steps_per_sec` and `mfu` of a window of train steps over all devices.

        `images` counts the images of all steps and hosts in the window, `seconds` its wall time.
        `mfu` is in [0, 1], and None where the FLOPs or the peak are unknown (on a CPU, say).

        Raises:
          ValueError: `seconds` is not positive.
        """
        if seconds <= 0:
            raise ValueError(f"window: seconds is {seconds}, expected more than 0")
        mfu, peak, forward = None, self.peak_flops, self.forward_flops_per_image
        if peak is not None and forward is not None:
            mfu = _PASSES_PER_TRAIN_STEP * forward * images / (seconds * peak)
        return {"images_per_sec": images / seconds, "steps_per_sec": steps / seconds, "mfu": mfu}
