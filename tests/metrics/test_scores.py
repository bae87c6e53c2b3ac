import pathlib

import numpy as np
import pytest

from tests.metrics.small_network import WIDTHS, random_features, small_network
from uvit_jax.errors import UserError
from uvit_jax.metrics.frechet import frechet_distance
from uvit_jax.metrics.inception_score import InceptionScore
from uvit_jax.metrics.kid import kid
from uvit_jax.metrics.metric_names import METRICS
from uvit_jax.metrics.precision_recall import density_coverage, precision_recall
from uvit_jax.metrics.reference_file import Reference
from uvit_jax.metrics.scores import Scores, kinds, metric_name

COUNT = 137
ALL = tuple(METRICS)
REAL = random_features(90, seed=1, shift=0.2)
FAKE = random_features(COUNT, seed=2)
CLIP = np.random.default_rng(3).standard_normal((2, COUNT, 8)).astype(np.float32)


def moments(features):
    return features.astype(np.float64).mean(0), np.cov(features.astype(np.float64), rowvar=False)


def reference():
    mean, covariance = moments(REAL["pool"])
    return Reference(
        path=pathlib.Path("r.npz"),
        sha256="",
        mean=mean,
        covariance=covariance,
        spatial=moments(REAL["spatial"]),
        features=REAL["pool"],
    )


def feed(scores, start, end, size):
    """Gives samples `start` to `end` - 1, `size` at a time."""
    for first in range(start, end, size):
        rows = slice(first, min(first + size, end))
        scores.update({kind: FAKE[kind][rows] for kind in kinds(scores.metrics)})
        if scores.clip is not None:
            scores.clip.update(CLIP[0][rows], CLIP[1][rows])


def whole(folder, metrics=ALL, size=32):
    scores = Scores(metrics, small_network(), COUNT, folder)
    feed(scores, 0, COUNT, size)
    return scores.results(reference())


def test_every_score_is_that_of_its_own_function(tmp_path):
    found = whole(tmp_path)
    fd = frechet_distance(*moments(REAL["pool"]), *moments(FAKE["pool"]))
    sfd = frechet_distance(*moments(REAL["spatial"]), *moments(FAKE["spatial"]))
    inception = InceptionScore(COUNT)
    inception.update(FAKE["logits"], 0)
    cosines = (
        np.sum(CLIP[0] * CLIP[1], 1)
        / np.linalg.norm(CLIP[0], axis=1)
        / np.linalg.norm(CLIP[1], axis=1)
    )
    expected = {
        "small_fd": fd,
        "small_sfd": sfd,
        **dict(zip(("small_score", "small_score_std"), inception.result(), strict=True)),
        **dict(
            zip(
                ("small_kd", "small_kd_std"),
                kid(REAL["pool"], FAKE["pool"], subset_size=90),
                strict=True,
            )
        ),
        **dict(
            zip(
                ("small_precision", "small_recall"),
                precision_recall(REAL["pool"], FAKE["pool"]),
                strict=True,
            )
        ),
        **dict(
            zip(
                ("small_density", "small_coverage"),
                density_coverage(REAL["pool"], FAKE["pool"]),
                strict=True,
            )
        ),
        "clip_score": np.maximum(100 * cosines, 0).mean(),
    }
    bias = found.pop("small_fd_bias")
    assert 0 < bias < fd
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [1, 10, 32, 136, 137])
def test_the_scores_are_the_same_however_the_samples_are_cut(tmp_path, size):
    found, expected = whole(tmp_path / "a", size=size), whole(tmp_path / "b", size=50)
    assert found == pytest.approx(expected, rel=1e-9)
    for name in (
        "small_precision",
        "small_recall",
        "small_density",
        "small_coverage",
        "small_kd",
        "small_kd_std",
    ):
        assert found[name] == expected[name]


@pytest.mark.parametrize("stop", [0, 32, 64, 128, 137])
def test_a_run_killed_after_a_save_ends_with_the_same_bits(tmp_path, stop):
    expected = whole(tmp_path / "never stopped")
    folder = tmp_path / "killed"
    killed = Scores(ALL, small_network(), COUNT, folder)
    feed(killed, 0, stop, 32)
    killed.save()
    # What came after the save is lost, though its rows may be in the file.
    feed(killed, stop, min(stop + 40, COUNT), 32)
    killed._rows.sync()
    again = Scores(ALL, small_network(), COUNT, folder)
    assert again.count == stop
    feed(again, stop, COUNT, 32)
    assert again.results(reference()) == expected
    again.save()
    assert Scores(ALL, small_network(), COUNT, folder).results(reference()) == expected


def test_a_run_killed_before_its_first_save_starts_again(tmp_path):
    killed = Scores(ALL, small_network(), COUNT, tmp_path)
    feed(killed, 0, 64, 32)
    killed.close()
    again = Scores(ALL, small_network(), COUNT, tmp_path)
    assert again.count == 0
    feed(again, 0, COUNT, 32)
    assert again.results(reference()) == whole(tmp_path / "other")


def test_a_save_that_is_killed_leaves_the_one_before(tmp_path, monkeypatch):
    scores = Scores(["fid"], small_network(), COUNT, tmp_path)
    feed(scores, 0, 32, 32)
    scores.save()
    feed(scores, 32, 64, 32)

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(KeyboardInterrupt):
        scores.save()
    assert Scores(["fid"], small_network(), COUNT, tmp_path).count == 32


def saved(folder, metrics=ALL):
    scores = Scores(metrics, small_network(), COUNT, folder)
    feed(scores, 0, 64, 32)
    scores.save()
    scores.close()
    return folder / "state.npz"


@pytest.mark.parametrize(
    ("metrics", "network", "count", "message"),
    [
        (
            ("fid",),
            {},
            COUNT,
            r"state\.npz is of metrics = \['fid', 'is'\], expected \['fid'\], or its folder "
            r"deleted$",
        ),
        (
            ("fid", "is"),
            {},
            150,
            r"state\.npz is of num_samples = 137, expected 150, or its folder deleted$",
        ),
        (
            ("fid", "is"),
            {"sha256": "b" * 64},
            COUNT,
            r"state\.npz is of features = \{'name': 'small', 'sha256': 'aaa",
        ),
        (
            ("fid", "is"),
            {"settings": {"resize": "clean"}},
            COUNT,
            r"state\.npz is of features = .*'resize': 'none'",
        ),
    ],
)
def test_a_state_of_other_scores_is_refused(tmp_path, metrics, network, count, message):
    saved(tmp_path, ("fid", "is"))
    with pytest.raises(UserError, match=message):
        Scores(metrics, small_network(**network), count, tmp_path)


def test_a_damaged_state_is_refused_wherever_the_damage_is(tmp_path):
    path = saved(tmp_path)
    whole_file = path.read_bytes()
    names = (
        r"state\.npz can't be read \(.*\), expected the state of an evaluation: delete its "
        r"folder to start again$"
    )
    for content in (
        b"",
        whole_file[:100],
        whole_file[: len(whole_file) // 2],
        whole_file[:-1],
        b"\x93NUMPY\x01\x00",
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=names):
            Scores(ALL, small_network(), COUNT, tmp_path)
    damaged = bytearray(whole_file)
    damaged[whole_file.index(b"half0_mean.npy") + 150] ^= 1  # inside the array, behind its header
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"state\.npz can't be read \(Bad CRC-32"):
        Scores(ALL, small_network(), COUNT, tmp_path)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.with_suffix(".npy").rename(path)
    with pytest.raises(UserError, match=r"can't be read \(it is a single array\)"):
        Scores(ALL, small_network(), COUNT, tmp_path)


@pytest.mark.parametrize(
    "lost", ["about", "count", "pool/half0_mean", "spatial/mean", "logits/p", "clip/total"]
)
def test_a_state_that_lacks_something_is_refused(tmp_path, lost):
    path = saved(tmp_path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != lost}
    np.savez(path, **arrays)
    with pytest.raises(
        UserError, match=r"state\.npz is not the state of an evaluation \(KeyError\(.*\), expected"
    ):
        Scores(ALL, small_network(), COUNT, tmp_path)


def test_rows_cut_short_are_refused(tmp_path):
    saved(tmp_path)
    with (tmp_path / "pool.rows").open("r+b") as file:
        file.truncate(63 * 4 * WIDTHS["pool"])
    with pytest.raises(
        UserError, match=r"pool\.rows has 63 rows, expected at least 64: delete its folder"
    ):
        Scores(ALL, small_network(), COUNT, tmp_path)


def test_nothing_stands_in_a_folder_where_none_is_needed(tmp_path):
    scores = Scores(["fid", "is"], small_network(), COUNT, None)
    feed(scores, 0, COUNT, 32)
    assert scores.results(reference())["small_fd"] == whole(tmp_path, ["fid"])["small_fd"]
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="need a folder for the samples' features, found none"):
        Scores(["kid"], small_network(), COUNT, None)


@pytest.mark.parametrize("end", [0, 100])
def test_scores_of_some_of_the_samples_are_none(tmp_path, end):
    scores = Scores(["fid"], small_network(), COUNT, tmp_path)
    feed(scores, 0, end, 32)
    with pytest.raises(UserError, match=rf"^{end} samples were seen, expected 137$"):
        scores.results(reference())


@pytest.mark.parametrize("kind", ["pool", "spatial", "logits"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_feature_that_is_not_a_number_is_refused(tmp_path, kind, value):
    scores = Scores(ALL, small_network(), COUNT, tmp_path)
    features = {name: array[:10].copy() for name, array in FAKE.items()}
    features[kind][3, 2] = value
    with pytest.raises(UserError, match="hold NaN or infinity in 1 of 10 rows"):
        scores.update(features)


def test_only_what_is_asked_for_is_reported_and_extracted(tmp_path):
    assert kinds(["kid", "clip"]) == ("pool",)
    assert kinds(["is", "sfid", "fid"]) == ("pool", "logits", "spatial")
    assert list(whole(tmp_path / "a", ["recall"])) == ["small_recall"]
    assert list(whole(tmp_path / "b", ["kid", "coverage"])) == [
        "small_kd",
        "small_kd_std",
        "small_coverage",
    ]
    assert list(whole(tmp_path / "c", ["fid"])) == ["small_fd", "small_fd_bias"]


@pytest.mark.parametrize("prefix", ["own_feature_", "other_inception_"])
def test_no_other_network_gives_a_fid(tmp_path, prefix):
    names = {
        metric_name(name, small_network(prefix=prefix))
        for name in (*METRICS, "fid_bias", "kid_std", "is_std")
    }
    rest = {name.removeprefix(prefix) for name in names if name != "clip_score"}
    assert all(name.startswith(prefix) for name in names - {"clip_score"})
    assert rest == {
        *("fd", "fd_bias", "sfd", "kd", "kd_std", "score", "score_std"),
        *("precision", "recall", "density", "coverage"),
    }
    assert not any("fid" in name or "kid" in name for name in names)


def test_the_published_network_gives_the_published_names():
    published = small_network(prefix="")
    names = (
        "fid",
        "fid_bias",
        "sfid",
        "is",
        "is_std",
        "kid",
        "kid_std",
        "precision",
        "recall",
        "density",
        "coverage",
    )
    assert [metric_name(name, published) for name in names] == list(names)
    assert metric_name("clip", published) == "clip_score"


def test_the_bias_is_of_the_size_that_more_samples_would_take_away(tmp_path):
    # Of one distribution, so that the whole distance is bias; a Gaussian with another seed stands
    # for infinitely many.
    many = random_features(100_000, seed=9)["pool"]
    mean, covariance = moments(many)
    of_many = Reference(path=pathlib.Path("r.npz"), sha256="", mean=mean, covariance=covariance)
    distances, biases = [], []
    for seed in range(20):
        scores = Scores(["fid"], small_network(), 500, None)
        scores.update(random_features(500, seed=seed))
        found = scores.results(of_many)
        distances.append(found["small_fd"])
        biases.append(found["small_fd_bias"])
    assert np.mean(biases) == pytest.approx(np.mean(distances), rel=0.25)
