import numpy as np
import pytest

from uvit_jax.errors import UserError
from uvit_jax.metrics.clip_score import ClipScore


def embeddings(n, p=16, seed=0):
    """Pairs whose cosines lie on both sides of 0."""
    image, noise = np.random.default_rng(seed).standard_normal((2, n, p), np.float32)
    return image, noise + np.linspace(-2, 2, n, dtype=np.float32)[:, None] * image


def test_the_score_is_a_hundred_times_the_mean_cosine_above_zero():
    score = ClipScore()
    # Angles of 0, 60, 90 and 180 degrees, and vectors of any length.
    image = np.array([[2.0, 0], [1, 0], [0, 3], [1, 1]])
    score.update(image, np.array([[5.0, 0], [0.5, np.sqrt(0.75)], [1, 0], [-1, -1]]))
    assert score.result() == pytest.approx((100 + 50 + 0 + 0) / 4)
    assert isinstance(score.result(), float)


def test_batches_in_any_order_and_sizes_give_the_same_score():
    image, text = embeddings(100)
    cosines = [
        i @ t / np.sqrt((i @ i) * (t @ t))
        for i, t in zip(image.astype(float), text.astype(float), strict=True)
    ]
    expected = np.mean([max(100 * cosine, 0) for cosine in cosines])
    assert min(cosines) < -0.5 < 0.5 < max(cosines)
    for parts in ([100], [1, 99], [30, 0, 70], [10] * 10):
        score = ClipScore()
        for rows in np.split(np.random.default_rng(1).permutation(100), np.cumsum(parts)[:-1]):
            score.update(image[rows], text[rows])
        assert score.result() == pytest.approx(expected, rel=1e-12)


def test_a_saved_score_goes_on_where_it_was(tmp_path):
    image, text = embeddings(50)
    whole, part = ClipScore(), ClipScore()
    part.update(image[:20], text[:20])
    whole.update(image[:20], text[:20])
    np.savez(tmp_path / "score.npz", **part.arrays())
    resumed = ClipScore.from_arrays(np.load(tmp_path / "score.npz"))
    for score in (whole, resumed):
        score.update(image[20:], text[20:])
    assert resumed.result() == whole.result()
    assert {name: array.dtype for name, array in resumed.arrays().items()} == {
        "total": "float64",
        "count": "int64",
    }


@pytest.mark.parametrize(("value", "length"), [(np.nan, "nan"), (np.inf, "inf"), (0, "0.0")])
def test_an_embedding_without_direction_is_refused_and_nothing_added(value, length):
    image, text = embeddings(4)
    score = ClipScore()
    score.update(image, text)
    before = score.result()
    spoilt = text.copy()
    spoilt[2] = value
    with pytest.raises(
        UserError,
        match=f"^the text embedding in row 2 has length {length}, expected a finite length above 0",
    ):
        score.update(image, spoilt)
    with pytest.raises(UserError, match=r"^the image embedding in row 2"):
        score.update(spoilt, text)
    assert score.result() == before
    assert score.arrays()["count"] == 4


def test_a_score_of_nothing_is_refused():
    with pytest.raises(UserError, match="the CLIP score is of 0 pairs, expected at least 1"):
        ClipScore().result()
