import contextlib
import dataclasses
import hashlib
import http.server
import importlib
import json
import sys
import threading
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.interop.pth_files import write_weights
from tests.reference_weights import formula_weight, nhwc, read_golden
from uvit_jax.errors import UserError
from uvit_jax.interop import inception
from uvit_jax.interop.inception import NAME, SHA256, open_inception
from uvit_jax.models.frozen.inception import WIDTHS
from uvit_jax.models.frozen.resize import RESIZES

GOLDEN = {
    "pool2048": "pool2048",
    "spatial2023": "spatial2023",
    "logits1008": "logits_unbiased1008",
    "preaux768": "preaux768_mean",
    "block192": "block192_mean",
    "block64": "block64_mean",
}
FILE = "pt_inception-2015-12-05-6726825d.pth"


@pytest.fixture(scope="module")
def weights(golden_dir):
    """Formula weights under the published names."""
    keys = json.loads((golden_dir / "inception_keys.json").read_text())
    return {
        key: np.asarray(formula_weight(key, tuple(shape)), np.float32)
        for key, shape in keys.items()
    }


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    """Those weights as a file, and its hash."""
    return write(tmp_path_factory.mktemp("inception") / "weights.safetensors", weights)


@pytest.fixture(scope="module")
def opened(file):
    path, sha256 = file
    return open_inception(str(path), sha256=sha256)


@pytest.fixture(scope="module")
def features(opened):
    """All features of images of any size, through one compiled network."""
    names = tuple(WIDTHS)
    return jax.jit(lambda params, images: opened.features(params, images, names))


def test_a_web_page_or_a_pointer_in_place_of_the_weights_is_named(tmp_path):
    path = tmp_path / FILE
    for content, said in (
        (b"<html>Sign in", "is a web page"),
        (b"version https://git-lfs.github.com", "git-LFS"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"^{path} .*{said}"):
            open_inception(str(path))


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """An empty home, and nothing at the published address."""
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/weights.pth")
    return tmp_path / ".cache"


def write(path, weights):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
    return path, sha256_of(path)


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def served(content, monkeypatch, *, length=None):
    """Serves these bytes at the published address; returns the list of the requests."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(inception, "URL", f"http://127.0.0.1:{server.server_port}/{FILE}")
        yield asked
        server.shutdown()
        thread.join()


def test_features_equal_the_reference(golden_dir, opened, features):
    golden, _ = read_golden(golden_dir / "inception.safetensors")
    out = features(opened.params, nhwc(golden["input.32"]))
    assert {name: feature.shape for name, feature in out.items()} == {
        name: (2, width) for name, width in WIDTHS.items()
    }
    for name, key in GOLDEN.items():
        assert out[name].dtype == np.float32
        np.testing.assert_allclose(out[name], golden[f"{key}.32"], atol=2e-5, rtol=0, err_msg=name)


def test_features_of_an_image_of_the_networks_size_equal_the_reference(
    shared_golden_dir, opened, features
):
    golden, _ = read_golden(shared_golden_dir / "inception.safetensors")
    out = features(opened.params, nhwc(golden["input.299"]).astype(np.float32))
    for name in GOLDEN.keys() - {"spatial2023"}:
        np.testing.assert_allclose(
            out[name], golden[f"{GOLDEN[name]}.299"], atol=2e-5, rtol=0, err_msg=name
        )


@pytest.mark.slow
def test_bfloat16_is_near_float32(file, opened, features):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    half = open_inception(str(file[0]), dtype="bfloat16", sha256=file[1])
    expected = features(opened.params, images)
    out = jax.jit(lambda params: half.features(params, images, tuple(WIDTHS)))(half.params)
    for name, feature in out.items():
        assert feature.dtype == np.float32
        error = np.sqrt(np.mean((feature - expected[name]) ** 2) / np.mean(expected[name] ** 2))
        assert 1e-5 < error < 0.03, name


def test_what_was_opened_says_what_it_is(file, opened):
    path, sha256 = file
    assert (opened.name, opened.sha256, opened.published) == (str(path), sha256, False)
    assert (opened.resize, opened.dtype) == ("pytorch-fid", "float32")
    assert {leaf.dtype for leaf in jax.tree.leaves(opened.params)} == {np.dtype(np.float32)}
    with pytest.raises(UserError, match="feature is 'pool', expected one of 'pool2048'"):
        opened.features(opened.params, np.zeros((1, 8, 8, 3), np.uint8), ["pool"])


def test_resize_is_whose_way_images_are_resized(opened):
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3), dtype=np.uint8)

    def block64(params, resize):
        return dataclasses.replace(opened, resize=resize).features(params, images, ["block64"])[
            "block64"
        ]

    out = [
        np.asarray(jax.jit(block64, static_argnums=1)(opened.params, resize)) for resize in RESIZES
    ]
    assert len({array.tobytes() for array in out}) == len(RESIZES)


def test_weights_of_another_hash_are_refused_by_both_hashes(file):
    path, sha256 = file
    with pytest.raises(
        UserError,
        match=rf"{path} has the SHA-256 {sha256}, expected {SHA256}.*inception_sha256={sha256}",
    ):
        open_inception(str(path))
    with pytest.raises(
        UserError,
        match=rf"has the SHA-256 {sha256}, expected {SHA256} \(inception_sha",
    ):
        open_inception(str(path), sha256=SHA256)


def test_a_file_that_is_nowhere_is_refused(tmp_path):
    with pytest.raises(
        UserError,
        match=rf"there is no Inception-v3 weights file {tmp_path}/a.pth, expected .*{NAME}",
    ):
        open_inception(str(tmp_path / "a.pth"))


@pytest.mark.parametrize(("field", "value"), [("resize", "pil"), ("dtype", "float16")])
def test_another_way_or_dtype_is_refused_before_a_file_is_looked_for(field, value):
    with pytest.raises(UserError, match=f"{field} is '{value}', expected one of"):
        open_inception("nowhere.pth", **{field: value})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "Mixed_6b.branch7x7_2.conv.weight",
            None,
            r"1 missing \(first: Mixed_6b.branch7x7_2.conv.weight\)",
        ),
        (
            "AuxLogits.fc.weight",
            lambda _: np.ones(3, np.float32),
            r"1 unexpected \(first: AuxLogits.fc.weight\)",
        ),
        (
            "fc.weight",
            lambda a: a[:1000],
            r"fc.weight has shape \(1000, 2048\), expected \(1008, 2048\)",
        ),
        (
            "Mixed_6b.branch7x7_2.conv.weight",
            lambda a: a.swapaxes(2, 3),
            r"shape \(128, 128, 7, 1\), expected \(128, 12",
        ),
        (
            "Mixed_5b.branch1x1.bn.bias",
            lambda a: np.where(a > 0, a, np.nan),
            "bn.bias has [0-9]+ values NaN or infinite",
        ),
        (
            "Mixed_5b.branch1x1.bn.running_var",
            lambda a: -a,
            "running_var has the value -1.[0-9]*, expected variances",
        ),
    ],
)
def test_weights_of_another_network_are_refused_by_name(
    name, change, message, weights, tmp_path, monkeypatch
):
    changed = {key: array for key, array in weights.items() if key != name}
    if change is not None:
        changed[name] = np.ascontiguousarray(change(weights.get(name)))
    path, sha256 = write(tmp_path / "weights.safetensors", {})
    monkeypatch.setattr(
        inception, "read_arrays", lambda *_: changed
    )  # without 95 MB to and from the disk
    with pytest.raises(UserError, match=rf"^{path}: .*{message}"):
        open_inception(str(path), sha256=sha256)


def test_the_published_weights_are_downloaded_once(weights, opened, caches, tmp_path, monkeypatch):
    counters = {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.zeros((), np.float32)}
    published = write_weights(tmp_path / "weights.pth", {**weights, **counters})
    monkeypatch.setattr(inception, "SHA256", sha256_of(published))
    with served(published.read_bytes(), monkeypatch) as asked:
        first = open_inception()
        again = open_inception(NAME, resize="clean")
    assert asked == [f"/{FILE}"]
    assert [path.name for path in (caches / "uvit_jax").iterdir()] == [FILE]
    assert (first.name, first.published, again.published, again.resize) == (
        NAME,
        True,
        True,
        "clean",
    )
    jax.tree.map(np.testing.assert_array_equal, first.params, opened.params)


@pytest.mark.parametrize("content", [b"<html>Sign in</html>", b""])
@pytest.mark.parametrize("length", [None, 1000])
def test_a_wrong_download_is_refused_and_not_kept(content, length, caches, monkeypatch):
    with (
        served(content, monkeypatch, length=length),
        pytest.raises(
            UserError,
            match=rf"{FILE} gave {len(content)} bytes of the SHA-256 .*, expected {SHA256}: "
            rf"nothing was kept",
        ),
    ):
        open_inception(NAME)
    assert list((caches / "uvit_jax").iterdir()) == []


def test_offline_the_places_searched_and_the_address_are_named(caches):
    folders = f"{caches}/torch/hub/checkpoints and {caches}/uvit_jax"
    reason = r"can't be downloaded \(.*refused.*\), expected http://127.0.0.1:9/.* copied to"
    with pytest.raises(
        UserError, match=rf"{NAME} is not .* in {folders}\) and {reason} {caches}/uvit_jax/{FILE}"
    ):
        open_inception(NAME)


@pytest.mark.parametrize("file_name", [FILE, "weights-inception-2015-12-05-6726825d.pth"])
@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, ".cache/torch/hub/checkpoints"),
        ({"TORCH_HOME": "torch"}, "torch/hub/checkpoints"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/torch/hub/checkpoints"),
        ({}, ".cache/uvit_jax"),
        ({"XDG_CACHE_HOME": "xdg", "TORCH_HOME": "torch"}, "xdg/uvit_jax"),
    ],
)
def test_weights_that_another_program_downloaded_are_found(
    file_name, variables, folder, caches, tmp_path, monkeypatch
):
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    path = tmp_path / folder / file_name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not the published weights")
    with pytest.raises(
        UserError, match=rf"{path} has the SHA-256 {sha256_of(path)}, expected {SHA256}"
    ):
        open_inception(NAME)


@pytest.fixture
def reference(weights, tmp_path, monkeypatch):
    """torch-fidelity's network with the formula weights."""
    torch = pytest.importorskip("torch")
    # Its package imports torchvision for the data sets and networks that it also has.
    for name in ("", ".datasets", ".transforms", ".transforms.functional"):
        monkeypatch.setitem(
            sys.modules, f"torchvision{name}", types.ModuleType(f"torchvision{name}")
        )
    for name in ("CIFAR10", "CIFAR100", "STL10"):
        setattr(sys.modules["torchvision.datasets"], name, object)
    pytest.importorskip("torch_fidelity")
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    torch.save(
        {name: torch.from_numpy(array) for name, array in weights.items()}, tmp_path / "weights.pth"
    )
    names = ["64", "192", "768", "2048", "logits_unbiased"]
    return module.FeatureExtractorInceptionV3(
        "reference", names, feature_extractor_weights_path=str(tmp_path / "weights.pth")
    )


@pytest.mark.torch
@pytest.mark.parametrize("size", [(32, 32), (320, 400)])
def test_parity_with_torch_fidelity(size, opened, reference):
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(1).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    spatial = []
    reference.Mixed_6d.branch1x1.register_forward_hook(lambda *args: spatial.append(args[2]))
    with torch.no_grad():
        outputs = reference(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    names = ["block64", "block192", "preaux768", "pool2048", "logits1008"]
    expected = {name: output.numpy() for name, output in zip(names, outputs, strict=True)}
    expected["spatial2023"] = nhwc(spatial[0][:, :7].numpy()).reshape(2, -1)
    ours = dataclasses.replace(opened, resize="tf1")
    out = jax.jit(lambda params, images: ours.features(params, images, tuple(WIDTHS)))(
        ours.params, images
    )
    for name, feature in out.items():
        np.testing.assert_allclose(feature, expected[name], atol=1e-4, rtol=0, err_msg=name)


@pytest.mark.torch
def test_the_file_that_an_old_torch_wrote_is_read(weights, opened, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    read = open_inception(str(path), sha256=sha256_of(path).upper())
    jax.tree.map(np.testing.assert_array_equal, read.params, opened.params)
