"""A folder with the samples of one request, which its `samples.json` describes and counts."""

import dataclasses
import json
import os
import pathlib
import re
from typing import Any

from uvit_jax.data.image_formats import is_image
from uvit_jax.errors import UserError, counted
from uvit_jax.files import atomic_write

FILE_NAME = "samples.json"
NPZ = "samples.npz"
_PNG = re.compile(r"(\d{6,})(?:_label_\d+)?\.png")


@dataclasses.dataclass(frozen=True)
class Request:
    """The samples that a folder is for.

    Attributes:
      format: "png" for a file a sample, "npz" for all in one.
      count: number of samples; of those asked for first, sample i is the same whatever the count.
      asked: everything that decides what sample i is, as JSON has it.
    """

    format: str
    count: int
    asked: dict[str, Any]


def png_name(index: int, label: int | None = None) -> str:
    """The name of the file of sample `index`."""
    return f"{index:06d}.png" if label is None else f"{index:06d}_label_{label}.png"


def indices_of(names: list[str]) -> dict[int, list[str]]:
    """Groups the names of samples' files by their numbers; two of one number are a mixture."""
    found: dict[int, list[str]] = {}
    for name in sorted(names):
        if match := _PNG.fullmatch(name):
            found.setdefault(int(match[1]), []).append(name)
    return found


def claim(folder: pathlib.Path, request: Request, field: str) -> None:
    """Writes a request into a folder, whose samples it may replace; others are refused.

    A request that ended before its first sample binds no other.

    field: the name of the folder's field, for the sentence of an error.

    Raises:
      UserError: for a folder that holds samples of another request or format, more of this one than
        are asked for now, or images without a `samples.json`.
    """
    found, names = read_request(folder), os.listdir(folder)
    request = dataclasses.replace(request, asked=json.loads(json.dumps(request.asked)))
    if found is None:
        _check_no_images(folder, names, field)
    elif NPZ in names or indices_of(names):
        advice = f"expected another {field}, or {folder} deleted"
        there = f"{folder} holds samples of another request"
        if found.format != request.format:
            raise UserError(
                f"{there} (format = {found.format!r} there, {request.format!r} now): {advice}"
            )
        if found.asked != request.asked:
            raise UserError(f"{there} ({first_difference(found.asked, request.asked)}): {advice}")
        if found.count > request.count:
            raise UserError(
                f"{folder} is for {counted(found.count, 'sample')} of this request, more than the "
                f"{request.count:,} asked for now: {advice}"
            )
    with atomic_write(folder / FILE_NAME) as file:
        file.write(json.dumps(dataclasses.asdict(request), indent=1).encode() + b"\n")


def _check_no_images(folder: pathlib.Path, names: list[str], field: str) -> None:
    for name in sorted(names):
        if not name.startswith(".") and (is_image(name) or name.endswith(".npz")):
            raise UserError(
                f"{field} {folder} holds {name!r} and no {FILE_NAME}, expected a new or empty "
                "folder: samples are not mixed with other images"
            )


def read_request(folder: pathlib.Path) -> Request | None:
    """Reads the request of a folder; None for a folder without one.

    Raises:
      UserError: for a `samples.json` that can't be read.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        found = Request(**json.loads(path.read_text()))
        if (
            found.format in ("png", "npz")
            and isinstance(found.count, int)
            and isinstance(found.asked, dict)
        ):
            return found
    except (ValueError, TypeError, OSError):
        pass
    raise UserError(
        f"{path} can't be read as the note beside samples: delete {folder}, and the command that "
        "drew them draws them again"
    )


def sample_files(folder: pathlib.Path, request: Request) -> list[str]:
    """Lists the request's PNGs in the order of their numbers, without the folder's other files.

    Raises:
      UserError: where not all of them are there, or two are of one number.
    """
    found = {i: names for i, names in indices_of(os.listdir(folder)).items() if i < request.count}
    for index, names in found.items():
        if len(names) > 1:
            raise UserError(
                f"{folder} holds {' and '.join(map(repr, names[:2]))}, two images of sample "
                f"{index}, expected one"
            )
    check_complete(folder, request, len(found))
    return [found[i][0] for i in range(request.count)]


def check_complete(folder: pathlib.Path, request: Request, count: int) -> None:
    """Raises a UserError where fewer samples are found than were asked for."""
    if count != request.count:
        raise UserError(
            f"{folder} holds {count:,} of the {request.count:,} samples that its {FILE_NAME} "
            f"announces: the command that draws them did not end, and draws the rest when run "
            f"again"
        )


def first_difference(found: Any, wanted: Any, name: str = "") -> str:
    """The first field in which two trees of JSON differ, and both its values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in (*wanted, *found):
            if found.get(key) != wanted.get(key):
                return first_difference(found.get(key), wanted.get(key), f"{name} {key}".strip())
    return f"{name} = {found!r} there, {wanted!r} now"
