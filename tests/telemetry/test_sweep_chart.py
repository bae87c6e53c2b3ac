import numpy as np
import pytest
from PIL import Image

from uvit_jax.errors import UserError
from uvit_jax.telemetry.sweep_chart import sweep_chart

VALUES = [0.0, 0.5, 1.0, 1.5]
SERIES = {"fid": [9.0, 3.0, 4.0, 8.0], "precision": [0.5, 0.6, 0.7, 0.65]}


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they are saved."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig

    def savefig(self, *arguments, **options):
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def test_each_score_has_a_panel_with_its_best_value_marked_and_written(tmp_path, drawn):
    sweep_chart(
        "guidance", VALUES, SERIES, tmp_path / "chart.png", title="60 samples", distances=["fid"]
    )
    first, second = drawn[0].axes
    assert first.get_title("left") == "fid"
    assert first.get_title("right") == "least 3 at 0.5"
    assert second.get_title("right") == "greatest 0.7 at 1"
    np.testing.assert_array_equal(first.lines[0].get_xydata(), np.stack([VALUES, SERIES["fid"]], 1))
    assert first.lines[1].get_xydata().tolist() == [[0.5, 3.0]]
    assert second.lines[1].get_xydata().tolist() == [[1.0, 0.7]]
    assert second.get_xlabel() == "guidance"
    assert drawn[0].get_suptitle() == "60 samples"


def test_no_value_is_best_where_they_are_too_close(tmp_path, drawn):
    series = {
        "flat": [0.0, 0.0, 0.0],
        "alike": [74.39, 74.38, 74.38],  # by less than 0.5 % of their size
        "kid": [0.663, 0.661, 0.665],  # by less than their deviation
        "kd": [0.663, 0.661, 0.665],
        "lone": [0.663, 0.661, 0.667],
    }
    sweep_chart(
        "guidance",
        [2, 0, 1],
        series,
        tmp_path / "chart.png",
        title="",
        distances=["kid", "kd"],
        deviations={"kid": [0.005, 0.001, 0.001], "kd": [0.001, 0.001, 0.001]},
    )
    panels = drawn[0].axes
    assert [panel.get_title("right") for panel in panels] == [
        "0 throughout",
        "74.38 to 74.39, too close to tell",
        "0.661 to 0.665, too close to tell",
        "least 0.661 at 0",
        "greatest 0.667 at 1",
    ]
    assert [len(panel.lines) for panel in panels] == [1, 1, 1, 2, 2]
    low, high = panels[1].get_ylim()
    assert high - low > 74 * 0.01
    (band,) = panels[2].collections
    points = band.get_paths()[0].vertices
    np.testing.assert_allclose([points[:, 1].min(), points[:, 1].max()], [0.658, 0.668])


def test_ticks_say_their_whole_value_and_stand_at_whole_numbers(tmp_path, drawn):
    series = {"fid": [74.379, 74.39], "steep": [123_456.0, 130_000.0], "kid": [0.66302, 0.66301]}
    deviations = {"kid": [1e-6, 1e-6]}
    sweep_chart("steps", [2, 5], series, tmp_path / "chart.png", title="", deviations=deviations)
    panels = drawn[0].axes
    for panel in panels:
        assert panel.yaxis.get_offset_text().get_text() == ""
        low, high = panel.get_ylim()
        shown = [
            text.get_text()
            for text in panel.get_yticklabels()
            if low <= text.get_position()[1] <= high
        ]
        assert len(set(shown)) == len(shown) > 1
        assert all(low <= float(text) <= high for text in shown)
    assert [tick for tick in panels[-1].get_xticks() if 2 <= tick <= 5] == [2, 3, 4, 5]


def test_values_are_drawn_in_their_order_however_they_were_given(tmp_path, drawn):
    sweep_chart(
        "steps",
        [50, 5, 10],
        {"fid": [1.0, 3.0, 2.0]},
        tmp_path / "chart.png",
        title="",
        distances=["fid"],
    )
    assert drawn[0].axes[0].lines[0].get_xydata().tolist() == [[5, 3], [10, 2], [50, 1]]


def test_an_axis_is_logarithmic_where_its_values_span_more_than_twentyfold(tmp_path, drawn):
    for values, scores, scales in (
        ([1, 10, 100], [1.0, 2.0, 3.0], ("log", "linear")),
        ([1, 2, 3], [1.0, 2.0, 30.0], ("linear", "log")),
        ([0, 10, 100], [0.0, -2.0, 30.0], ("linear", "linear")),
    ):
        sweep_chart("ema", values, {"fid": scores}, tmp_path / "chart.png", title="")
        panel = drawn.pop().axes[0]
        assert (panel.get_xscale(), panel.get_yscale()) == scales


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("count", [1, 9])
def test_a_chart_grows_with_its_scores_and_one_point_is_enough(tmp_path, count):
    series = {f"score_{i}": [0.5] for i in range(count)}
    sweep_chart("ema", [1000], series, tmp_path / "chart.png", title="60 samples")
    width, height = Image.open(tmp_path / "chart.png").size
    assert width == 840
    assert height == 120 + 216 * count


def test_a_folder_that_can_not_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*chart\.png"):
        sweep_chart("ema", [1], {"fid": [1.0]}, tmp_path / "file" / "chart.png", title="")
