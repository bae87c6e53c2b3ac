"""Pickles of checkpoints: what they hold beside tensors, and what hostile ones try."""

import argparse
import collections
import pathlib

import ml_dtypes
import numpy as np
import pytest

from tests.interop.pth_files import Named, Storage, TorchPickler, tensor, write_pth, write_tree
from tests.interop.test_torch_legacy_file import write_legacy
from uvit_jax.errors import UserError
from uvit_jax.interop import official, torch_pickle

WRITERS = {
    "zip": lambda path, tree, storages: write_pth(path, tree, storages),
    "legacy": lambda path, tree, storages: write_legacy(path, tree, storages),
}


class Built:
    """Pickles as an object whose state is set afterwards (the opcode BUILD)."""

    def __init__(self, inner, state):
        self.inner, self.state = inner, state

    def save(self, pickler):
        pickler.save(self.inner)
        pickler.save(self.state)
        pickler.write(b"b")


@pytest.fixture
def built(monkeypatch):
    save = TorchPickler.save

    def with_builds(self, obj, save_persistent_id=True):
        return obj.save(self) if isinstance(obj, Built) else save(self, obj, save_persistent_id)

    monkeypatch.setattr(TorchPickler, "save", with_builds)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_pickle_changes_no_object_that_others_use(tmp_path, built, kind):
    storage = Storage("0", np.arange(3, dtype=np.float32))
    w = tensor(storage, (3,), (1,))
    states = {
        "dtype": Built(Named("torch", "BFloat16Storage"), (3, "<", None, None, None, 1, 1, 0)),
        "function": Built(
            Named("torch._utils", "_rebuild_tensor_v2"), (None, {"__defaults__": (1,), "x": 2})
        ),
        "class": Built(Named("collections", "OrderedDict"), (None, {"x": 3})),
        "placeholder": Built(Named("argparse", "Namespace"), (None, {"__init__": 4})),
        "w": w,
    }
    before = dict(vars(torch_pickle._Placeholder)), dict(vars(torch_pickle._tensor))
    read = official.read_weights(WRITERS[kind](tmp_path / "w.pth", states, [storage]))
    assert read.keys() == {"w"}
    assert before == (dict(vars(torch_pickle._Placeholder)), dict(vars(torch_pickle._tensor)))
    assert torch_pickle._tensor.__defaults__ is None
    assert (np.ones(2, ml_dtypes.bfloat16) + 1).tolist() == [2, 2]


def test_a_state_dict_with_metadata_reads_as_its_arrays(tmp_path, built):
    storage = Storage("0", np.arange(3, dtype=np.float32))
    state = Built(
        collections.OrderedDict(w=tensor(storage, (3,), (1,))), {"_metadata": {"": {"version": 1}}}
    )
    read = official.read_weights(write_pth(tmp_path / "w.pth", state, [storage]))
    np.testing.assert_array_equal(read["w"], [0, 1, 2])


def test_what_training_saves_beside_weights_is_passed_over(tmp_path):
    scalar = Named(
        "numpy.core.multiarray", "scalar", Named("numpy", "dtype", "f8", False, True), b"12345678"
    )
    checkpoint = {
        "model": {"w": np.arange(3, dtype=np.float32)},
        "opt": {"state": {0: {"exp_avg": np.zeros(3, np.float32)}}, "param_groups": [{"lr": 1e-4}]},
        "args": argparse.Namespace(lr=1e-4, out=pathlib.PurePosixPath("runs")),
        "best": scalar,
        "device": Named("torch", "device", "cuda"),
        "callbacks": {
            Named("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): {
                "best": scalar
            }
        },
        "kinds": {"a", "b"},
        "epoch": 3,
    }
    read = official.read_weights(write_tree(tmp_path / "w.pt", checkpoint))
    assert read.keys() == {"w"}


def test_a_tensor_of_a_derived_class_is_one(tmp_path):
    storage = Storage("0", np.arange(3, dtype=np.float32))
    plain = tensor(storage, (3,), (1,))
    kind = Named("torch.nn.parameter", "Buffer")

    def derived(rebuild):
        return Named("torch._tensor", "_rebuild_from_type_v2", rebuild, kind, plain.arguments, {})

    tree = {"w": derived(Named("torch._utils", "_rebuild_tensor_v2"))}
    read = official.read_weights(write_pth(tmp_path / "w.pth", tree, [storage]))
    np.testing.assert_array_equal(read["w"], [0, 1, 2])
    with pytest.raises(UserError, match="is damaged"):
        official.read_weights(
            write_pth(tmp_path / "w.pth", {"w": derived(Named("collections", "OrderedDict"))})
        )


def test_a_whole_model_is_refused_and_its_state_dict_asked_for(tmp_path):
    path = write_pth(tmp_path / "w.pth", Named("libs.uvit", "UViT", ()))
    with pytest.raises(
        UserError, match=r"asks for libs\.uvit\.UViT, expected tensors alone: .*save the state_dict"
    ):
        official.read_weights(path)


def test_the_state_of_an_optimizer_is_named(tmp_path):
    state = {"state": {0: {"exp_avg": np.zeros(3, np.float32)}}, "param_groups": []}
    with pytest.raises(UserError, match="holds the state of an optimizer, expected a state dict"):
        official.read_weights(write_tree(tmp_path / "optimizer.pth", state))


def test_dictionaries_that_hold_themselves_end(tmp_path):
    tree: dict = {"epoch": 1}
    tree["self"] = tree
    with pytest.raises(UserError, match="expected a state dict"):
        official.read_weights(write_pth(tmp_path / "w.pth", tree))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.int64])
def test_every_dtype_comes_back_to_the_bit(tmp_path, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    read = official.read_weights(write_tree(tmp_path / "w.pth", {"w": array}))["w"]
    assert read.dtype == array.dtype
    assert read.tobytes() == array.tobytes()
