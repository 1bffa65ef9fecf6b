"""The cache of compiled programs (folder, access rights, size), and the allocator's settings."""

import os
import subprocess
import sys

import pytest

import bigan_jax
from benchmarks import waiting
from bigan_jax.errors import UserError
from bigan_jax.runtime import jax_setup
from bigan_jax.runtime.jax_setup import keep_freed_memory
from tests.helpers.runs import ROOT

FOLDER = "JAX_COMPILATION_CACHE_DIR"
SMALL = (
    *("--data.image_size=32", "--data.phantom_normal=40", "--data.phantom_anomalous=5"),
    *("--model.latent=8", "--model.widths=(8,16)", "--phases.phase1.epochs=1"),
)


@pytest.fixture(autouse=True)
def clean_environment(tmp_path, monkeypatch):
    """An environment without JAX's variables, restored after the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (FOLDER, "JAX_ENABLE_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(name, "")  # so that changes are undone
        monkeypatch.delenv(name)


def mode(path):
    return path.stat().st_mode & 0o777


def program(folder, letter, length, used):
    """Writes a file with a name like those of JAX's programs."""
    path = folder / f"jit_f-{letter * 64}-cache"
    path.write_bytes(b"x" * length)
    os.utime(path, (used, used))
    return path


def test_default_folder_is_in_the_user_cache_and_private(tmp_path):
    jax_setup.enable_compilation_cache()
    folder = tmp_path / "cache" / "bigan_jax" / "programs"
    assert os.environ[FOLDER] == str(folder)
    assert mode(folder) == 0o700


def test_user_settings_are_respected(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, "/elsewhere")
    jax_setup.enable_compilation_cache()
    assert os.environ[FOLDER] == "/elsewhere" and not (tmp_path / "cache").exists()
    jax_setup.enable_compilation_cache(str(tmp_path / "named" / "deep"))
    assert os.environ[FOLDER] == str(tmp_path / "named" / "deep")
    assert mode(tmp_path / "named" / "deep") == 0o700


def test_off_disables_the_cache(tmp_path):
    jax_setup.enable_compilation_cache("off")
    assert FOLDER not in os.environ and not (tmp_path / "cache").exists()
    assert os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "false"


@pytest.mark.parametrize("bits", [0o770, 0o707, 0o777, 0o1777])
def test_folder_writable_by_others_is_not_used(tmp_path, bits):
    folder = tmp_path / "cache" / "bigan_jax" / "programs"
    folder.mkdir(parents=True)
    folder.chmod(bits)
    jax_setup.enable_compilation_cache()
    assert FOLDER not in os.environ
    with pytest.raises(UserError, match=f"others may write to it.*chmod 700 {folder}"):
        jax_setup.enable_compilation_cache(str(folder))


def test_folder_of_another_user_is_not_used(tmp_path, monkeypatch):
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.raises(UserError, match="belongs to another user"):
        jax_setup.enable_compilation_cache(str(tmp_path / "other"))


def test_unusable_folder_is_an_error_only_if_it_was_given(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    jax_setup.enable_compilation_cache()
    assert FOLDER not in os.environ
    with pytest.raises(UserError, match=r"--compilation_cache=.*Use another folder or 'off'"):
        jax_setup.enable_compilation_cache(str(tmp_path / "cache"))


def test_least_recently_used_programs_are_deleted(tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir(mode=0o700)
    other = folder / "thesis-cache"
    other.write_bytes(b"x" * 1000)
    old, read, new = (program(folder, c, 100, used) for c, used in (("a", 1), ("b", 2), ("c", 3)))
    os.utime(read, (4, 2))  # written second, read last
    jax_setup.enable_compilation_cache(str(folder), max_bytes=200)
    assert (old.exists(), read.exists(), new.exists()) == (False, True, True)
    jax_setup.enable_compilation_cache(str(folder), max_bytes=100)
    assert (read.exists(), new.exists(), other.exists()) == (True, False, True)


def test_only_the_command_enables_the_cache(tmp_path):
    """The command sets the folder before JAX compiles; importing the package does not."""
    script = (
        "import sys, bigan_jax\n"
        "from bigan_jax.commands import cli\n"
        "assert 'jax' not in sys.modules\n"
        "def train(*_):\n"
        "    import jax\n"
        "    print(jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache)\n"
        "bigan_jax.train = train\n"
        "cli.run()\n"
    )

    def printed(*arguments):
        command = [sys.executable, "-c", script, "--config=configs/cae.py", *arguments]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return result.stdout.splitlines()[-1].split()

    assert printed() == [str(tmp_path / "cache" / "bigan_jax" / "programs"), "True"]
    assert printed(f"--compilation_cache={tmp_path / 'here'}") == [str(tmp_path / "here"), "True"]
    assert printed("--compilation_cache=off") == ["None", "False"]
    script = "import bigan_jax.training, jax; print(jax.config.jax_compilation_cache_dir)"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.split() == ["None"]


def test_second_run_compiles_nothing(tmp_path):
    """Measured as in the benchmark, with a run too small to compare times."""
    cold, warm = (
        waiting.measure_case(name, ("train", "cae:phantom", *SMALL, "--workdir=RESULT"), tmp_path, tmp_path / "cache")
        for name in ("cold", "warm")
    )
    assert cold["compiled"] > 0 and warm["compiled"] == 0
    assert 0 < warm["import"] < warm["step"] < warm["result"]


# --- the allocator ---

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="requires glibc's allocator")
ALLOCATE_TWICE = """
import ctypes, resource, sys
from bigan_jax.runtime.jax_setup import keep_freed_memory

if "keep" in sys.argv and not keep_freed_memory():
    sys.exit("not glibc")
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
size = 256 * 2**20
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults_of_second_allocation(*arguments, **environment):
    result = subprocess.run(
        [sys.executable, "-c", ALLOCATE_TWICE, *arguments], capture_output=True, text=True, env=environment
    )
    if "not glibc" in result.stderr:
        pytest.skip("another C library")
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@on_linux
def test_freed_memory_is_reused_without_page_faults():
    assert page_faults_of_second_allocation("keep", PYTHONPATH=":".join(sys.path)) < 100
    assert page_faults_of_second_allocation(PYTHONPATH=":".join(sys.path)) > 100


@on_linux
def test_allocator_settings_of_the_user_are_kept(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()


@pytest.mark.parametrize("platform", ["tpu", "rocm"])
def test_missing_device_is_one_sentence(platform, tmp_path):
    """The remedy, JAX_PLATFORMS=cpu, is what all tests use."""
    arguments = ["--config=configs/fcae.py:phantom,quick", f"--workdir={tmp_path / 'run'}"]
    environment = os.environ | {"JAX_PLATFORMS": platform}
    command = [sys.executable, "launch.py", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"error: JAX_PLATFORMS={platform}: JAX finds no such device here." in result.stderr


def test_missing_device_is_a_user_error_of_the_python_api(tmp_path):
    code = f"""
import bigan_jax
from bigan_jax.configs import fcae
try:
    bigan_jax.train(fcae.get_config("phantom,quick"), {str(tmp_path / "run")!r})
except bigan_jax.UserError as error:
    print(error)
"""
    environment = os.environ | {"JAX_PLATFORMS": "tpu"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.startswith("JAX_PLATFORMS=tpu: JAX finds no such device here."), result.stderr


def test_only_a_missing_device_replaces_an_error(monkeypatch):
    @jax_setup.require_platforms
    def fail(error):
        raise error

    for problem, error, expected in (
        ("", RuntimeError("own"), "own"),
        ("missing", RuntimeError("own"), "missing"),
        ("missing", UserError("user's"), "user's"),
    ):
        monkeypatch.setattr(jax_setup, "unavailable_platforms", lambda problem=problem: problem)
        with pytest.raises(UserError if expected != "own" else RuntimeError, match=expected):
            fail(error)
    assert all(hasattr(f, "__wrapped__") for f in (bigan_jax.train, bigan_jax.evaluate, bigan_jax.load))
