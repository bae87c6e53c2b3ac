"""The published Inception-v3 of FID as pure functions of its parameters, found or downloaded."""

import dataclasses
import functools
import hashlib
import http.client
import os
import pathlib
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float

from uvit_jax.errors import UserError, check_choice
from uvit_jax.files import atomic_write
from uvit_jax.fingerprints import sha256_of_file
from uvit_jax.interop.file_kinds import check_content
from uvit_jax.interop.state_dict import StateDict, check_names, checked_array
from uvit_jax.interop.weights_file import read_arrays
from uvit_jax.models.frozen.inception import BATCH_NORM_EPS, WIDTHS, Images, Inception, preprocess
from uvit_jax.models.frozen.resize import RESIZES
from uvit_jax.models.init_keys import InitKeys
from uvit_jax.models.uvit_config import DTYPES

NAME = "pt_inception-2015-12-05"
URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
# What pytorch-fid and torch-fidelity call the same file.
_FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
_ANCHORS = ("Conv2d_1a_3x3.conv.weight",)
_SECONDS = 30.0  # to wait for the next bytes before the machine counts as offline
_CHUNK = 2**20


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class InceptionWeights:
    """An Inception-v3, as pure functions of its parameters.

    Attributes:
      name: the name it was opened by.
      sha256: of the file of weights.
      published: True if that is the published file; only then is a distance called FID.
      resize: the library whose resizing of images is used (`preprocess`).
      dtype: dtype of the convolutions.
      params: float32 NumPy arrays in nested dicts, a plain tree.
      graphdef: the network: `nnx.merge(graphdef, params)` is the model.
    """

    name: str
    sha256: str
    published: bool
    resize: str
    dtype: str
    params: dict[str, Any] = dataclasses.field(repr=False)
    graphdef: nnx.GraphDef = dataclasses.field(repr=False)

    def features(
        self, params: Any, images: Images, names: Sequence[str]
    ) -> dict[str, Float[Array, "b d"]]:
        """These features of images, float32, by name.

        Under `jit` the other features cost nothing.

        Args:
          params: as the attribute.
          images: `[b, h, w, 3]` or `[b, h, w, 1]` (grey) of any size, uint8 or in [0, 1].
          names: of `WIDTHS`, which says how wide each is.

        Raises:
          UserError: for another name, or another number of channels.
        """
        for name in names:
            check_choice("feature", name, tuple(WIDTHS))
        outputs = nnx.merge(self.graphdef, params)(preprocess(images, self.resize))
        return {name: outputs[name] for name in names}


def open_inception(
    name: str = NAME, *, dtype: str = "float32", resize: str = "pytorch-fid", sha256: str = ""
) -> InceptionWeights:
    """The Inception-v3 of this name.

    Args:
      name: a path of a `.pth` or `.safetensors` file, or "pt_inception-2015-12-05", the published
        weights: looked for in torch hub's cache (`TORCH_HOME`) and in ours (`XDG_CACHE_HOME`), else
        downloaded into ours.
      dtype: dtype of the convolutions, "float32" or "bfloat16"; parameters and features are
        float32.
      resize: the library whose resizing of images is used (`preprocess`).
      sha256: of the file, where it is another one than the published weights.

    Raises:
      UserError: for a file that is nowhere and can't be downloaded, one of another SHA-256 than the
        published one (or `sha256`), or weights of another network.
    """
    check_choice("dtype", dtype, DTYPES)
    check_choice("resize", resize, tuple(RESIZES))
    path = _published() if name == NAME else pathlib.Path(os.path.expanduser(name))
    found = _sha256_of(path)
    _check_sha256(path, found, sha256.lower())
    state_dict = read_arrays(path, _ANCHORS)
    graphdef, shapes = _network(dtype)
    try:
        params = _params(state_dict, shapes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return InceptionWeights(
        name=name,
        sha256=found,
        published=found == SHA256,
        resize=resize,
        dtype=dtype,
        params=params,
        graphdef=graphdef,
    )


@functools.cache
def _network(dtype: str) -> tuple[nnx.GraphDef, dict[tuple[Any, ...], tuple[int, ...]]]:
    """The network without its arrays, and their shapes by path."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Inception(dtype, rngs=InitKeys(0))))
    return graphdef, {path: leaf.shape for path, leaf in nnx.to_flat_state(state)}


def _check_sha256(path: pathlib.Path, found: str, wanted: str) -> None:
    if wanted and found != wanted:
        raise UserError(f"{path} has the SHA-256 {found}, expected {wanted} (inception_sha256)")
    if not wanted and found != SHA256:
        raise UserError(
            f"{path} has the SHA-256 {found}, expected {SHA256}, the published weights'; set "
            f"inception_sha256={found} to use it anyway, but its distance is not called FID"
        )


def _params(
    state_dict: StateDict, shapes: dict[tuple[Any, ...], tuple[int, ...]]
) -> dict[str, Any]:
    """The published arrays in our layout, float32, BatchNorm folded into the convolutions.

    shapes: ours, by path.
    """
    state_dict = {
        name: array
        for name, array in state_dict.items()
        if not name.endswith(".num_batches_tracked")
    }
    layers = {path[:-2]: shape for path, shape in shapes.items() if path[-2:] == ("conv", "kernel")}
    layouts = {path: _published_shapes(path, shape) for path, shape in layers.items()}
    classes = shapes["fc", "kernel"][::-1]
    expected = {name: shape for layout in layouts.values() for name, shape in layout.items()}
    expected |= {"fc.weight": classes, "fc.bias": classes[:1]}
    check_names(state_dict, expected, "the weights are not those of FID's Inception-v3")
    for name, shape in expected.items():
        _check_array(name, state_dict[name], shape)
    arrays: dict[tuple[Any, ...], np.ndarray] = {
        ("fc", "kernel"): np.asarray(state_dict["fc.weight"], np.float32).T
    }
    for path, layout in layouts.items():
        folded = _fold(*(np.asarray(state_dict[name], np.float64) for name in layout))
        arrays |= {(*path, "conv", leaf): array for leaf, array in folded.items()}
    return unflatten_dict(arrays)


def _published_shapes(path: tuple[Any, ...], kernel: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of the published arrays of one convolution, in the order that `_fold` takes them."""
    h, w, c_in, c_out = kernel
    name = ".".join(path).capitalize()  # mixed_5b.branch1x1 is Mixed_5b.branch1x1
    norm = ("weight", "bias", "running_mean", "running_var")
    return {
        f"{name}.conv.weight": (c_out, c_in, h, w),
        **{f"{name}.bn.{leaf}": (c_out,) for leaf in norm},
    }


def _fold(
    weight: np.ndarray, gain: np.ndarray, bias: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> dict[str, np.ndarray]:
    """One convolution with a bias, float32, for gain (conv(x) - mean) / sqrt(var + eps) + bias."""
    scale = gain / np.sqrt(variance + BATCH_NORM_EPS)
    kernel = weight.transpose(2, 3, 1, 0) * scale
    return {"kernel": kernel.astype(np.float32), "bias": (bias - mean * scale).astype(np.float32)}


def _check_array(name: str, value: Any, shape: tuple[int, ...]) -> None:
    array = checked_array(name, value, shape)
    if name.endswith(".running_var") and array.min() < 0:
        raise UserError(f"{name} has the value {array.min()}, expected variances, 0 or more")


def _sha256_of(path: pathlib.Path) -> str:
    if not path.is_file():
        raise UserError(
            f"there is no Inception-v3 weights file {path.absolute()}, expected a path or {NAME!r}"
        )
    check_content(path)  # a web page is refused as one, not by its hash
    return sha256_of_file(path)


def _published() -> pathlib.Path:
    """The published file in one of the caches, downloaded where it is in none."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    torch_home = os.environ.get("TORCH_HOME") or f"{cache}/torch"
    folders = [
        pathlib.Path(os.path.expanduser(folder))
        for folder in (f"{torch_home}/hub/checkpoints", cache)
    ]
    folders[1] /= "uvit_jax"
    for folder in folders:
        for file in _FILES:
            if (folder / file).is_file():
                return folder / file
    path = folders[1] / _FILES[0]
    try:
        _download(path)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"{NAME} is not on this machine (looked for {' and '.join(_FILES)} in "
            f"{' and '.join(map(str, folders))}) and can't be downloaded ({error}), expected {URL} "
            f"copied to {path}"
        ) from None
    return path


def _download(path: pathlib.Path) -> None:
    """Writes the published file, whole and of the right hash or not at all."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(URL, timeout=_SECONDS) as response, atomic_write(path) as file:
        while chunk := response.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != SHA256:
            raise UserError(
                f"{URL} gave {file.tell()} bytes of the SHA-256 {digest.hexdigest()}, expected "
                f"{SHA256}: nothing was kept; try again, or copy the file there by hand"
            )
