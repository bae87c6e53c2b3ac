"""The log of training: metrics of a window of steps to disk, and to the bar on the screen."""

import dataclasses

from uvit_jax.telemetry.progress import Progress
from uvit_jax.telemetry.throughput import Throughput
from uvit_jax.telemetry.writers import MetricWriter
from uvit_jax.training.loop import Window
from uvit_jax.training.optimizer import learning_rate
from uvit_jax.training.optimizer_config import OptimizerConfig

# Less than this share of the time is not worth a word in the log.
_LEAST_SHARE = 0.1
_WAITED_FOR = {"data": "data", "log": "logging", "hook": "checkpoints"}


@dataclasses.dataclass(frozen=True)
class MetricsLog:
    """Writes and shows the windows of a run.

    Attributes:
      writer: of metrics.jsonl and TensorBoard events.
      progress: the bar.
      throughput: images a second and MFU of a window.
      optimizer: for the learning rate.
      batch_size: images in a step.
      steps: of the whole run.
      start: the step that this process started from.
      seen: images of the steps up to `start`, of whatever batch sizes these had.
    """

    writer: MetricWriter
    progress: Progress
    throughput: Throughput
    optimizer: OptimizerConfig
    batch_size: int
    steps: int
    start: int
    seen: int

    def __call__(self, step: int, window: Window) -> None:
        """Writes the window that ends with this step, and shows its loss and rate."""
        rates = self.throughput.window(
            steps=window.steps,
            images=window.steps * self.batch_size,
            seconds=window.seconds,
        )
        lr = float(learning_rate(self.optimizer, step - 1, self.steps))
        waits = {
            "data_wait": window.data_seconds,
            "log_wait": window.log_seconds,
            "save_wait": window.hook_seconds,
        }
        waits["idle_wait"] = sum(window.idle.values())
        shares = {name: min(1.0, seconds / window.seconds) for name, seconds in waits.items()}
        images = self.seen + (step - self.start) * self.batch_size
        self.writer.write(step, {"images": images, **window.metrics, "lr": lr, **rates, **shares})
        self.progress.update(
            step,
            loss=window.metrics["loss"],
            images_per_sec=rates["images_per_sec"],
            note=bound_in_words(window),
        )


def bound_in_words(window: Window) -> str:
    """Says what kept the devices waiting, as "waiting 34 % for data"; empty for nothing much."""
    part, seconds = max(window.idle.items(), key=lambda item: item[1], default=("data", 0.0))
    share = min(1.0, seconds / window.seconds)
    return f"waiting {100 * share:.0f} % for {_WAITED_FOR[part]}" if share >= _LEAST_SHARE else ""
