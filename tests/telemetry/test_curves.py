import sys

import numpy as np
import pytest
from PIL import Image

from uvit_jax.telemetry.curves import _running_mean, _series, loss_curve


def metrics(losses, **more):
    return [{"step": 10 * (i + 1), "loss": loss, **more} for i, loss in enumerate(losses)]


@pytest.mark.parametrize(
    "lines",
    [metrics(np.geomspace(1, 0.01, 200)), metrics([0.5]), metrics([]), metrics([0.0, -1.0])],
)
def test_a_curve_is_drawn_whatever_was_logged(tmp_path, lines):
    loss_curve(lines, tmp_path / "loss.png")
    pixels = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB"))
    assert min(pixels.shape[:2]) >= 400
    assert (pixels != 255).any()


def test_images_per_second_get_a_panel_of_their_own(tmp_path):
    loss_curve(metrics([0.5, 0.4, 0.3]), tmp_path / "one.png")
    loss_curve(metrics([0.5, 0.4, 0.3], images_per_sec=100.0), tmp_path / "two.png")
    assert Image.open(tmp_path / "two.png").height > Image.open(tmp_path / "one.png").height


def test_lines_without_a_loss_are_left_out():
    lines = [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None},
        {"step": 3, "fid": 9.0},
        {"step": 4, "loss": 0.25},
    ]
    assert _series(lines, "loss").tolist() == [[1.0, 0.5], [4.0, 0.25]]


def test_the_running_mean_keeps_a_line_straight_at_its_start_and_averages_noise_away():
    line = np.arange(400.0)
    assert _running_mean(line)[:380] == pytest.approx(line[:380])
    noisy = np.random.default_rng(0).normal(size=400)
    assert _running_mean(noisy)[100:].std() < 0.4
    assert _running_mean(np.asarray([2.0])).tolist() == [2.0]


def test_pyplot_is_never_imported(tmp_path):
    for name in [name for name in sys.modules if name.startswith("matplotlib.pyplot")]:
        del sys.modules[name]
    loss_curve(metrics([0.5, 0.4]), tmp_path / "loss.png")
    assert "matplotlib.pyplot" not in sys.modules
