"""Images in batches of one size, whatever the sizes of a stream's own."""

import numpy as np

from uvit_jax.jobs.evaluation.image_streams import regrouped


def test_regrouped_images_are_the_same_in_groups_of_one_size():
    images = np.arange(23, dtype=np.uint8)[:, None, None, None]
    for cuts in ([], [1, 2, 3], [5, 5, 20], [0, 10, 23]):
        groups = list(regrouped(iter(np.split(images, cuts)), 6))
        assert [len(group) for group in groups] == [6, 6, 6, 5]
        np.testing.assert_array_equal(np.concatenate(groups), images)
    assert list(regrouped(iter([]), 6)) == []
    assert list(regrouped(iter([images[:0]]), 6)) == []
