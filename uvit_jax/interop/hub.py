"""Published models by name: a path, or a name on the Hugging Face hub."""

import fnmatch
import glob
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from uvit_jax.errors import UserError, nearest

INDEX = ".index.json"  # of weights in several files
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", INDEX)
SECONDS = 10.0  # to wait for the hub's answer before the machine counts as offline

_NAME = re.compile(r"(?P<model>\w[\w.-]*/\w[\w.-]*)(?:[:/](?P<inside>[^:]+))?", re.ASCII)


def find_model(name: str, *alternatives: Sequence[str]) -> pathlib.Path:
    """The file or folder of this name on this machine, downloaded if it is not cached.

    Args:
      name: a file, a folder, or a name on the Hugging Face hub: "org/model", with a folder or a
        weights file inside it as "org/model/vae" or "org/model:vae". What exists as a path is taken
        as one.
      *alternatives: sets of files that make the model usable, the best first: names relative to the
        folder found, or to the folder of the weights file named, in which `*` stands for anything
        but "/". A hub's model is there once every name of one set is; only the first such set is
        downloaded. What exists as a path is not searched.

    Returns:
      The path as given; of a hub's name the folder in huggingface_hub's cache (`HF_HUB_CACHE`), or
      the file in it.

    Raises:
      UserError: for a name that is neither a path nor a model's, a model that doesn't exist or
        lacks all the sets, or a hub that can't be reached. A cached model asks the
        hub nothing.
    """
    path = pathlib.Path(os.path.expanduser(name))  # pathlib's own raises for an unknown ~user
    if name and os.path.exists(path):
        return path
    if "://" in name:
        page = re.match(r"https?://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", name)
        hub = f"the hub's name {page[1]!r}" if page else "a hub's name (org/model)"
        raise UserError(
            f"{name!r} is an address, expected a file or folder of this machine or {hub}: "
            f"download it"
        )
    not_here = nowhere(path)
    match = _NAME.fullmatch(name)
    if match is None or pathlib.PurePosixPath(match["model"]).suffix in WEIGHTS or ".." in name:
        raise UserError(f"{not_here}, nor can {name!r} be a hub's name (org/model)")
    model, inside = match["model"], (match["inside"] or "").strip("/")
    own = (inside,) if inside.endswith(WEIGHTS) else ()
    if not own and not alternatives:
        raise UserError(f"{not_here}, and of a hub's model one file, expected {name}/FILE")
    base = inside.rpartition("/")[0] if own else inside
    sets = [
        own + tuple(f"{base}/{file}" if base else file for file in files)
        for files in alternatives or [()]
    ]
    folder = _cached(model, sets) or _download(model, sets, not_here)
    return folder / inside


def _cached(model: str, sets: Iterable[Sequence[str]]) -> pathlib.Path | None:
    """The cached snapshot of a model, if it holds one of the sets whole."""
    for files in sets:
        try:
            folder = pathlib.Path(
                huggingface_hub.snapshot_download(
                    model, allow_patterns=list(files), local_files_only=True
                )
            )
        except LocalEntryNotFoundError:
            continue
        except ValueError:
            return None  # not a name the hub allows, which its own answer will say
        # The folder may be there for other files' sake.
        if _holds(folder, files):
            return folder
    return None


def nowhere(path: pathlib.Path) -> str:
    """A sentence that nothing is at a path, with its folder's names or the nearest of them."""
    said, folder = f"there is no file or folder {path.absolute()}", path.parent
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return said
    if close := nearest(path.name, names):
        return f"{said} (did you mean {folder / close}?)"
    listed = ", ".join(names[:5]) or "nothing"
    return (
        said
        if folder == pathlib.Path(".")
        else f"{said} (the folder holds {listed}{', ...' * (len(names) > 5)})"
    )


def _download(model: str, sets: Sequence[Sequence[str]], not_here: str) -> pathlib.Path:
    """The snapshot of a model with the first set that the hub has.

    not_here: says that the model's name is not a path.
    """
    hub = constants.ENDPOINT
    tried = f"{not_here}, {model} is not (whole) in the cache {constants.HF_HUB_CACHE}"
    try:
        siblings = huggingface_hub.HfApi().model_info(model, timeout=SECONDS).siblings
        published = [sibling.rfilename for sibling in siblings or ()]
        for files in sets:
            chosen = [[name for name in published if _matches(name, pattern)] for pattern in files]
            if all(chosen):
                wanted = [glob.escape(name) for names in chosen for name in names]
                folder = pathlib.Path(
                    huggingface_hub.snapshot_download(
                        model, allow_patterns=wanted, etag_timeout=SECONDS
                    )
                )
                if not _holds(
                    folder, files
                ):  # what it gives when the hub fails between two questions
                    raise ConnectionError(f"the download of {' and '.join(files)} broke off")
                return folder
    except GatedRepoError:
        raise UserError(
            f"{tried}, and on {hub} it is gated: accept its terms there and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{tried}, and no model of that name on {hub} (a private one needs HF_TOKEN)"
        ) from None
    # huggingface_hub has changed its HTTP library twice, and with it the class of network errors.
    except Exception as error:
        raise UserError(
            f"{tried}, and the download from {hub} failed ({_first_line(error)})"
        ) from error
    expected = ", or ".join(" and ".join(files) for files in sets)
    listed = ", ".join(sorted(published)[:8]) or "nothing"
    raise UserError(
        f"{model} on {hub} holds {listed}{', ...' * (len(published) > 8)}, expected {expected}"
    )


def _holds(folder: pathlib.Path, files: Sequence[str]) -> bool:
    return all(any(file.is_file() for file in folder.glob(pattern)) for pattern in files)


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
