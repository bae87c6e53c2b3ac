"""Pictures of a run: samples on a labelled grid, and samples on their way from noise to image."""

import functools
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from uvit_jax.errors import UserError

_PAPER, _INK, _FAINT = "#ffffff", "#222222", "#cccccc"
_MARGIN, _GAP, _LABEL_GAP = 14, 8, 3


def to_uint8(images: Float[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
    """Turns images in [-1, 1] into bytes: clip((x + 1) / 2, 0, 1) * 255, rounded, a half upwards.

    The arithmetic (float32: multiply by 255, add 0.5, clamp, truncate) is that of torchvision's
    `save_image`.

    Raises:
      UserError: a value is NaN, which clipping would turn into a colour.
    """
    images = images.astype(np.float32)
    bad = np.flatnonzero(np.isnan(images).any(axis=(1, 2, 3)))
    if len(bad):
        raise UserError(
            f"{len(bad)} of {len(images)} images hold NaN, image {bad[0]} first; expected numbers"
        )
    return np.clip(np.clip((images + 1) / 2, 0, 1) * 255 + 0.5, 0, 255).astype(np.uint8)


def shown_channels(images: Shaped[np.ndarray, "*n c"]) -> Shaped[np.ndarray, "*n d"]:
    """Returns the channels that a page shows: the first three, or the first; never alpha."""
    return images[..., : 3 if images.shape[-1] >= 3 else 1]


def labelled_grid(
    images: UInt8[np.ndarray, "n h w c"],
    labels: Sequence[str] | None,
    columns: int,
    scale: int | None = None,
    title: str | None = None,
) -> Image.Image:
    """Draws a page of images row by row, `columns` to a row, each above its label.

    Each pixel becomes `scale` x `scale` pixels; None takes the smallest scale with tiles at least
    64 pixels high and wide, or 128 or 192 if labels would be cut at 64. Labels wrap to the tile's
    width in up to three lines, and end in "…" if that is not enough. A title wraps in the same way,
    at its commas if possible.

    Raises:
      ValueError: there are no images, columns or scale is below 1, the labels are not one per
        image, or channels are neither 1 nor 3.
    """
    _check(images, labels, columns, scale)
    n, h, w, _ = images.shape
    columns = min(columns, n)
    for factor in [scale] if scale else _scales(h, w):
        tile_w, tile_h = w * factor, h * factor
        font = _tile_font(tile_w)
        texts = [_wrap(label, font, tile_w, 3) for label in labels or ()]
        if not any(text and text[-1].endswith("…") for text in texts):
            break

    width = columns * (tile_w + _GAP) - _GAP
    title_font = _font(15)
    if title:
        width = max(width, min(320, math.ceil(title_font.getlength(title))))
    title_lines = _wrap_parts(title or "", title_font, width, 3)
    rows = [range(first, min(first + columns, n)) for first in range(0, n, columns)]
    tops = [_MARGIN + (_height(title_font, len(title_lines)) + 8 if title_lines else 0)]
    for row in rows:
        lines = max((len(texts[i]) for i in row), default=0) if texts else 0
        tops.append(tops[-1] + tile_h + (_LABEL_GAP + _height(font, lines) if lines else 0) + _GAP)

    page = Image.new("RGB", (width + 2 * _MARGIN, tops.pop() - _GAP + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(page)
    _write(draw, title_lines, title_font, _MARGIN, _MARGIN, align=0.0)
    for row, y in zip(rows, tops, strict=True):
        for column, i in enumerate(row):
            x = _MARGIN + column * (tile_w + _GAP)
            _paste(page, draw, images[i], factor, x, y)
            if texts:
                _write(draw, texts[i], font, x + tile_w / 2, y + tile_h + _LABEL_GAP, align=0.5)
    return page


def denoising_strip(
    trajectory: Float[np.ndarray, "k n h w c"],
    times: Float[np.ndarray, " k"],
    labels: Sequence[str] | None,
    rows: int,
    columns: int,
    scale: int | None = None,
) -> Image.Image:
    """Draws a page with a sample per row and a time per column, from noise to image.

    Args:
      trajectory: `n` samples in [-1, 1] at each of `k` times, in sampling order.
      times: the times.
      labels: names of the samples.
      rows: number of samples shown, from the first.
      columns: number of states shown, evenly spaced, with the first and the last.
      scale: as in `labelled_grid`.

    Raises:
      UserError: a value shown is NaN.
      ValueError: as `labelled_grid`, or fewer than two columns.
    """
    if columns < 2:
        raise ValueError(
            f"denoising_strip: columns is {columns}, expected at least 2: the noise and the image"
        )
    k, n = trajectory.shape[:2]
    picks = np.unique(np.linspace(0, k - 1, min(columns, k)).round().astype(int))
    rows = min(rows, n)
    labels = None if labels is None else labels[:rows]
    states = [to_uint8(trajectory[pick, :rows]) for pick in picks]
    _check(states[0], labels, rows, scale)
    h, w = states[0].shape[1:3]
    scale = scale or _scales(h, w)[0]
    tile_w, tile_h = w * scale, h * scale

    font = _tile_font(tile_w)
    texts = [_wrap(label, font, 160, max(1, tile_h // _height(font, 1))) for label in labels or ()]
    lines = [line for text in texts for line in text]
    left = _MARGIN + (math.ceil(max(map(font.getlength, lines))) + 10 if lines else 0)
    heads = [_wrap(head, font, tile_w + _GAP, 2) for head in _time_heads(times[picks])]
    top = _MARGIN + _height(font, max(map(len, heads))) + 5
    size = (
        left + len(picks) * (tile_w + _GAP) - _GAP + _MARGIN,
        top + rows * (tile_h + _GAP) - _GAP + _MARGIN,
    )

    page = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(page)
    for column, (head, state) in enumerate(zip(heads, states, strict=True)):
        x = left + column * (tile_w + _GAP)
        _write(draw, head, font, x + tile_w / 2, _MARGIN, align=0.5)
        for row, image in enumerate(state):
            _paste(page, draw, image, scale, x, top + row * (tile_h + _GAP))
    for row, text in enumerate(texts):
        y = top + row * (tile_h + _GAP) + (tile_h - _height(font, len(text))) // 2
        _write(draw, text, font, left - 10, y, align=1.0)
    return page


def _check(
    images: UInt8[np.ndarray, "n h w c"],
    labels: Sequence[str] | None,
    columns: int,
    scale: int | None,
) -> None:
    n, _, _, c = images.shape
    if n < 1 or columns < 1 or c not in (1, 3) or (scale is not None and scale < 1):
        raise ValueError(
            f"got images of shape {images.shape}, {columns} columns or rows and scale {scale}; "
            "expected at least one of each and 1 or 3 channels"
        )
    if labels is not None and len(labels) != n:
        raise ValueError(f"got {len(labels)} labels for {n} images, expected one label an image")


def _scales(h: int, w: int) -> list[int]:
    """Returns the smallest scales with tiles at least 64, 128 and 192 pixels high and wide."""
    return [math.ceil(side / min(h, w)) for side in (64, 128, 192)]


def _time_heads(times: Float[np.ndarray, " k"]) -> list[str]:
    """Returns "t = 1.00", ... with two to four decimals, as many as keep neighbours apart."""
    heads: list[str] = []
    for decimals in (2, 3, 4):
        heads = [f"t = {time:.{decimals}f}" for time in times]
        if len(set(heads)) == len(heads):
            break
    return heads


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib comes with DejaVu Sans; the font inside Pillow has no letters beyond ASCII.
    import matplotlib

    return ImageFont.truetype(
        pathlib.Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size
    )


def _tile_font(tile_w: int) -> ImageFont.FreeTypeFont:
    return _font(min(16, max(11, tile_w // 10)))


def _height(font: ImageFont.FreeTypeFont, lines: int) -> int:
    return lines * sum(font.getmetrics())


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float | int, max_lines: int) -> list[str]:
    """Breaks a text into lines of at most `width` pixels, at spaces where there are any."""
    rest, lines = " ".join(text.split()), list[str]()
    while rest:
        fits = next(
            (i for i in range(1, len(rest)) if font.getlength(rest[: i + 1]) > width), len(rest)
        )
        if fits < len(rest) and len(lines) == max_lines - 1:
            while fits > 1 and font.getlength(rest[:fits].rstrip() + "…") > width:
                fits -= 1
            return [*lines, rest[:fits].rstrip() + "…"]
        space = rest.rfind(" ", 0, fits + 1) if fits < len(rest) else -1
        cut = space if space > 0 else fits
        lines.append(rest[:cut])
        rest = rest[cut:].lstrip()
    return lines


def _wrap_parts(
    text: str, font: ImageFont.FreeTypeFont, width: float | int, max_lines: int
) -> list[str]:
    """Breaks a list "a, b, c" between its parts if each of them fits a line, else as `_wrap`."""
    first, *rest = " ".join(text.split()).split(", ")
    lines = [first]
    for part in rest:
        if font.getlength(f"{lines[-1]}, {part},") <= width:
            lines[-1] += f", {part}"
        else:
            lines[-1] += ","
            lines.append(part)
    fits = len(lines) <= max_lines and all(font.getlength(line) <= width for line in lines)
    return lines if fits else _wrap(text, font, width, max_lines)


def _write(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont,
    x: float | int,
    y: int,
    align: float,
) -> None:
    """Writes lines from `y` down; `x` is their left (align 0), middle (0.5) or right edge (1)."""
    for i, line in enumerate(lines):
        draw.text(
            (round(x - align * font.getlength(line)), y + _height(font, i)),
            line,
            fill=_INK,
            font=font,
        )


def _picture(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _paste(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    image: UInt8[np.ndarray, "h w c"],
    scale: int,
    x: int,
    y: int,
) -> None:
    h, w = image.shape[0] * scale, image.shape[1] * scale
    # A frame around the tile keeps white images apart from the page.
    draw.rectangle((x - 1, y - 1, x + w, y + h), outline=_FAINT)
    page.paste(_picture(image).resize((w, h), Image.Resampling.NEAREST), (x, y))
