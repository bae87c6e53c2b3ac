"""Measured numbers stand once, in docs/figures.json; pages quote it and benchmarks write it."""

import importlib
import json
import sys

import pytest

from benchmarks.figures import record, slug
from docs.figures import FIGURES, faults, pages, with_figures
from tests.docs.blocks import ROOT

KNOWN = json.loads(FIGURES.read_text())


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_page_quotes_the_figures_that_are_known(page):
    assert faults(page.read_text(), KNOWN) == [], "run python docs/figures.py"


def test_every_figure_says_how_it_was_measured():
    assert {tuple(figure) for figure in KNOWN.values()} == {
        ("value", "unit", "command", "device", "date")
    }
    assert not [name for name, figure in KNOWN.items() if "" in figure.values()]


def test_a_stale_number_and_an_unknown_name_are_found_and_the_first_is_mended():
    figures = {"rate": {"value": 37700}, "share": {"value": "1.90"}}
    page = (
        "<!--fig:rate-->37,000<!--/fig--> <!--fig:share-->1.90<!--/fig--> <!--fig:x-->1<!--/fig-->"
    )
    assert faults(page, figures) == [
        "says 37,000 for rate, which is 37,700",
        "quotes an unknown figure, x",
    ]
    assert faults(with_figures(page, figures), figures) == ["quotes an unknown figure, x"]


def test_a_benchmark_replaces_its_figures_and_keeps_others(tmp_path, monkeypatch):
    path = str(tmp_path / "figures.json")
    script = "/somewhere/benchmarks/digits.py"
    monkeypatch.setattr(sys, "argv", [script, "samples.npz", "--figures", path])
    record(path, "2 CPU cores", {"b": (98.94, "%"), "a": (1096.3, "images/s")})
    record(path, "2 CPU cores", {"b": (0.7251, "x")})
    found = json.loads((tmp_path / "figures.json").read_text())
    assert list(found) == ["a", "b"]
    assert (found["a"]["value"], found["b"]["value"]) == (1096, 0.725)
    assert found["a"]["command"] == "python benchmarks/digits.py samples.npz"
    assert found["a"]["device"] == "2 CPU cores"


def test_names_of_configs_and_devices_are_part_of_a_figures_name():
    assert slug("configs/imagenet256.py:huge") == "imagenet256_huge"
    assert slug("NVIDIA H100 80GB HBM3") == "h100"
    assert slug("TPU v5 lite") == "tpu_v5_lite"


def test_a_comparisons_figures_are_our_best_row_and_theirs_of_each_form(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    rates = importlib.import_module("official_code").rates
    ours = {"who": "ours", "images_per_sec": 600.0, "tflops": 480.0, "share": 0.66}
    slower = ours | {"images_per_sec": 500.0}
    two = ours | {"images_per_sec": 1000.0, "devices": 2}
    decoded = {"who": "ours", "images_per_sec": 900.0}  # with other work, so without TFLOP/s
    theirs = {"who": "official", "form": "compiled", "images_per_sec": 480.0, "share": 0.54}
    failed = {"who": "official", "form": "published", "error": "out of memory"}
    found = rates("train.x.h100", [slower, ours, two, decoded, theirs, failed])
    assert found == {
        "train.x.h100.images_per_s": (600.0, "images/s"),
        "train.x.h100.tflops": (480.0, "TFLOP/s"),
        "train.x.h100.of_matmul": (66.0, "%"),
        "train.x.h100.official_compiled": (480.0, "images/s"),
        "train.x.h100.official_compiled_of_matmul": (54.0, "%"),
        "train.x.h100.vs_compiled": (1.25, "x"),
    }
    assert rates("train.x.h100", [theirs]) == {}
