"""Where `config.init_from` leads: to a file of weights, or to the workdir of a run."""

import json
import pathlib

from uvit_jax.errors import UserError
from uvit_jax.interop.file_kinds import weights_kind
from uvit_jax.interop.hub import INDEX, WEIGHTS, nowhere

# The folder that the official code saves a step in: the trained weights and their average.
_OFFICIAL = {"params": "nnet.pth", "ema": "nnet_ema.pth"}
_CONFIG, _CHECKPOINTS = "config.json", "checkpoints"


def find_weights(init_from: str, weights: str = "ema") -> pathlib.Path:
    """Finds the file, or the workdir (a folder), of the weights of `config.init_from`.

    Args:
      init_from: a file; a workdir; or a folder with one file of weights, or with those of a step of
        the official code.
      weights: "ema" or "params", for a step of the official code, which holds both.

    Raises:
      UserError: for anything else; for a known kind of file the sentence says what to name instead.
    """
    path = pathlib.Path(init_from).expanduser()
    if "://" in init_from:
        raise UserError(
            f"config.init_from is {init_from!r}, expected a weights file or a workdir on this "
            f"machine: download it"
        )
    if not path.exists():
        raise UserError(
            f"config.init_from is {init_from!r}, expected a weights file or a workdir: "
            f"{nowhere(path)}, and what is on the hub has to be downloaded first"
        )
    try:
        path = _in_folder(path, weights) if path.is_dir() else path
        if path.is_file() and not path.name.endswith(INDEX):
            weights_kind(path)
    except UserError as error:
        raise UserError(f"config.init_from is {init_from!r}: {error}") from None
    return path


def _in_folder(folder: pathlib.Path, weights: str) -> pathlib.Path:
    if _is_workdir(folder):
        return folder
    for number, workdir in enumerate(folder.absolute().parents[:3]):
        # checkpoints, checkpoints/500, checkpoints/500/ema
        if _is_workdir(workdir) and folder.absolute().relative_to(workdir).parts[0] == _CHECKPOINTS:
            step = folder.absolute().relative_to(workdir).parts[1] if number else ""
            at = (
                f" (and for a sample of this step config.sample.step={step})"
                if step.isdigit()
                else ""
            )
            raise UserError(
                f"it is inside of the workdir {workdir}, expected the workdir itself{at}"
            )
    if (folder / _OFFICIAL[weights]).is_file():
        return folder / _OFFICIAL[weights]
    files = sorted(
        path for path in folder.iterdir() if path.name.endswith(WEIGHTS) and path.is_file()
    )
    names = [path.name for path in sorted(folder.iterdir())]
    if kind := _foreign(folder, names):
        raise UserError(f"{kind}, expected a weights file of a U-ViT or the workdir of a run")
    if len(files) == 1:
        return files[0]
    if files:
        raise UserError(
            f"the folder holds {len(files)} files of weights "
            f"({', '.join(file.name for file in files[:8])}): name one"
        )
    # Runs inside, the steps that the official code has saved, the files of other trainers.
    found = (
        [path for path in folder.glob(depth) if _holds_weights(path)] for depth in ("*", "*/*")
    )
    inside = next(filter(None, found), None)
    advice = f": did you mean {max(inside, key=_natural)}?" if inside else ""
    listed = f"{', '.join(names[:8]) or 'nothing'}{', ...' * (len(names) > 8)}"
    raise UserError(
        f"the folder holds {listed}, expected a workdir ({_CONFIG} and {_CHECKPOINTS}/) or a file "
        f"of weights{advice}"
    )


def _holds_weights(path: pathlib.Path) -> bool:
    return (
        _is_workdir(path)
        or (path / _OFFICIAL["ema"]).is_file()
        or (path.name.endswith(WEIGHTS) and path.is_file())
    )


def _natural(path: pathlib.Path) -> tuple[int, str]:
    """Sort key that puts 100000.ckpt after 50000.ckpt."""
    return len(path.name), path.name


def _is_workdir(folder: pathlib.Path) -> bool:
    # Other trainers have a folder of that name, too, with files in it.
    saved = folder / _CHECKPOINTS
    return saved.is_dir() and (
        (folder / _CONFIG).is_file() or any(path.is_dir() for path in saved.glob("[0-9]*"))
    )


def _foreign(folder: pathlib.Path, names: list[str]) -> str:
    """Words for a folder that another program wrote; empty for an unknown one."""
    if "model_index.json" in names:
        return "it is a pipeline of diffusers"
    if "_CHECKPOINT_METADATA" in names or "_METADATA" in names or "manifest.ocdbt" in names:
        return "it is a checkpoint of Orbax that no run of this program has around it"
    if _CONFIG in names:
        try:
            saved = json.loads((folder / _CONFIG).read_bytes())
            if "model" in saved and "diffusion" in saved:
                return "it is the workdir of a run that has saved no checkpoint yet"
            name = saved.get("_class_name") or saved["architectures"][0]
        except (ValueError, LookupError, TypeError, AttributeError):
            return ""
        return f"it is a model of the class {name}"
    return ""
