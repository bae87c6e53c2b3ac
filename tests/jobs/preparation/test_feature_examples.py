"""The official features as records."""

import numpy as np

from tests.jobs.preparation.prepare_runs import all_of, experiment
from uvit_jax.data.prepared.manifest import Manifest
from uvit_jax.jobs import prepare


def test_official_features_become_records_with_their_mirrors(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "features"
    folder.mkdir()
    moments = rng.standard_normal((6, 2, 8, 4, 4)).astype(np.float32)
    # One last batch of six: six images, then their mirror images.
    for i in range(12):
        pair = np.empty(2, object)
        pair[:] = [moments[i % 6, i // 6], np.int64(i % 3)]
        np.save(folder / f"{i}.npy", pair, allow_pickle=True)
    message = prepare.run(experiment(folder, tmp_path / "out"), tmp_path)
    assert "moments of 6 images and their mirror images" in message
    for mirrored in (False, True):
        found = all_of(tmp_path / "out", mirrored)
        expected = moments[:, int(mirrored)].transpose(0, 2, 3, 1).astype(np.float16)
        assert np.array_equal(found["x"], expected)
        assert found["label"].tolist() == [0, 1, 2, 0, 1, 2]
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.num_classes, manifest.scale, manifest.image_size) == (3, 0.18215, 32)


def test_official_labels_counted_from_one_are_warned_of(tmp_path, caplog):
    for i in range(2):
        pair = np.empty(2, object)
        pair[:] = [np.zeros((8, 4, 4), np.float32), np.int64(1)]
        np.save(tmp_path / f"{i}.npy", pair, allow_pickle=True)
    with caplog.at_level("WARNING", "uvit_jax"):
        prepare.open_examples(experiment(tmp_path, tmp_path / "out"))
    assert f"the labels of {tmp_path} begin with 1" in " ".join(caplog.messages)
