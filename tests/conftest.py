"""What every test starts from: four simulated CPU devices, a compilation cache that lasts, and a
place for prepared data that does not."""

import atexit
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests compile far more than they compute: less optimized, that takes half the time.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)

# Read when JAX is imported, here and in the commands that tests run.
CACHE = Path(tempfile.gettempdir()) / "bigan_jax-test-compilations"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp(prefix="bigan_jax-test-data-")
atexit.register(shutil.rmtree, os.environ["TFDS_DATA_DIR"], ignore_errors=True)

import jax  # noqa: E402  reads what is set above
import pytest  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def programs_go_with_their_module():
    """A process that kept the programs of all tests would come to the most memory maps that Linux
    gives one (65,530 by default), where LLVM crashes."""
    yield
    jax.clear_caches()


@pytest.fixture
def compilations():
    """How many programs were compiled so far."""
    seen = Counter()

    def listen(name, _, **__):
        seen.update([name])

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield lambda: seen["/jax/core/compile/backend_compile_duration"]
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def weights():
    """VGG16's, as the installed package has them."""
    from bigan_jax.nn.vgg16 import formats
    from tests.helpers.weight_files import package_file  # only where they are asked for

    return formats.read(package_file())
