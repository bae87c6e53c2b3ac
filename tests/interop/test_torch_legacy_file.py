import collections
import pickle

import numpy as np
import pytest

from tests.interop.pth_files import Named, Storage, TorchPickler, as_torch, tensor
from uvit_jax.errors import UserError
from uvit_jax.interop.torch_legacy_file import is_legacy, read_legacy_tensors


class LegacyPickler(TorchPickler):
    def persistent_id(self, obj):
        pid = super().persistent_id(obj)
        return pid and (*pid, None)  # no view of another storage


def write_legacy(path, tree, storages, *, little_endian=True, count=None):
    """A file as torch.save wrote it before version 1.6."""
    with path.open("wb") as file:
        for value in (
            0x1950A86A20F9469CFC6C,
            1001,
            {"protocol_version": 1001, "little_endian": little_endian},
        ):
            pickle.dump(value, file, protocol=2)
        LegacyPickler(file, protocol=2).dump(tree)
        pickle.dump([storage.key for storage in storages], file, protocol=2)
        for storage in storages:
            file.write((storage.array.size if count is None else count).to_bytes(8, "little"))
            file.write(storage.array.tobytes())
    return path


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.standard_normal((3, 4), np.float32),
        "a.bias": rng.standard_normal(3, np.float32),
    }


@pytest.mark.parametrize(
    "wrap", [dict, collections.OrderedDict, lambda tree: {"state_dict": tree, "epoch": 3}]
)
def test_arrays_come_back_by_name(wrap, weights, tmp_path):
    tree, storages = as_torch(weights)
    path = write_legacy(tmp_path / "weights.pth", wrap(tree), storages)
    assert is_legacy(path)
    arrays = read_legacy_tensors(path)
    assert arrays.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_tensors_that_share_a_storage_are_views_of_it(tmp_path):
    storage = Storage("0", np.arange(12, dtype=np.float32))
    tree = {"transposed": tensor(storage, (4, 3), (1, 4)), "last": tensor(storage, (2,), (1,), 10)}
    arrays = read_legacy_tensors(write_legacy(tmp_path / "weights.pth", tree, [storage]))
    np.testing.assert_array_equal(arrays["transposed"], storage.array.reshape(3, 4).T)
    np.testing.assert_array_equal(arrays["last"], [10, 11])


def test_a_file_that_wants_code_run_is_refused(tmp_path):
    path = write_legacy(tmp_path / "weights.pth", {"a": Named("os", "system", "false")}, [])
    with pytest.raises(UserError, match=r"weights.pth asks for os.system, expected tensors alone"):
        read_legacy_tensors(path)


def test_a_file_cut_short_anywhere_is_refused(weights, tmp_path):
    path = write_legacy(tmp_path / "weights.pth", *as_torch(weights))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"weights\.pth"):
            read_legacy_tensors(path)


def test_a_view_beyond_its_storage_another_count_and_big_endian_bytes_are_refused(
    weights, tmp_path
):
    path = tmp_path / "weights.pth"
    storage = Storage("0", np.arange(12, dtype=np.float32))
    write_legacy(path, {"a": tensor(storage, (4, 4), (4, 1))}, [storage])
    with pytest.raises(UserError, match="beyond its storage of 12"):
        read_legacy_tensors(path)
    write_legacy(path, *as_torch(weights), count=11)
    with pytest.raises(UserError, match=r"weights\.pth is damaged"):
        read_legacy_tensors(path)
    write_legacy(path, *as_torch(weights), little_endian=False)
    with pytest.raises(UserError, match="big-endian machine, expected little-endian"):
        read_legacy_tensors(path)


@pytest.mark.parametrize("saved", [3, [1, 2], {}, {"epoch": 3}])
def test_a_file_without_a_state_dict_is_refused(saved, tmp_path):
    with pytest.raises(UserError, match="expected a state dict: names and their tensors"):
        read_legacy_tensors(write_legacy(tmp_path / "weights.pth", saved, []))


def test_a_zip_file_is_of_the_newer_kind(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"PK\x03\x04")
    assert not is_legacy(tmp_path / "weights.pth")


@pytest.mark.torch
def test_what_torch_writes_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    state = {
        "weight": torch.randn(3, 4).T,
        "parameter": torch.nn.Parameter(torch.randn(5)),
        "count": torch.tensor(3),
        "half": torch.randn(2).half(),
    }
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    assert is_legacy(tmp_path / "weights.pth")
    arrays = read_legacy_tensors(tmp_path / "weights.pth")
    assert arrays.keys() == state.keys()
    for name, array in arrays.items():
        expected = state[name].detach().numpy()
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
