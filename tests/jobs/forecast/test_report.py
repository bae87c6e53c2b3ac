from benchmarks import preflight as benchmark
from tests.jobs.forecast.reports import report_of
from uvit_jax.jobs.forecast.report import closing_line, table


def test_the_table_has_everything_once_and_in_line():
    assert table(report_of()).splitlines() == [
        "v5e:16x16 (256 chips), mesh data 256 x fsdp 1 x tensor 1, batch 1,024 (4 for each "
        "replica)",
        "500.94M parameters, 258 tokens, bfloat16, remat matmuls; compiled in 116 s by jax 0.10.2",
        "",
        "memory of a chip, GiB",
        "  parameters   1.87",
        "  optimizer    3.73",
        "  EMA          1.87",
        "  batch        0.00",
        "  padding      0.00  added by the compiler's layouts",
        "  temporaries  1.43  activations and gradients, at their peak",
        "  results      0.00  that take no argument's place",
        "  program      0.33",
        "  sum          9.23  of 15.75: fits",
        "",
        "FLOPs of a chip, T",
        "  of the model    3.20  3 x forward; what MFU counts",
        "  compiled        3.21  matrix products, 1.01 x the model's",
        "  compiler's own  3.27  all operations, loop bodies once; matrix products so counted 3.21",
        "",
        "collectives of a chip",
        "  all-reduce (ICI)  10  1,002.0 MB, 1,996.2 MB sent",
        "",
        "roofline, ms (no call is faster; a bound, no prediction)",
        "  compute     16.3  matrix products",
        "  hbm         19.6  arguments and results once",
        "  ici         9.98  between chips",
        "  bound       19.6  by hbm: MFU <= 82.9%",
        "  no overlap  45.9  one after the other",
        "",
        "run of 500,000 steps at 40.0% MFU: 40.6 ms a step, 25,237 images/s, 5.64 hours, 1,443 "
        "chip-hours",
    ]


def test_the_table_has_what_the_chip_waits_for():
    schedule = {
        "compute": 0.0201,
        "communication": 0.00998,
        "hidden": 0.004,
        "exposed": 0.00598,
        "step": 0.02608,
    }
    lines = table(report_of(schedule=schedule | {"asynchronous": 4, "networks": {}})).splitlines()
    start = lines.index("schedule, ms (an estimate, not measured)")
    assert lines[start + 1 : start + 6] == [
        "  compute        20.1  by the compiler's own cycles for each operation",
        "  communication  9.98  at the networks' full speed",
        "  hidden            4  of that beside computation: 4 collectives are asynchronous",
        "  exposed        5.98  the rest, in which the chip waits",
        "  step           26.1  computation and what is exposed: MFU 62.2%",
    ]


def test_the_closing_line_is_a_summary():
    assert closing_line(report_of()) == (
        "fits: 9.23 of 15.75 GiB a chip on v5e:16x16 (256 chips), step >= 19.6 ms, MFU <= 83%, "
        "5.64 hours (1,443 chip-hours) at 40% MFU"
    )
    refused = report_of(total=21.39, fits=False, roofline=None)
    assert (
        closing_line(refused) == "does not fit: 21.39 of 15.75 GiB a chip on v5e:16x16 (256 chips)"
    )


def test_small_amounts_have_small_units():
    run = report_of()["run"] | {"hours": 7.23e-05, "chip_hours": 5.78e-04}
    small = report_of(total=36.7 / 1024, run=run)
    assert closing_line(small).startswith(
        "fits: 36.70 MiB of 15.75 GiB a chip on v5e:16x16 (256 chips), "
    )
    assert closing_line(small).endswith(", 0.26 seconds (2.08 chip-seconds) at 40% MFU")
    assert table(small).endswith(" images/s, 0.26 seconds, 2.08 chip-seconds")
    minutes = report_of(run=run | {"hours": 0.05, "chip_hours": 0.4})
    assert closing_line(minutes).endswith(", 3 minutes (0.4 chip-hours) at 40% MFU")
    assert closing_line(report_of(run=run | {"mfu": 0.0034})).endswith(" at 0.3% MFU")
    batch = {
        "tries": [{"per_replica": 4, "total": 36 * 2**20, "fits": True}],
        "largest_per_replica": 4,
    }
    mesh = {
        "compiled": [
            {
                "mesh": {"data": 4},
                "total": 36 * 2**20,
                "bound": 1.0,
                "no_overlap": 2.0,
                "fits": True,
            }
        ]
    }
    found = {
        "batch": batch | {"largest_global": 16},
        "mesh": mesh | {"best": {"data": 4}, "estimated": 1},
    }
    lines = table(report_of(search=found)).splitlines()
    assert "largest batch for each replica: 4 (16 in all); tried, MiB" in lines
    assert "  4  36.00  fits" in lines
    assert "best mesh for this batch: data 4; of 1 estimated, compiled, MiB" in lines


def test_the_table_has_the_reason_of_a_run_slower_than_asked():
    run = report_of()["run"] | {"asked_mfu": 0.9}
    words_by_source = {"roofline": "by the roofline's bound", "schedule": "by the schedule's step"}
    for source, words in words_by_source.items():
        line = table(report_of(run=run | {"mfu_source": source})).splitlines()[-1]
        assert f" at 40.0% MFU ({words}: 90% can't be reached): " in line
    line = table(report_of(run=run | {"asked_mfu": 0.0, "mfu_source": "roofline"})).splitlines()[-1]
    assert " at 40.0% MFU (by the roofline's bound): " in line


def test_the_benchmarks_table_has_a_line_for_each_config_and_slice():
    fits = benchmark.row("configs/imagenet512.py:huge", report_of())
    refused = benchmark.row(
        "configs/cifar10.py", report_of(total=21.39, fits=False, roofline=None, run=None)
    )
    lines = benchmark.markdown([fits, refused]).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == list(benchmark.HEADS)
    assert cells[2][:6] == ["imagenet512.py:huge", "v5e:16x16", "256", "4", "9.23", "15.75"]
    assert cells[2][6:] == ["19.6 ms", "hbm", "83%", "5.6 at 40%", "1,443", "116 s"]
    assert cells[3][4:] == ["21.39, too much", "15.75", "-", "-", "-", "-", "-", "116 s"]
