"""Sweeps: which runs they are made of, what they run again, and what they do when runs fail."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from bigan_jax.commands.sweep import sweep
from bigan_jax.commands.sweep_plan import is_finished, plan
from bigan_jax.configs import cae, improved_bigan
from bigan_jax.errors import UserError
from bigan_jax.evaluation.paper_results import MODELS
from bigan_jax.runtime import launchers
from tests.helpers.datasets import write_run
from tests.helpers.runs import environment

ROOT = Path(__file__).parents[2]
CAE, BIGAN = "configs/cae.py:phantom", "configs/improved_bigan.py:phantom"

# What a run leaves, in no time: the real flags and config, made-up results. The seed decides what
# goes wrong: 7 fails, 8 waits to be ended.
RUNNER = """
import json, os, shutil, sys, time
from pathlib import Path
from absl import app, flags
from ml_collections import config_flags
CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "")
def main(_):
    config, workdir = CONFIG.value, Path(WORKDIR.value)
    template = Path(sys.argv[0]).parent / "model"
    print("starting", config.name)
    if config.seed == 7:
        sys.exit("the seventh seed is unlucky")
    if config.seed == 8:
        (workdir / "pid").write_text(str(os.getpid()))
        time.sleep(120)
    evaluation = json.loads((template / "evaluation.json").read_text())
    evaluation |= {"model": config.name, "dataset": config.data.name, "seed": config.seed}
    evaluation |= {"ablations": list(config.ablations), "category": config.data.category}
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    epochs = sum(phase.epochs for phase in config.phases.values())
    (workdir / "train.jsonl").write_text(json.dumps({"epoch": epochs}) + "\\n")
    shutil.copy(template / "scores.csv", workdir)
    (workdir / "evaluation.json").write_text(json.dumps(evaluation | {"epochs": epochs}))
    with (workdir / "times").open("a") as file:
        file.write("ran\\n")
app.run(main)
"""


@pytest.fixture
def runner(tmp_path):
    """The command of the made-up run."""
    write_run(tmp_path / "runner" / "model")
    path = tmp_path / "runner" / "run.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{RUNNER}")
    return [sys.executable, str(path)]


def configured(module, file, **fields):
    """The config of a command line, and the fields set on it."""
    config = module.get_config(file.partition(":")[2])
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(fields)
    return config, file, fields


def names(runs):
    return [run.workdir.name for run in runs]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


# The plan


def test_everything_is_planned_seed_by_seed(tmp_path):
    fields = {
        "sweep.models": "all",
        "sweep.datasets": "phantom,mvtec",
        "sweep.seeds": 2,
        "sweep.dirs": "mvtec=some/where",
        "seed": 3,
        "batch_size": 4,
    }
    runs = plan(*configured(cae, "configs/cae.py:phantom,quick", **fields), tmp_path)
    assert len(runs) == 2 * 2 * len(MODELS)
    assert names(runs)[:2] == [
        "improved_bigan-phantom-bottle-quick-seed3",
        "bigan-phantom-bottle-quick-seed3",
    ]
    assert {run.config.name for run in runs} == set(MODELS)
    assert [run.config.seed for run in runs] == [3] * 20 + [4] * 20
    assert {run.config.batch_size for run in runs} == {4} and all(r.config.quick for r in runs)
    folders = {(run.config.data.name, run.config.data.dir) for run in runs}
    assert folders == {("phantom", ""), ("mvtec", "some/where")}
    assert not [a for run in runs for a in run.arguments if "sweep" in a]


def test_each_seed_may_have_its_own_split(tmp_path):
    fields = {"sweep.seeds": 3, "sweep.models": "cae,fcae"}
    for splits, expected in (False, [0] * 6), (True, [0, 0, 1, 1, 2, 2]):
        runs = plan(*configured(cae, CAE, **fields, **{"sweep.splits": splits}), tmp_path)
        assert [run.config.data.split_seed for run in runs] == expected
        assert [run.config.seed for run in runs] == [0, 0, 1, 1, 2, 2]


def test_ablations_are_run_where_there_are_any(tmp_path):
    fields = {"sweep.models": "improved_bigan,cae", "sweep.ablations": "no_se,no_ssim+no_residual"}
    runs = plan(*configured(improved_bigan, BIGAN, **fields), tmp_path)
    assert names(runs) == [
        "improved_bigan-phantom-bottle-seed0",
        "improved_bigan-phantom-bottle-no_se-seed0",
        "improved_bigan-phantom-bottle-no_ssim-no_residual-seed0",
        "cae-phantom-bottle-seed0",
    ]
    assert runs[1].config.model.se_ratio == 0
    fields["sweep.ablations"] = "all"
    runs = plan(*configured(improved_bigan, BIGAN, **fields), tmp_path)
    assert len(runs) == 1 + len(improved_bigan.ABLATIONS) + 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sweep.models": "cea"}, ["'cea'", "'cae'"]),
        ({"sweep.datasets": "phantm"}, ["'phantm'", "'phantom'"]),
        ({"sweep.ablations": "no_se"}, ["no_se", "no model of the sweep (cae)"]),
        ({"sweep.models": "fcae,cae", "model.latent": 8}, ["fcae.py", "latent", "sweep it apart"]),
        ({"sweep.models": "fcae,cae", "name": "mine"}, ["would share", "mine-phantom"]),
        ({"sweep.dirs": "mvtec"}, ["DATASET=DIR"]),
        ({"sweep.dirs": "mvtec=x"}, ["'mvtec'", "phantom"]),
        ({"sweep.seeds": 0}, ["at least 1"]),
        ({"sweep.splits": True, "data.split_seed": 1}, ["sweep.splits", "leave one out"]),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, fields, words):
    with pytest.raises(UserError) as error:
        plan(*configured(cae, CAE, **fields), tmp_path)
    for word in words:
        assert word in str(error.value)


# The runs


def test_a_sweep_runs_what_is_missing_and_goes_on_past_failures(tmp_path, runner, capsys):
    fields = {"sweep.models": "cae,vae", "sweep.seeds": 2, "sweep.parallel": 2, "seed": 6}
    asked = configured(cae, CAE, **fields)
    found = sweep(*asked, tmp_path / "out", runner)
    failed = [workdir.name for workdir, status in found.failures if status == 1]
    assert sorted(failed) == ["cae-phantom-bottle-seed7", "vae-phantom-bottle-seed7"]
    shown = capsys.readouterr().out
    assert shown.count("    the seventh seed is unlucky") == 2 and "4 runs in" in shown
    assert (
        "starting cae" in (tmp_path / "out" / failed[0] / "log.txt").read_text()
        or "vae" in failed[0]
    )
    (bottle,) = found.comparison.standings
    assert sorted(row.label for row in bottle.rows) == ["cae", "vae"]
    assert (tmp_path / "out" / "comparison.html").exists()

    # Again: the finished are not run twice; a torn result, or a new threshold, is.
    fields |= {"sweep.seeds": 1}
    sweep(*configured(cae, CAE, **fields), tmp_path / "out", runner)
    assert "2 of them finished before" in capsys.readouterr().out
    (tmp_path / "out" / "vae-phantom-bottle-seed6" / "evaluation.json").write_text("{")
    sweep(*configured(cae, CAE, **fields), tmp_path / "out", runner)
    times = {
        model: (tmp_path / "out" / f"{model}-phantom-bottle-seed6" / "times")
        .read_text()
        .count("ran")
        for model in ("cae", "vae")
    }
    assert times == {"cae": 1, "vae": 2}


def test_what_counts_as_finished(tmp_path, runner):
    asked = configured(cae, CAE, **{"seed": 6})
    (run,) = plan(*asked, tmp_path)
    assert not is_finished(run)
    sweep(*asked, tmp_path, runner)
    assert is_finished(run)
    (other,) = plan(
        *configured(cae, CAE, **{"seed": 6, "threshold.false_alarm_rate": 0.1}), tmp_path
    )
    assert not is_finished(other)
    (elsewhere,) = plan(*configured(cae, CAE, **{"seed": 6, "data.dir": "x"}), tmp_path)
    assert is_finished(elsewhere)
    evaluation = json.loads((run.workdir / "evaluation.json").read_text())
    for epochs in run.epochs, 1:  # an evaluation of an epoch before the last is none of the end
        content = json.dumps(evaluation | {"epochs": epochs})
        (run.workdir / "evaluation.json").write_text(content)
        assert is_finished(run) == (epochs == run.epochs)
    (another,) = plan(*configured(cae, CAE, **{"seed": 6, "batch_size": 5}), tmp_path)
    with pytest.raises(UserError, match=r"(?s)batch_size: \d+ there, 5 now.*--output"):
        is_finished(another)


@pytest.mark.parametrize(
    "how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_an_interrupt_ends_the_children(tmp_path, runner, how):
    program = (
        "import sys\n"
        "from configs import cae\n"
        "from bigan_jax.sweeping import sweep\n"
        "config = cae.get_config('phantom')\n"
        "config.seed = 8\n"
        f"sweep(config, 'configs/cae.py:phantom', {{}}, {str(tmp_path)!r}, {runner!r})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # What a shell starts in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    pid = tmp_path / "cae-phantom-bottle-seed8" / "pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    process.send_signal(how)
    process.communicate(timeout=30)
    assert process.returncode in (143, -signal.SIGINT, 130, 1)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def wait_for(condition, seconds=40):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_processes_run_side_by_side_as_many_as_asked(tmp_path):
    program = "import sys, time; from pathlib import Path; p = Path(sys.argv[1]); "
    program += "p.touch(); time.sleep(0.3); print(len(list(p.parent.glob('*')))); p.unlink()"
    now = tmp_path / "now"
    now.mkdir()
    tasks = {
        tmp_path / str(i): [sys.executable, "-c", program, str(now / str(i))] for i in range(5)
    }
    news = [item for ended in launchers.run_locally(tasks, 2) for item in ended.items()]
    assert dict(news) == dict.fromkeys(tasks, 0) and len(news) == 5
    seen = [int((folder / "log.txt").read_text()) for folder in tasks]
    assert max(seen) == 2


def test_without_ray_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"bigan_jax\[cluster\]"):
        next(launchers.run_on_ray({}, 1, "local"))


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nonsense"])
def test_a_cluster_that_does_not_answer_is_named(address, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    with pytest.raises(UserError, match=f"config.sweep.ray={address}: no cluster"):
        next(launchers.run_on_ray({}, 1, address))


@pytest.mark.long
def test_the_same_runs_on_a_ray_cluster_of_two_workers(tmp_path, runner, capsys):
    pytest.importorskip("ray")
    fields = {"sweep.models": "cae,vae", "sweep.seeds": 2, "sweep.parallel": 2, "seed": 6}
    fields["sweep.ray"] = "local"
    found = sweep(*configured(cae, CAE, **fields), tmp_path, runner)
    assert sorted(workdir.name for workdir, _ in found.failures) == [
        "cae-phantom-bottle-seed7",
        "vae-phantom-bottle-seed7",
    ]
    assert sorted(row.label for row in found.comparison.standings[0].rows) == ["cae", "vae"]
    assert "the seventh seed is unlucky" in capsys.readouterr().out

    # What is closed early ends what runs there.
    (run,) = plan(*configured(cae, CAE, **{"seed": 8}), tmp_path)
    ended = launchers.run_on_ray({run.workdir: [*runner, *run.arguments]}, 2, "local")
    wait_for(lambda: next(ended) is None or (run.workdir / "pid").exists())
    wait_for(lambda: (run.workdir / "pid").read_text())
    ended.close()
    # Ray may tell of a canceled run a moment before the run's process has ended.
    wait_for(lambda: not Path("/proc", (run.workdir / "pid").read_text()).exists(), 10)


@pytest.mark.long
def test_a_real_sweep_by_the_command(tmp_path):
    arguments = [
        *("--mode=sweep", "--config=configs/fcae.py:phantom", f"--output={tmp_path}"),
        *("--config.sweep.seeds=2", "--config.data.image_size=32", "--config.model.hidden=(8,4)"),
        *("--config.phases.phase1.epochs=1", "--config.data.phantom_normal=40"),
        *("--config.data.phantom_anomalous=6", "--config.batch_size=8"),
    ]
    command = [sys.executable, "launch.py", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    runs = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert runs == ["fcae-phantom-bottle-seed0", "fcae-phantom-bottle-seed1"]
    assert "Comparison:" in result.stdout
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/evaluation.json")}
    again = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert again.returncode == 0 and "2 of them finished before" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/evaluation.json")} == before
    evaluation = json.loads((tmp_path / runs[0] / "evaluation.json").read_text())
    assert evaluation["n_train"] and "fcae" in (tmp_path / "comparison.md").read_text()
