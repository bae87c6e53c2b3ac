import importlib.util

import pytest

from uvit_jax.parallel import gpu_memory

NAME = "XLA_PYTHON_CLIENT_ALLOCATOR"


@pytest.fixture
def installed(monkeypatch):
    found = set()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in found else None)
    return found


def test_cuda_gives_out_memory_where_its_backend_is_installed(installed):
    environ = {}
    gpu_memory.use_cuda_allocator(environ)
    assert NAME not in environ
    installed.add("jax_cuda13_plugin")
    gpu_memory.use_cuda_allocator(environ)
    assert environ[NAME] == "cuda_async"


def test_an_allocator_that_is_named_already_stays(installed):
    installed.add("jax_cuda12_plugin")
    environ = {NAME: "bfc"}
    gpu_memory.use_cuda_allocator(environ)
    assert environ == {NAME: "bfc"}
