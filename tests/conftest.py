"""Shape-checks every annotated function of the package while the tests run, and finds the golden
numbers.
"""

import os
import pathlib
import tempfile

# Two workers on two cores: more threads only wait for each other. Read when NumPy is first
# imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from jaxtyping import install_import_hook

install_import_hook("uvit_jax", "beartype.beartype")

import jax  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")
# Several tests run the same small job: its programs are compiled once a session, for all of its
# workers.
SESSION = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"{os.getpid()}")
jax.config.update(
    "jax_compilation_cache_dir", str(pathlib.Path(tempfile.gettempdir(), f"uvit_jax_xla_{SESSION}"))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

TESTS = pathlib.Path(__file__).parent
SHARED = pathlib.Path(os.environ.get("UVIT_JAX_SHARED", TESTS.parent.parent / "shared"))


@pytest.fixture(scope="session")
def golden_dir() -> pathlib.Path:
    """The small golden files that travel with the repository."""
    return TESTS / "golden"


@pytest.fixture(scope="session")
def shared_golden_dir() -> pathlib.Path:
    """The golden files too large to commit; tests that need them skip where they are absent."""
    path = SHARED / "golden"
    if not path.is_dir():
        pytest.skip(
            f"no golden files at {path} (set UVIT_JAX_SHARED to the folder that holds golden/)"
        )
    return path
