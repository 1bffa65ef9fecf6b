"""Compiled programs are kept for the next run: where, how safely, how much of them."""

import os
import subprocess
import sys

import pytest

from benchmarks import startup
from bigan_jax.errors import UserError
from bigan_jax.runtime import jax_setup
from tests.helpers.runs import ROOT

FOLDER = "JAX_COMPILATION_CACHE_DIR"
SMALL = (
    *("--config=configs/cae.py:phantom", "--config.data.image_size=32"),
    *("--config.data.phantom_normal=40", "--config.data.phantom_anomalous=5"),
    *("--config.model.latent=8", "--config.model.widths=(8,16)", "--config.phases.phase1.epochs=1"),
)


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """An environment in which nothing is set, put back at the end."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (
        FOLDER,
        "JAX_ENABLE_COMPILATION_CACHE",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    ):
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)


def mode(path):
    return path.stat().st_mode & 0o777


def program(folder, letter, length, used):
    """A file named as JAX names its own."""
    path = folder / f"jit_f-{letter * 64}-cache"
    path.write_bytes(b"x" * length)
    os.utime(path, (used, used))
    return path


def test_programs_go_to_the_user_s_cache_which_is_the_user_s_alone(tmp_path):
    jax_setup.enable_compilation_cache()
    folder = tmp_path / "cache" / "bigan_jax" / "programs"
    assert os.environ[FOLDER] == str(folder)
    assert mode(folder) == 0o700


def test_what_the_user_said_holds(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, "/elsewhere")
    jax_setup.enable_compilation_cache()
    assert os.environ[FOLDER] == "/elsewhere" and not (tmp_path / "cache").exists()
    jax_setup.enable_compilation_cache(str(tmp_path / "named" / "deep"))
    assert os.environ[FOLDER] == str(tmp_path / "named" / "deep")
    assert mode(tmp_path / "named" / "deep") == 0o700


def test_none_are_kept_where_that_is_asked(tmp_path):
    jax_setup.enable_compilation_cache("off")
    assert FOLDER not in os.environ and not (tmp_path / "cache").exists()
    assert os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "false"


@pytest.mark.parametrize("bits", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_where_others_may_write_is_not_trusted(tmp_path, bits):
    folder = tmp_path / "cache" / "bigan_jax" / "programs"
    folder.mkdir(parents=True)
    folder.chmod(bits)
    jax_setup.enable_compilation_cache()
    assert FOLDER not in os.environ
    with pytest.raises(UserError, match=f"others may write.*chmod 700 {folder}"):
        jax_setup.enable_compilation_cache(str(folder))


def test_another_user_s_folder_is_not_trusted(tmp_path, monkeypatch):
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    with pytest.raises(UserError, match="another user's"):
        jax_setup.enable_compilation_cache(str(tmp_path / "theirs"))


def test_a_place_that_cannot_be_is_done_without_or_told(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    jax_setup.enable_compilation_cache()
    assert FOLDER not in os.environ
    with pytest.raises(UserError, match=r"--compilation_cache=.*Name another, or 'off'"):
        jax_setup.enable_compilation_cache(str(tmp_path / "cache"))


def test_the_programs_not_used_for_longest_go_first_and_nothing_else(tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir(mode=0o700)
    mine = folder / "thesis-cache"
    mine.write_bytes(b"x" * 1000)
    old, read, new = (program(folder, c, 100, used) for c, used in (("a", 1), ("b", 2), ("c", 3)))
    os.utime(read, (4, 2))  # written second, but read last
    jax_setup.enable_compilation_cache(str(folder), most=200)
    assert (old.exists(), read.exists(), new.exists()) == (False, True, True)
    jax_setup.enable_compilation_cache(str(folder), most=100)
    assert (read.exists(), new.exists(), mine.exists()) == (True, False, True)


def test_the_command_keeps_programs_and_python_alone_does_not(tmp_path):
    """JAX in the command's process knows the folder before its first compilation."""
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
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()

    assert printed() == [str(tmp_path / "cache" / "bigan_jax" / "programs"), "True"]
    assert printed(f"--compilation_cache={tmp_path / 'here'}") == [str(tmp_path / "here"), "True"]
    assert printed("--compilation_cache=off") == ["None", "False"]
    alone = "import bigan_jax.training, jax; print(jax.config.jax_compilation_cache_dir)"
    result = subprocess.run([sys.executable, "-c", alone], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.split() == ["None"]


def test_a_second_run_compiles_nothing(tmp_path):
    """The benchmark's own measure, at a size at which time says little."""
    first, second = startup.measure(SMALL, tmp_path)
    assert first.compiled > 0 and second.compiled == 0
    assert second.first_step > 0 and second.imports < second.first_step


@pytest.mark.long
def test_the_phantom_s_second_run_starts_in_under_half_the_time(tmp_path):
    first, second = startup.measure(startup.PHANTOM, tmp_path)
    assert second.compiled == 0 and second.first_step < first.first_step / 2
