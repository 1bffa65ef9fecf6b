"""The command bigan-jax: its names, its messages, and the flags of launch.py that it sets."""

import os
import shlex
import subprocess
import sys
from argparse import Namespace

import pytest

from bigan_jax.commands import config_files, console, console_runs, doctor, models_table, saved_config
from bigan_jax.errors import UserError
from bigan_jax.runtime.run_config import flat_config
from tests.helpers.runs import ROOT, environment, write_config_of_run

CONFIGS = ROOT / "configs"
CAE = CONFIGS / "cae.py"
USER_CONFIG = """
from bigan_jax.configs import cae


def get_config(arg=None):
    config = cae.get_config(arg)
    config.name = "mine"
    return config
"""


def bigan_jax(*arguments, cwd=ROOT, script="from bigan_jax.commands import console; console.main()", **variables):
    """Runs the command in a process. Its last line of output has the packages that were imported."""
    script = f"import sys\ntry: {script}\nfinally: print('\\n', *(m for m in sys.modules if '.' not in m))"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment() | variables, capture_output=True, text=True)


def imported(result):
    return set(result.stdout.splitlines()[-1].split())


@pytest.fixture
def run_folder(tmp_path):
    """A folder with the config of a run."""
    return write_config_of_run(tmp_path)


def flags_of(arguments, monkeypatch):
    """Returns the flags of launch.py that a command line sets."""
    monkeypatch.setattr(sys, "argv", ["bigan-jax", *arguments])
    monkeypatch.setattr(console_runs.app, "run", lambda *_, **__: None)
    console.run(arguments)
    return sys.argv[1:]


# --- flags ---


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("train cae", f"--mode=train --config={CAE}"),
        (
            "train cae:folder --data.dir=d --model.widths=(8,16)",
            f"--mode=train --config={CAE}:folder --config.data.dir=d --config.model.widths=(8,16)",
        ),
        ("train --data.dir d cae:folder", f"--mode=train --config={CAE}:folder --config.data.dir=d"),
        ("train cae:folder --config.data.dir=d", f"--mode=train --config={CAE}:folder --config.data.dir=d"),
        ("train cae --data.stream --seed 3", f"--mode=train --config={CAE} --config.data.stream=true --config.seed=3"),
        ("train cae --quick", f"--mode=train --config={CAE}:phantom,quick"),
        ("train cae:brain,quick --quick", f"--mode=train --config={CAE}:brain,quick"),
        ("train configs/cae.py:brain", "--mode=train --config=configs/cae.py:brain"),
        (
            "train cae --workdir=w --time_limit=5 --compilation_cache=off --coordinator=h:1 --num_processes=2 "
            "--process_id=1 --peer_timeout=9",
            f"--mode=train --config={CAE} --workdir=w --time_limit=5 --compilation_cache=off --coordinator=h:1 "
            "--num_processes=2 --process_id=1 --peer_timeout=9",
        ),
        ("evaluate RUN", "--mode=evaluate --workdir=RUN"),
        (
            "evaluate RUN --score.name=paper",
            f"--mode=evaluate --config={ROOT}/bigan_jax/commands/saved_config.py:RUN --workdir=RUN "
            "--config.score.name=paper",
        ),
        (
            "predict RUN new/*.png --output o --no-maps --condition=bottle",
            "--mode=predict --workdir=RUN --input=new/*.png --output=o --condition=bottle --maps=False",
        ),
        ("compare a b", "--mode=compare --workdirs=a --workdirs=b"),
        ("compare --output o a", "--mode=compare --workdirs=a --output=o"),
        ("compare a --synthetic", "--mode=compare --workdirs=a --synthetic=True"),
        (
            "sweep cae:mvtec --sweep.seeds=2 --output=o",
            f"--mode=sweep --config={CAE}:mvtec --output=o --config.sweep.seeds=2",
        ),
    ],
)
def test_command_sets_the_flags_of_launch(command, flags, run_folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, flags = (line.replace("RUN", str(run_folder)) for line in (command, flags))
    assert flags_of(command.split(), monkeypatch) == flags.split()


def test_fields_of_several_seeds_are_those_of_one(run_folder, monkeypatch):
    run_folder.rename(run_folder.with_name("seed3"))
    folder = str(run_folder.parent)
    flags = flags_of(["evaluate", folder, "--score.name=paper"], monkeypatch)
    assert flags[1].endswith(f"saved_config.py:{folder}")
    assert saved_config.get_config(folder).model_name == "cae"


@pytest.mark.parametrize("name", config_files.find())
def test_every_field_of_a_config_is_an_option_of_train(name):
    """Except those that the config's argument sets, which would only label the run."""
    config = config_files.load(str(CONFIGS / f"{name}.py"))("phantom")
    fields = [field for field in flat_config(config) if not field.startswith("sweep.")]
    own = [field for field in fields if field not in ("quick", "ablations", "model_name")]
    arguments = [f"{name}:phantom", *(f"--{field}=x" for field in own)]
    values = vars(console.make_command_parser("train", arguments, console.Parser).parse(arguments))
    assert {field for field in fields if values.get(f"config.{field}") == "x"} == set(own)
    assert len(own) > 45


def test_help_of_a_config_has_the_comments_of_its_fields():
    arguments = ["cae:folder", "--help"]
    text = console.make_command_parser("train", arguments, console.Parser).format_help()
    assert "how images become square" in text and "(default: 'stretch')" not in text
    assert "--data.image_size INT" in text and "(default: 128)" in text
    assert "--sweep" not in text


# --- names and messages ---


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("trainn cae", ["'trainn'", "Did you mean 'train'?"]),
        ("train", ["CONFIG"]),
        ("train caee:folder", ["'caee'", "Did you mean 'cae'?"]),
        ("train CAE:folder", ["'CAE'", "Did you mean 'cae'?"]),
        ("train cae:foldr", ["'foldr'", "Did you mean 'folder'?"]),
        ("train improved_bigan:brain,no_ssmi", ["'no_ssmi'", "Did you mean 'no_ssim'?"]),
        ("train cae:folder --data.dirr=x", ["--data.dirr", "did you mean --data.dir?"]),
        ("train cae:folder --dir=x", ["--dir", "did you mean --data.dir?"]),
        ("train cae --config.sed=x", ["--sed", "did you mean --seed?"]),
        ("train cae --workdri=x", ["--workdri", "did you mean --workdir?"]),
        ("train cae --work=x", ["--work", "did you mean --workdir?"]),
        ("train cae --ablations=no_se", ["--ablations"]),
        ("train cae --sweep.seeds=3", ["--sweep.seeds"]),
        ("train cae phantom", ["'phantom'"]),
        ("train none.py:folder", ["none.py", "get_config"]),
        ("train configs/common.py", ["configs/common.py", "get_config"]),
        ("predict none IMAGES --output=o", ["none does not exist"]),
        ("predict RUN IMAGES", ["--output"]),
        ("evaluate none --score.name=paper", ["none does not exist"]),
        ("evaluate RUN --score.naame=paper", ["--score.naame", "did you mean --score.name?"]),
        ("compare", ["RUN"]),
    ],
)
def test_mistakes_are_named_with_the_nearest_name(command, words, run_folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as error:
        console.run(command.replace("RUN", str(run_folder)).split())
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train cae:folder --data.dir=none", "There is no folder"),
        ("train cae:folder", "No data folder is set: use --data.dir=DIR."),
        ("train cae --data.dir=x", "such as cae:folder."),
        ("train cae --batch_size=abc", "--batch_size must be an integer (got abc)."),
        ("train cae --time_limit=abc", "--time_limit must be a number (got abc)."),
    ],
)
def test_mistakes_are_reported_in_own_words_before_jax_is_imported(command, message, tmp_path):
    result = bigan_jax(*command.split(), cwd=tmp_path)
    assert result.returncode == 1
    assert not imported(result) & {"jax", "scipy", "sklearn", "matplotlib"}
    assert message in result.stderr and "Traceback" not in result.stderr
    assert "--config" not in result.stderr and "--mode" not in result.stderr


def test_config_file_of_a_user_is_found_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(USER_CONFIG)
    assert flags_of(["train", "mine.py:folder", "--seed=1"], monkeypatch)[1:] == [
        "--config=mine.py:folder",
        "--config.seed=1",
    ]
    with pytest.raises(UserError, match=r"Did you mean 'mine\.py:folder'"):
        console.run(["train", "mine:folder"])


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Run --mode=evaluate --workdir=a/b again.", "Run bigan-jax evaluate a/b again."),
        ("Use --config.on_nan=rollback or another --workdir.", "Use --on_nan=rollback or another --workdir."),
        ("try: --config=configs/<model>.py:phantom", "try: bigan-jax train MODEL:phantom"),
        ("Subfolders: --workdirs='a/*'", "Subfolders: 'a/*'"),
        ("--input=x: there is no such image", "x: there is no such image"),
    ],
)
def test_messages_are_in_words_of_this_command(message, words):
    assert console.rephrase(message) == words


# --- help, interrupts, completion ---


@pytest.mark.parametrize("arguments", [["--help"], ["train", "cae:folder", "--help"], ["models"], ["--version"]])
def test_help_and_models_import_no_large_package(arguments):
    result = bigan_jax(*arguments)
    assert result.returncode == 0, result.stderr
    assert "bigan_jax" in imported(result)
    assert not imported(result) & {"jax", "jaxlib", "flax", "numpy", "scipy", "sklearn", "matplotlib", "PIL"}


def test_no_arguments_print_help(capsys):
    with pytest.raises(SystemExit):
        console.run([])
    printed = capsys.readouterr().out
    assert all(f"    {name} " in printed for name in console.COMMANDS)


@pytest.mark.parametrize("program", [["bigan-jax"], ["python", "-m", "bigan_jax"]])
def test_interrupted_run_prints_the_command_that_was_typed(program, tmp_path):
    """With a time limit that ends before JAX is imported."""
    name = "__main__.py" if len(program) > 1 else "bigan-jax"
    arguments = ["train", "cae", "--data.name=two words", "--time_limit=0.0001"]
    script = f"sys.argv[0] = '/bin/{name}'; from bigan_jax.commands import console; console.main()"
    result = bigan_jax(*arguments, script=script, cwd=tmp_path)
    assert result.returncode == 75
    last = result.stderr.splitlines()[-1]
    assert last.startswith("out of time")
    assert shlex.split(last.partition("resume with: ")[2]) == [*program, *arguments]


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("bigan-jax tr", {"train"}),
        ("bigan-jax train va", {"vae:"}),
        ("bigan-jax train cae:f", {"cae:folder"}),
        ("bigan-jax train improved_bigan:brain,no_s", {"improved_bigan:brain,no_se", "improved_bigan:brain,no_ssim"}),
        ("bigan-jax train cae:folder --data.ima", {"--data.image_size"}),
        ("bigan-jax train cae:folder --model.l", {"--model.latent"}),
    ],
)
def test_shell_completes_commands_configs_and_fields(line, completions, tmp_path):
    file = tmp_path / "completions"
    variables = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_COMP_WORDBREAKS": "",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(file),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    bigan_jax(cwd=tmp_path, **variables)
    assert {word.strip() for word in file.read_text().splitlines()} == completions


# --- models, doctor ---


def test_every_installed_model_says_when_to_use_it(capsys):
    models_table.run(Namespace())
    printed = capsys.readouterr().out
    for name, file in config_files.find().items():
        model = models_table.read_model(name, file)
        assert model.summary and model.use and f"\n{name} " in f"\n{printed}"


def test_doctor_reports_versions_devices_and_folders(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert doctor.run(Namespace()) == 0
    printed = capsys.readouterr().out
    for words in ("Python", "jax 0.", "cpu", os.environ["JAX_COMPILATION_CACHE_DIR"], "VGG16: found", "GiB free"):
        assert words in printed


def test_doctor_explains_what_is_wrong(capsys, tmp_path, monkeypatch):
    def load_weights():
        raise UserError("no VGG16 weights on this machine.")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    (tmp_path / "bigan_jax").write_text("a file where the cache should be")
    monkeypatch.setattr("bigan_jax.nn.vgg16.weights.load_weights", load_weights)
    monkeypatch.setattr(doctor, "_MIN_FREE", 2**80)
    monkeypatch.setattr(doctor, "_requirements", lambda: ["jax>=0.10", "no-such-package", 'optional; extra == "more"'])
    assert doctor.run(Namespace()) == 1
    problems = capsys.readouterr().out.partition("problems:")[2]
    assert "pip install no-such-package" in problems and "optional" not in problems
    for words in ("no VGG16 weights", "Programs are compiled at each start", "free some space"):
        assert words in problems
