import hashlib
import json

import numpy as np
import pytest

from uvit_jax.fingerprints import sha256_of_arrays, sha256_of_file, sha256_of_json


def test_a_file_s_hash_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(OSError, match="No such file"):
        sha256_of_file(tmp_path / "gone")


def test_the_hash_of_json_knows_no_order_of_keys():
    value = {"b": [1, {"z": None, "a": "é"}], "a": 0.5}
    expected = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    assert sha256_of_json(value) == expected
    assert sha256_of_json({"a": 0.5, "b": [1, {"a": "é", "z": None}]}) == expected
    assert sha256_of_json({"a": 0.5, "b": [{"a": "é", "z": None}, 1]}) != expected


def test_the_hash_of_arrays_is_that_of_names_shapes_and_float32_values():
    arrays = {"a.kernel": np.arange(6, dtype=np.float16).reshape(2, 3).T, "b": np.ones(2)}
    content = (
        b"head"
        + b"a.kernel (3, 2)\n"
        + np.array([0, 3, 1, 4, 2, 5], "<f4").tobytes()
        + b"b (2,)\n"
        + np.ones(2, "<f4").tobytes()
    )
    expected = hashlib.sha256(content).hexdigest()
    assert sha256_of_arrays(iter(arrays.items()), "head") == expected
    others = (
        {"a.kernel": arrays["a.kernel"]},
        arrays | {"b": np.zeros(2)},
        arrays | {"b": np.ones((2, 1))},
        {"a": arrays["a.kernel"], "b": arrays["b"]},
    )
    assert all(sha256_of_arrays(other.items(), "head") != expected for other in others)
    assert sha256_of_arrays(arrays.items()) != expected
