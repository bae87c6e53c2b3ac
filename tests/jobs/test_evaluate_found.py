"""Found samples and references: scored, made, and refused for every fault."""

import json
import pathlib
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from tests.jobs.evaluate_runs import evaluation
from uvit_jax.data.training_data import load_built_in
from uvit_jax.errors import UserError
from uvit_jax.jobs import evaluate
from uvit_jax.main import open_experiment
from uvit_jax.metrics.random_filters import random_filters
from uvit_jax.metrics.reference_file import read_reference
from uvit_jax.telemetry.images import to_uint8

FD = "own_feature_fd"
COUNT = 60


def digits(first: int, count: int) -> np.ndarray:
    x = load_built_in("digits").read(
        np.arange(first, first + count), np.zeros(count, bool), fields=["x"]
    )["x"]
    return to_uint8(x)


def write_folder(folder: pathlib.Path, images: np.ndarray) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / f"{i:05d}.png")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    """Sixty digits as an .npz of ours, one of ADM's and a folder, and statistics of all digits."""
    root, images = tmp_path_factory.mktemp("found"), digits(100, COUNT)
    np.savez(root / "ours.npz", images=images)
    np.savez_compressed(root / "adm.npz", arr_0=images, arr_1=np.zeros(COUNT, np.int64))
    write_folder(root / "folder", images)
    evaluate.run(
        evaluation(evaluate__make_reference=True, evaluate__out=str(root / "digits.npz")),
        root / "work",
    )
    write_bad(root)
    return root


def write_bad(root: pathlib.Path) -> None:
    """Samples and references that can't be used."""
    images = digits(0, 20)
    (root / "empty").mkdir()
    write_folder(root / "mixed", images)
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(root / "mixed" / "00007.png")
    np.savez(root / "floats.npz", images=np.zeros((4, 8, 8, 1), np.float32))
    np.savez(root / "large.npz", images=np.zeros((4, 16, 16, 1), np.uint8))
    np.savez(root / "tiny.npz", images=np.zeros((4, 4, 4, 1), np.uint8))
    np.savez(root / "one.npz", images=images[:1])
    np.savez(root / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    (root / "torn.npz").write_bytes((root / "ours.npz").read_bytes()[:-100])


def score(root: pathlib.Path, samples: str, out: pathlib.Path, **changes) -> dict:
    fields = {"evaluate__reference": str(root / "digits.npz"), "evaluate__out": str(out), **changes}
    evaluate.run(evaluation(evaluate__samples=str(root / samples), **fields), out.parent / "work")
    return json.loads((out / "evaluation.json").read_text())


def test_a_reference_is_made_of_images_and_says_what_it_is_of(root):
    reference = read_reference(root / "digits.npz", random_filters())
    assert (
        reference.record.items() >= {"source": "digits", "count": 1797, "shape": [8, 8, 1]}.items()
    )
    assert reference.features.shape == (300, 336)
    # Those kept are spread over the whole data set.
    np.testing.assert_allclose(reference.mean, reference.features.mean(0), atol=0.05)


def test_two_sets_of_images_are_compared_without_a_config_and_the_report_knows_no_model(
    root, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    fields = {
        "evaluate.samples": str(root / "folder"),
        "evaluate.reference": str(root / "ours.npz"),
    }
    line = evaluate.run(*open_experiment("evaluate", "", "", fields))
    (path,) = (tmp_path / "runs" / "evaluate" / "evaluations").glob(
        "found_folder_*/evaluation.json"
    )
    assert str(path.parent.relative_to(tmp_path)) in line
    report = json.loads(path.read_text())
    assert report["metrics"][FD] == pytest.approx(0, abs=1e-6)
    assert not {"model", "schedule", "prediction", "sampler", "weights"} & report["samples"].keys()


def test_making_a_reference_ends_with_what_it_is_of_and_where(tmp_path):
    samples = tmp_path / "few.npz"
    np.savez(samples, images=digits(0, 20))
    made = evaluation(evaluate__make_reference=True, evaluate__reference=str(samples))
    line = evaluate.run(made, tmp_path / "run")
    assert (
        line == f"made the reference of 20 images of 8x8x1 with own features v1: see "
        f"{tmp_path}/run/reference.npz"
    )


def test_a_folder_that_cannot_be_made_is_named_by_its_field(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=rf"^config\.evaluate\.out {tmp_path}/file/out can't be written to"
    ):
        score(root, "ours.npz", tmp_path / "file" / "out")
    made = evaluation(evaluate__make_reference=True, evaluate__out=str(tmp_path / "file" / "a.npz"))
    with pytest.raises(
        UserError,
        match=rf"^the folder of config\.evaluate\.out {tmp_path}/file can't be written to",
    ):
        evaluate.run(made, tmp_path / "work")


def test_every_kind_of_file_gives_the_same_numbers_and_its_report_says_which_it_was(root, tmp_path):
    reports = {
        name: score(root, name, tmp_path / name) for name in ("ours.npz", "adm.npz", "folder")
    }
    expected = reports["ours.npz"]["metrics"]
    assert 0 < expected["own_feature_coverage"] < 1 < expected[FD]
    for name, report in reports.items():
        assert report["metrics"] == expected
        assert report["samples"]["count"] == COUNT
        assert name in report["samples"]["from"]
    assert len({json.dumps(report["samples"]) for report in reports.values()}) == 3
    assert reports["folder"]["warnings"] == [
        f"60 samples are fewer than the 336 features: {FD} is too high (about "
        f"{expected[FD + '_bias']:.3g} of {expected[FD]:.4g} by comparison of halves, more in "
        "truth), expected 3,360 samples or more"
    ]
    assert np.asarray(Image.open(tmp_path / "folder" / "grid.png")).std() > 10


def test_samples_nearer_to_the_reference_score_better(root, tmp_path):
    noisy = digits(100, COUNT).astype(int) + np.random.default_rng(0).integers(
        -60, 60, (COUNT, 8, 8, 1)
    )
    np.savez(tmp_path / "noisy.npz", images=noisy.clip(0, 255).astype(np.uint8))
    clean = score(root, "ours.npz", tmp_path / "clean")["metrics"]
    worse = score(root, str(tmp_path / "noisy.npz"), tmp_path / "worse")["metrics"]
    assert worse[FD] > clean[FD]
    assert worse["own_feature_kd"] > clean["own_feature_kd"]
    assert worse["own_feature_density"] < clean["own_feature_density"]


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_other_images_under_the_same_name_are_not_taken_for_those_scored_before(
    root, tmp_path, kind
):
    samples = tmp_path / f"samples.{kind}"

    def write(images):
        np.savez(samples, images=images) if kind == "npz" else write_folder(samples, images)

    write(digits(0, COUNT))
    asked = evaluation(
        evaluate__samples=str(samples),
        evaluate__reference=str(root / "digits.npz"),
        evaluate__metrics="fid",
    )
    first = evaluate.run(asked, tmp_path / "work")
    assert evaluate.run(asked, tmp_path / "work") == first
    write(digits(500, COUNT))
    assert evaluate.run(asked, tmp_path / "work").split(":")[1] != first.split(":")[1]
    assert len(list((tmp_path / "work" / "evaluations").glob("found_samples_*"))) == 2


def test_only_what_is_asked_for_is_computed(root, tmp_path):
    report = score(root, "ours.npz", tmp_path / "out", evaluate__metrics="recall, fid")
    assert report["metrics"].keys() == {FD, f"{FD}_bias", "own_feature_recall"}
    assert report["not computed"] == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"samples": "gone"},
            r"^config\.evaluate\.samples is '.*gone', which doesn't exist, expected a folder of "
            r"images or",
        ),
        (
            {"samples": "gone.npz"},
            r"^config\.evaluate\.samples is '.*gone\.npz', which doesn't exist, expected a folder",
        ),
        ({"samples": "empty"}, r"empty has no images, expected files like a\.jpg"),
        ({"samples": "mixed"}, r"00007\.png of .*mixed is 9x8x3, expected 8x8x3 as 00000\.png"),
        (
            {"samples": "floats.npz"},
            r"floats\.npz has images of shape \(4, 8, 8, 1\) and dtype float32",
        ),
        (
            {"samples": "large.npz"},
            r"digits\.npz is of images of 8x8x1, but the samples have 16x16x1",
        ),
        ({"samples": "tiny.npz", "reference": "tiny.npz"}, r"4x4, expected at least 8x8"),
        (
            {"samples": "one.npz", "metrics": "fid"},
            r"has 'fid', but the number of samples is 1, expected at least 2",
        ),
        ({"samples": "torn.npz"}, r"torn\.npz can't be read"),
        (
            {"reference": "gone.npz"},
            r"^config\.evaluate\.reference is '.*gone\.npz', which can't be read",
        ),
        (
            {"reference": "gone"},
            r"^config\.evaluate\.reference is '.*gone', which samples are to be compared with: ",
        ),
        (
            {"reference": "other.npz"},
            r"other\.npz has mu of shape \(3,\), expected \(336,\), the features of own",
        ),
        (
            {"metrics": "fid, sfid"},
            r"^config\.evaluate\.metrics has 'sfid', but own features v1 has no spatial feat",
        ),
        (
            {"metrics": "clip"},
            r"^config\.evaluate\.metrics has 'clip', but config\.evaluate\.clip is empty",
        ),
        (
            {"metrics": "fod"},
            r"^config\.evaluate\.metrics is 'fod', expected one of 'all', 'fid', 'sfid', 'is'",
        ),
        (
            {"sweep": "steps=5,9"},
            r"^config\.evaluate\.sweep is 'steps=5,9', expected none where samples is '.*ours",
        ),
    ],
)
def test_what_can_not_be_scored_is_refused_in_one_sentence(root, tmp_path, changes, message):
    paths = {"samples": "ours.npz", "reference": "digits.npz"} | changes
    fields = paths | {name: str(root / paths[name]) for name in ("samples", "reference")}
    with pytest.raises(UserError, match=message) as caught:
        evaluate.run(
            evaluation(**{f"evaluate__{name}": value for name, value in fields.items()}), tmp_path
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"evaluate__reference": ""},
            r"^config\.data\.source is '/nowhere/data', which samples are to be compared with: it "
            r"doesn't ex",
        ),
        (
            {"evaluate__reference": "digits.npz"},
            r"'.*digits\.npz', which holds statistics: expected images",
        ),
        (
            {"evaluate__reference": "ours.npz", "evaluate__out": "somewhere"},
            r"^config\.evaluate\.out is 'somewhere'",
        ),
        (
            {"evaluate__reference": "gone"},
            r"^config\.evaluate\.reference is '.*gone', which samples are to be compared with: ",
        ),
    ],
)
def test_what_no_reference_can_be_made_of_is_refused_in_one_sentence(
    root, tmp_path, changes, message
):
    if changes["evaluate__reference"]:
        changes = changes | {"evaluate__reference": str(root / changes["evaluate__reference"])}
    with pytest.raises(UserError, match=message):
        evaluate.run(
            evaluation(evaluate__make_reference=True, data__source="/nowhere/data", **changes),
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_inception_without_its_file_and_without_a_network_is_refused_before_anything_is_scored(
    root, tmp_path, monkeypatch
):
    def offline(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    message = (
        r"^config\.evaluate\.inception is 'pt_inception-2015-12-05': .* is not on this "
        r"machine .*expected https://"
    )
    with pytest.raises(UserError, match=message):
        score(root, "ours.npz", tmp_path / "out", evaluate__features="inception")
    assert not (tmp_path / "out").exists()
