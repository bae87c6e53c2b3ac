import gzip
import io
import json
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.interop.pth_files import as_torch, write_pth
from uvit_jax.errors import UserError
from uvit_jax.interop import official
from uvit_jax.interop.file_kinds import check_content, weights_kind

WEIGHTS = {"a": np.arange(300, dtype=np.float32), "b": np.ones((2, 3), np.float32)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:6726\nsize 1149112960\n"
# What Google Drive sends for a large file.
DRIVE = (
    b'<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title><style nonce="x">'
)


def zipped(**entries: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "/"), content)
    return data.getvalue()


def tarred() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("nnet.pth"), io.BytesIO())
    return data.getvalue()


def npz() -> bytes:
    data = io.BytesIO()
    np.savez(data, mu=np.zeros(2))
    return data.getvalue()


KINDS = {
    "an empty file": (b"", r"is empty \(0 bytes\): download or copy it again"),
    "zeros": (bytes(5000), "begins with 4096 zeros, as a download that broke off does: download"),
    "a git-LFS pointer": (
        POINTER,
        r"is a git-LFS pointer to 1,149,112,960 bytes, not the file itself: run `git lfs pull`",
    ),
    "a web page of Google Drive": (
        DRIVE,
        r"is a web page \('Google Drive - Virus scan warning'\).*download it in a browser or with "
        r"gdown",
    ),
    "a web page": (b"\n <HTML><body>404", "is a web page, which a server sent instead of the file"),
    "a web page in XHTML": (b'<?xml version="1.0"?>\n<!DOCTYPE html><html>', "is a web page"),
    "an XML message": (
        b'<?xml version="1.0"?><Error><Code>NoSuchKey',
        r"is an XML message of a server \('<\?xml .*NoSuchKey'\)",
    ),
    "JSON": (
        b'{"error": "Invalid username"}',
        r"""it is JSON that begins '{"error": "Invalid username"}'""",
    ),
    "text": (b"Access denied\n", "it is text that begins 'Access denied'"),
    "gzip": (
        gzip.compress(b"x"),
        "it is a gzip archive.*: unpack it and name the weights file inside",
    ),
    "tar": (tarred(), "it is a tar archive.*: unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00", "it is a 7z archive"),
    "a zip archive": (
        zipped(**{"dir__nnet.pth": b""}),
        r"is a zip archive of dir/nnet\.pth, not one of torch\.save's: unpack it",
    ),
    "npz": (npz(), r"is an \.npz of NumPy arrays \(mu\.npy\): expected the weights alone"),
    "TorchScript": (
        zipped(**{"m__data.pkl": b"", "m__constants.pkl": b""}),
        "is a TorchScript archive, which holds code",
    ),
    "MessagePack": (b"\x81\xa6params\x83\xa5kernel", "it is MessagePack"),
    "a pickle": (
        b"\x80\x04\x95\x00",
        "it is a pickle that torch.save didn't write.*: it was not opened",
    ),
    "ONNX": (b"\x08\x07\x12\x07pytorch\x1a", "it is an ONNX file"),
    "npy": (b"\x93NUMPY\x01\x00", "it is a NumPy array"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file"),
    "unknown bytes": (b"\x03\x01\x02\xff", r"its first bytes 03 01 02 ff\): expected weights"),
}


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin", "w"])
@pytest.mark.parametrize(("content", "said"), KINDS.values(), ids=KINDS)
def test_what_is_not_weights_is_named_by_its_content(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as refused:
        official.read_weights(tmp_path / name)
    assert str(refused.value).startswith(f"{tmp_path / name} ")
    assert "\n" not in str(refused.value)


def test_a_kind_is_found_whatever_the_suffix(tmp_path):
    save_file(WEIGHTS, tmp_path / "w.pth")
    write_pth(tmp_path / "w.safetensors", *as_torch(WEIGHTS))
    assert weights_kind(tmp_path / "w.pth") == "safetensors"
    assert weights_kind(tmp_path / "w.safetensors") == "torch"
    for name in ("w.pth", "w.safetensors"):
        read = official.read_weights(tmp_path / name)
        assert all(np.array_equal(read[key], WEIGHTS[key]) for key in WEIGHTS)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_download_that_broke_off_anywhere_is_refused_as_one(tmp_path, suffix):
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        write_pth(path, *as_torch(WEIGHTS))
    else:
        save_file(WEIGHTS, path)
    whole = path.read_bytes()
    for length in range(12, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(
            UserError, match=r"a download that broke off, download or copy it again$"
        ):
            official.read_weights(path)


def test_a_header_that_no_library_reads_is_left_to_it(tmp_path):
    for header in (b"{", b'{"a": 3}', b"{" * 2000):
        (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(UserError, match="not a whole safetensors file"):
            official.read_weights(tmp_path / "w.safetensors")


def test_shapes_beyond_all_memory_are_refused(tmp_path):
    header = json.dumps(
        {"b": {"dtype": "F32", "shape": [1, 0, 2**63], "data_offsets": [0, 0]}}
    ).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        official.read_weights(tmp_path / "w.safetensors")


def test_folders_and_absent_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="is a folder, expected a file of weights"):
        weights_kind(tmp_path)
    with pytest.raises(UserError, match=r"there is no weights file .*w\.pth"):
        weights_kind(tmp_path / "w.pth")


def test_other_files_are_looked_at_for_what_downloads_become(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"a": 1}')
    assert check_content(tmp_path / "config.json") == b'{"a": 1}'
    (tmp_path / "config.json").write_bytes(POINTER)
    with pytest.raises(UserError, match="git-LFS pointer"):
        check_content(tmp_path / "config.json")
