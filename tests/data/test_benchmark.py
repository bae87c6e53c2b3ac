import re

from benchmarks import data


def test_the_data_benchmark_measures_all_it_promises(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data, "SHARD", 300)
    monkeypatch.setattr(data, "alone", lambda measure, *arguments: measure(*arguments))
    monkeypatch.setattr("os.sched_setaffinity", lambda process, cores: None)
    # Worker processes take seconds to start; tests/data/test_pipeline.py starts some.
    rate = data.pipeline_rate
    monkeypatch.setattr(data, "pipeline_rate", lambda *arguments: rate(*arguments[:3], 0))
    data.run(str(tmp_path), records=600, tiny_records=700, seconds=0.1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("wrote 600 records of 16,384 bytes")
    assert len([line for line in lines if "records/s" in line]) == 4
    assert len([line for line in lines if re.search(r"RssAnon +\d+.\d MiB", line)]) == 4
    assert re.search(r"opening 700 records in 3 shards and reading one +\d.\d+ s$", lines[-1])
    assert not list(tmp_path.iterdir())
