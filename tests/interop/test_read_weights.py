import json
import os
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.interop.pth_files import Named, Storage, as_torch, tensor, write_pth
from tests.reference_weights import uvit_weights
from uvit_jax.errors import UserError
from uvit_jax.interop import official
from uvit_jax.models.uvit import UViTConfig

CONFIG = UViTConfig(image_size=4, in_channels=1, embed_dim=8, depth=3, num_heads=2, num_classes=4)


def test_a_pth_and_a_safetensors_file_give_the_same_bits(tmp_path):
    weights = {name: np.ascontiguousarray(array) for name, array in uvit_weights(CONFIG).items()}
    save_file(weights, tmp_path / "weights.safetensors")
    write_pth(tmp_path / "weights.pth", *as_torch(weights))
    for name in ("weights.safetensors", "weights.pth"):
        read = official.read_weights(tmp_path / name)
        assert read.keys() == weights.keys()
        assert all(read[key].tobytes() == weights[key].tobytes() for key in weights)
        assert official.dump(official.load(read, CONFIG)).keys() == weights.keys()


def test_views_of_a_shared_storage_come_out_right(tmp_path):
    storage = Storage("0", np.arange(24, dtype=np.float32))
    tree = {
        "state_dict": {
            "part": tensor(storage, (2, 3), (3, 1), offset=6),
            "turned": tensor(storage, (6, 4), (1, 6)),
        }
    }
    read = official.read_weights(write_pth(tmp_path / "a.pth", tree, [storage]))
    np.testing.assert_array_equal(read["part"], np.arange(24).reshape(4, 2, 3)[1])
    np.testing.assert_array_equal(read["turned"], np.arange(24).reshape(4, 6).T)


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    tree = {"w": Named("os", "system", f"touch {tmp_path}/ran")}
    with pytest.raises(UserError, match=r"asks for os\.system, expected tensors alone"):
        official.read_weights(write_pth(tmp_path / "evil.pth", tree))
    assert not os.path.exists(tmp_path / "ran")


@pytest.mark.parametrize("name", ["getattr", "eval", "__import__"])
def test_builtins_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=f"asks for builtins.{name}"):
        official.read_weights(write_pth(tmp_path / "evil.pth", {"w": Named("builtins", name, "1")}))


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    storage = Storage("0", np.arange(6, dtype=np.float32))
    for bad in (
        tensor(storage, (10**15,), (0,)),
        tensor(storage, (3, 3), (3, 1)),
        tensor(storage, (2,), (1,), offset=5),
        tensor(storage, (2,), (-1,), 3),
    ):
        with pytest.raises(UserError, match=r"a\.pth is damaged"):
            official.read_weights(write_pth(tmp_path / "a.pth", {"w": bad}, [storage]))


def test_damaged_missing_and_foreign_files_are_named(tmp_path):
    storage = Storage("0", np.arange(6, dtype=np.float32))
    cut = write_pth(tmp_path / "cut.pth", {"w": tensor(storage, (6,), (1,))}, [storage], truncate=4)
    with pytest.raises(UserError, match="storage 0 has 20 bytes, expected 6 float32"):
        official.read_weights(cut)
    (tmp_path / "text.pth").write_text("no zip")
    with pytest.raises(UserError, match=r"text\.pth can't be read .* torch\.save"):
        official.read_weights(tmp_path / "text.pth")
    (tmp_path / "short.safetensors").write_bytes(struct.pack("<Q", 1000) + b"{}")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        official.read_weights(tmp_path / "short.safetensors")
    with pytest.raises(UserError, match="holds dict, expected a state dict"):
        official.read_weights(write_pth(tmp_path / "numbers.pth", {"step": 3}))
    with pytest.raises(UserError, match="there is no weights file"):
        official.read_weights(tmp_path / "absent.pth")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match=r"can't be read \(it is a PNG image\): expected weights"):
        official.read_weights(tmp_path / "a.png")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x05\x96"
        + struct.pack("<Q", 2**62)
        + b".",  # a bytearray of more bytes than there is memory
        b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b".",  # bytes of more than there are addresses
    ],
    ids=["memory", "addresses"],
)
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # CPython's, of the bytearray
def test_a_pickle_damaged_to_ask_for_all_memory_is_named(tmp_path, data):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("weights/data.pkl", data)
    with pytest.raises(
        UserError, match=r"a\.pth is damaged \(.+\), expected a file that torch\.save wrote$"
    ):
        official.read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_weights_of_8_bits_are_refused_by_their_name(tmp_path, dtype):
    fields = {"w": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}}
    header = json.dumps(fields).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    said = rf"a\.safetensors holds w in {dtype}, expected float32, float16 or bfloat16$"
    with pytest.raises(UserError, match=said):
        official.read_weights(tmp_path / "a.safetensors")


@pytest.mark.torch
def test_what_torch_saves_is_read_to_the_bit(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(4, 6)
    saved = {
        "view": base[1:3].T,
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "long": base.long(),
        "bool": base > 3,
        "scalar": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(base),
    }
    torch.save(saved, tmp_path / "w.pth")
    read = official.read_weights(tmp_path / "w.pth")
    assert read.keys() == saved.keys()
    for name, value in saved.items():
        np.testing.assert_array_equal(
            read[name].astype(np.float64), value.detach().double().numpy(), err_msg=name
        )
    assert str(read["bfloat16"].dtype) == "bfloat16"
