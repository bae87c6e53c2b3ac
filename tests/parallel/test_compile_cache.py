import pathlib

import jax
import pytest

from uvit_jax.parallel.compile_cache import keep_compiled_programs


@pytest.fixture
def no_folder():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_for_accelerators_are_kept_in_the_users_cache(no_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert (
        keep_compiled_programs({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "uvit_jax" / "xla"
    )
    assert pathlib.Path(jax.config.jax_compilation_cache_dir) == tmp_path / "uvit_jax" / "xla"


def test_a_folder_that_is_named_already_stays_and_a_cpu_keeps_nothing(
    no_folder, monkeypatch, tmp_path
):
    assert keep_compiled_programs({}) is None
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert keep_compiled_programs({}) is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
