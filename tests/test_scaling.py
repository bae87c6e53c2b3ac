import pytest

from benchmarks import scaling
from benchmarks.scaling import Case, cases, chart, figures, markdown, with_efficiency
from uvit_jax.compiled.topology import parse_topology


def report(model_flops, total, **schedule):
    """The parts of a preflight's report that are read; without a schedule, of a step too large."""
    return {
        "memory": {"total": total},
        "hardware": {"peak_flops": 459e12},
        "flops": {"model": model_flops, "compiled": 1.1 * model_flops} if schedule else None,
        "collectives": [
            {
                "kind": "all-reduce",
                "network": "ici",
                "count": 10,
                "bytes": 1e9,
                "wire_bytes": 1996e6,
            }
        ],
        "schedule": {"asynchronous": 9, **schedule} if schedule else None,
    }


def rows_of(*made):
    return with_efficiency([figures(case, found) | {"scaling": way} for case, found, way in made])


@pytest.fixture
def rows():
    alone = {
        "compute": 0.080,
        "communication": 0.002,
        "hidden": 0.0,
        "exposed": 0.002,
        "step": 0.082,
    }
    full = {
        "compute": 0.080,
        "communication": 0.004,
        "hidden": 0.0,
        "exposed": 0.004,
        "step": 0.084,
    }
    few = {
        "compute": 0.008,
        "communication": 0.004,
        "hidden": 0.003,
        "exposed": 0.001,
        "step": 0.009,
    }
    return rows_of(
        (Case("v5p", 8, "data", 128), report(12e12, 2**34, **alone), "weak"),
        (Case("v5p", 1024, "data", 16384), report(12e12, 2**34, **full), "weak"),
        (Case("v5p", 1024, "data", 1024), report(1e12, 2**33, **few), "strong"),
        (Case("v5e", 8, "data", 1024), report(1e12, None), "strong"),
    )


def test_efficiency_is_images_of_a_chip_relative_to_the_smallest_slice_that_fits(rows):
    assert [row["efficiency"] for row in rows] == [1, pytest.approx(82 / 84), None, None]
    assert rows[0]["rate"] == pytest.approx(16 / 0.082)
    assert rows[1]["mfu"] == pytest.approx(12e12 / 0.084 / 459e12)


def test_the_table_tells_weak_from_strong_and_says_what_does_not_fit(rows):
    weak, strong = markdown(rows).split("strong scaling")
    assert (
        "| v5p:8x8x16 | data | 16 | 16.0 | 13.20 | 10 (9): all-reduce | 1,996 | 80.0 ms | 4.0 ms "
        "| 0.0 ms |" in weak
    )
    assert "| 4.0 ms | 84.0 ms | 98% | 31% |" in weak
    assert "| v5p:8x8x16 | data | 1 | 8.0 |" in strong
    assert "| v5e:2x4 | data | 128 | ?, too much | - |" in strong


def test_every_case_is_a_slice_that_is_made_and_none_is_compiled_twice():
    made = cases(1024, 16)
    assert len({case.name for case in made}) == len(made) == 35
    for case in made:
        slices, name = case.slices
        assert slices * parse_topology(name).num_chips == case.chips
        assert case.batch in (1024, 16 * case.chips)
    # 64 chips of 16 images are the paper's batch too.
    assert sum(case.chips == 64 for case in made) == 5
    assert "--config.mesh.fsdp=8" in Case("v5p", 8, "fsdp", 128).flags
    assert "--config.preflight.num_slices=4" in Case("v5e", 1024, "data", 1024).flags


def test_the_chart_is_drawn_of_what_there_is(rows, tmp_path):
    chart(rows, "a title", str(tmp_path / "chart.png"))
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_fields_of_the_config_may_stand_behind_all_options_and_have_a_folder_of_their_own(
    monkeypatch, tmp_path
):
    asked = []
    monkeypatch.setattr(
        scaling, "preflight", lambda config, case, folder, fields: asked.append((folder, fields))
    )
    field = "--config.model.attention=xla"
    only = ["--only", "v5p-64-data-batch"]
    monkeypatch.setattr(
        "sys.argv",
        ["scaling.py", "configs/imagenet512.py", "--out", str(tmp_path), *only, "--", field],
    )
    with pytest.raises(SystemExit, match="nothing was compiled"):
        scaling.main()
    assert asked == [
        (tmp_path / "imagenet512-model.attention=xla" / "v5p-64-data-batch1024", [field])
    ]
