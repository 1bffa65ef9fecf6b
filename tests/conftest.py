"""Set-up of all tests: four simulated CPU devices, a persistent compilation cache, and a temporary
folder of prepared data."""

import atexit
import gc
import importlib
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile far more than they compute. With fewer optimizations they take half the time.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)

# JAX reads these when it is imported, here and in the commands that tests run.
CACHE = Path(tempfile.gettempdir()) / "bigan_jax-test-compilations"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp(prefix="bigan_jax-test-data-")
atexit.register(shutil.rmtree, os.environ["TFDS_DATA_DIR"], ignore_errors=True)

import jax  # noqa: E402  reads the variables above
import pytest  # noqa: E402

# The hook that adds type checks to the package does not find the bytecode of libraries that the package's
# modules are the first to import, and Python compiles thousands of files.
for library in ("flax.linen", "matplotlib.figure", "optax", "orbax.checkpoint", "scipy.stats", "sklearn.linear_model"):
    importlib.import_module(library)


def pytest_collection_finish():
    """Leaves the imported modules, over a million objects, out of all garbage collections."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def clear_compiled_programs():
    """Clears them after each module. Those of all tests exceed the number of memory maps that Linux
    allows a process (65,530 by default), and LLVM crashes."""
    yield
    jax.clear_caches()


@pytest.fixture
def compilations():
    """Returns the number of programs that were compiled so far."""
    events = Counter()

    def listen(name, _, **__):
        events.update([name])

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield lambda: events["/jax/core/compile/backend_compile_duration"]
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def weights():
    """VGG16 weights of the installed package."""
    from bigan_jax.nn.vgg16 import formats
    from tests.helpers.weight_files import package_file

    return formats.read(package_file())
