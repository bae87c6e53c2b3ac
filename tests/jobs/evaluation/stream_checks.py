"""Folders of images for tests of streams, and the check that a stream can start at any image."""

import numpy as np
from PIL import Image


def images_of(stream, first=0):
    """All images from number `first` on; each batch must be of the stream's shape."""
    batches = list(stream.batches(first))
    assert all(batch.shape[1:] == stream.shape and batch.dtype == np.uint8 for batch in batches)
    return np.concatenate([np.zeros((0, *stream.shape), np.uint8), *batches])


def check_taken_up_anywhere(stream, expected):
    assert (stream.count, *stream.shape) == expected.shape
    for first in (0, 1, len(expected) // 2, len(expected) - 1, len(expected)):
        np.testing.assert_array_equal(images_of(stream, first), expected[first:])


def pngs(folder, count=10, size=(6, 5)):
    """PNGs named so that the order of names is neither that of writing nor that of numbers."""
    folder.mkdir()
    images = {
        f"{i}.png": np.random.default_rng(i).integers(256, size=(*size, 3), dtype=np.uint8)
        for i in range(count)
    }
    for name in sorted(images, key=lambda name: name[::-1], reverse=True):
        Image.fromarray(images[name]).save(folder / name)
    return images
