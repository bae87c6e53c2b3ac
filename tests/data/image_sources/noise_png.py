"""Small pictures of noise, each of another width, as PNG files in memory."""

import io

import numpy as np
from PIL import Image


def pixels(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (20, 17 + i, 3), np.uint8)


def png(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(i)).save(file, "PNG")
    return file.getvalue()
