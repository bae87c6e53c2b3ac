"""Shape-checks every annotated function of the package while the tests run, and finds the golden
numbers.
"""

import atexit
import gc
import importlib.metadata
import logging
import os
import pathlib
import random
import shutil
import sys
import tempfile

# JAX and NumPy read these when they are first imported; workers and the processes that tests start
# inherit them.
ENVIRONMENT = {
    # Two workers on two cores: more threads only wait for each other.
    "OPENBLAS_NUM_THREADS": "1",
    # Most of a test's time is compilation, and small programs gain nothing from LLVM's
    # optimizations, nor from XLA's newer code generator for CPUs, which takes twice as long as the
    # one that jaxlib 0.10 still has. The package's own options stay as users have them, and the
    # slow group is compiled as users have it.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if importlib.metadata.version("jaxlib").startswith("0.10.")
    else "",
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
}
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
# Every process that a test starts would compile the source of its 2,000 modules again, for 10 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Several tests run the same small job: its programs are compiled once a session, for all of
    # its workers and processes. Name a folder to keep them for the next session.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="uvit_jax_xla_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("uvit_jax", "beartype.beartype")

TESTS = pathlib.Path(__file__).parent
SHARED = pathlib.Path(os.environ.get("UVIT_JAX_SHARED", TESTS.parent.parent / "shared"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Lets Python look for cycles rarely: the many objects of traced programs live as long as the
    session, and to go through them again and again was 15 % of the session's time. Not in the slow
    group, whose full-size models must go as soon as they can.
    """
    if session.config.option.markexpr != "slow":
        gc.collect()
        gc.freeze()
        gc.set_threshold(200_000, 20, 20)


@pytest.fixture(autouse=True)
def package_logger() -> None:
    """Gives each test the package's log as it is before a command line has run in the process."""
    logger = logging.getLogger("uvit_jax")
    logger.setLevel(logging.NOTSET)
    logger.propagate, logger.handlers[:] = True, []


@pytest.fixture(autouse=True)
def checked_elements() -> None:
    """Lets beartype, which checks one element of a tuple or list by chance, choose the same one
    each time the test runs."""
    random.seed(0)


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
