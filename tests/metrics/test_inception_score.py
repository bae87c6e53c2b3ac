import io

import numpy as np
import pytest

from uvit_jax.errors import UserError
from uvit_jax.metrics.inception_score import InceptionScore

N, CLASSES = 203, 11
LOGITS = (3 * np.random.default_rng(0).standard_normal((N, CLASSES))).astype(np.float32)


def by_definition(logits, splits):
    """Softmax, then exp of the mean KL divergence from each part's own marginal."""
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    scores = []
    for k in range(splits):
        part = p[k * len(p) // splits : (k + 1) * len(p) // splits]
        scores.append(np.exp(np.mean(np.sum(part * np.log(part / part.mean(axis=0)), axis=1))))
    return np.mean(scores), np.std(scores)


def parts(seed):
    cuts = np.sort(np.random.default_rng(seed).integers(0, N + 1, 15)).tolist()
    slices = [slice(start, end) for start, end in zip([0, *cuts], [*cuts, N], strict=True)]
    np.random.default_rng(seed).shuffle(slices)
    return slices


@pytest.mark.parametrize("splits", [1, 3, 10, N])
@pytest.mark.parametrize("seed", range(3))
def test_a_stream_in_any_order_has_the_score_of_the_whole(splits, seed):
    score = InceptionScore(N, splits)
    for part in parts(seed):
        score.update(LOGITS[part], part.start)
    np.testing.assert_allclose(
        score.result(), by_definition(LOGITS, splits), rtol=1e-12, atol=1e-14
    )


def test_certain_and_even_predictions_score_the_number_of_classes_and_logits_alike_score_one():
    score = InceptionScore(40, 2)
    score.update(np.float32(1e4) * np.eye(5, dtype=np.float32)[np.arange(40) % 5], 0)
    assert score.result() == pytest.approx((5, 0), rel=1e-12)
    score = InceptionScore(40, 2)
    score.update(np.full((40, 5), 1e30, np.float32), 0)
    assert score.result() == pytest.approx((1, 0), rel=1e-12)


def test_scores_merge_and_go_on_from_a_file():
    first, second, empty = (InceptionScore(N) for _ in range(3))
    first.update(LOGITS[:77], 0)
    second.update(LOGITS[77:], 77)
    file = io.BytesIO()
    np.savez(file, **first.arrays())
    file.seek(0)
    resumed = InceptionScore.from_arrays(np.load(file))
    for score in (first, resumed):
        score.merge(empty)
        score.merge(second)
    empty = InceptionScore.from_arrays(empty.arrays())
    empty.merge(resumed)
    assert first.result() == resumed.result() == empty.result()
    np.testing.assert_allclose(resumed.result(), by_definition(LOGITS, 10), rtol=1e-12)


def test_missing_and_repeated_samples_are_refused():
    score = InceptionScore(N)
    score.update(LOGITS[:50], 0)
    with pytest.raises(UserError, match=r"^50 samples were seen, expected each of 203 once$"):
        score.result()
    score.update(LOGITS[:153], 0)
    with pytest.raises(UserError, match=r"^203 samples were seen, expected each of 203 once$"):
        score.result()


def test_bad_input_is_refused():
    with pytest.raises(
        UserError, match=r"^num_samples is 9, expected at least one for each of 10 splits$"
    ):
        InceptionScore(9)
    with pytest.raises(UserError, match=r"^splits is 0, expected at least 1$"):
        InceptionScore(9, 0)
    score, bad = InceptionScore(N), LOGITS[:4].copy()
    bad[1, 1] = np.inf
    with pytest.raises(UserError, match=r"^samples are numbered 200 to 203, expected 0 to 202$"):
        score.update(LOGITS[:4], 200)
    with pytest.raises(
        UserError, match=r"^logits hold NaN or infinity in 1 of 4 rows, expected finite numbers$"
    ):
        score.update(bad, 0)
    score.update(LOGITS[:4], 0)
    with pytest.raises(UserError, match=r"^logits have 10 columns, expected 11 as before$"):
        score.update(LOGITS[:4, :10], 4)
    with pytest.raises(
        UserError,
        match=r"^scores are of 203 samples in 7 splits, expected 203 in 10, as those they",
    ):
        score.merge(InceptionScore(N, 7))
