"""Sweeps: the planned runs, runs that are repeated, and failed or interrupted runs."""

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
from bigan_jax.runtime import launchers
from tests.helpers.datasets import write_run
from tests.helpers.runs import ROOT, configured, launch

CAE, BIGAN = "configs/cae.py:phantom", "configs/improved_bigan.py:phantom"

# Writes the files of a run at once: real flags and config, synthetic results. Seed 7 fails; seed 8
# waits to be terminated.
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
        sys.exit("seed 7 fails")
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
    """The command of the synthetic run."""
    write_run(tmp_path / "runner" / "model")
    path = tmp_path / "runner" / "run.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{RUNNER}")
    return [sys.executable, str(path)]


def sweep_arguments(module, file, **fields):
    """Returns the first arguments of `plan` and `sweep` for a config file with fields set."""
    return configured(module, file.partition(":")[2], fields), file, fields


def folder_names(runs):
    return [run.workdir.name for run in runs]


@pytest.fixture(autouse=True)
def change_to_root(monkeypatch):
    monkeypatch.chdir(ROOT)


# --- the plan ---


def test_runs_are_planned_seed_by_seed(tmp_path):
    fields = {
        "sweep.models": "all",
        "sweep.datasets": "phantom,mvtec",
        "sweep.seeds": 2,
        "sweep.dirs": "mvtec=data/mvtec",
        "seed": 3,
        "batch_size": 4,
    }
    runs = plan(*sweep_arguments(cae, "configs/cae.py:phantom,quick", **fields), tmp_path)
    models = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__", "common"}
    assert len(runs) == 2 * 2 * len(models)
    assert folder_names(runs)[:2] == ["improved_bigan-phantom-bottle-quick-seed3", "bigan-phantom-bottle-quick-seed3"]
    assert {run.config.name for run in runs} == models
    assert [run.config.seed for run in runs] == [3] * 2 * len(models) + [4] * 2 * len(models)
    assert {run.config.batch_size for run in runs} == {4} and all(r.config.quick for r in runs)
    folders = {(run.config.data.name, run.config.data.dir) for run in runs}
    assert folders == {("phantom", ""), ("mvtec", "data/mvtec")}
    assert not [a for run in runs for a in run.arguments if "sweep" in a]


def test_splits_sets_split_seed_to_the_seed(tmp_path):
    fields = {"sweep.seeds": 3, "sweep.models": "cae,fcae"}
    for splits, expected in (False, [0] * 6), (True, [0, 0, 1, 1, 2, 2]):
        runs = plan(*sweep_arguments(cae, CAE, **fields, **{"sweep.splits": splits}), tmp_path)
        assert [run.config.data.split_seed for run in runs] == expected
        assert [run.config.seed for run in runs] == [0, 0, 1, 1, 2, 2]


def test_ablations_are_planned_for_models_that_have_them(tmp_path):
    fields = {"sweep.models": "improved_bigan,cae", "sweep.ablations": "no_se,no_ssim+no_residual"}
    runs = plan(*sweep_arguments(improved_bigan, BIGAN, **fields), tmp_path)
    assert folder_names(runs) == [
        "improved_bigan-phantom-bottle-seed0",
        "improved_bigan-phantom-bottle-no_se-seed0",
        "improved_bigan-phantom-bottle-no_ssim-no_residual-seed0",
        "cae-phantom-bottle-seed0",
    ]
    assert runs[1].config.model.se_ratio == 0
    fields["sweep.ablations"] = "all"
    runs = plan(*sweep_arguments(improved_bigan, BIGAN, **fields), tmp_path)
    assert len(runs) == 1 + len(improved_bigan.ABLATIONS) + 1


def test_override_that_undoes_an_ablation_is_refused(tmp_path):
    fields = {"sweep.ablations": "no_se,no_ssim+no_pretrain", "phases.phase1.epochs": 2}
    with pytest.raises(UserError, match=r"config\.phases\.phase1\.epochs .* undoes the ablation no_pretrain"):
        plan(*sweep_arguments(improved_bigan, BIGAN, **fields), tmp_path)
    fields["sweep.ablations"] = "no_se,no_ssim"
    assert len(plan(*sweep_arguments(improved_bigan, BIGAN, **fields), tmp_path)) == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sweep.models": "caee"}, ["'caee'", "'cae'"]),
        ({"sweep.datasets": "phantm"}, ["'phantm'", "'phantom'"]),
        ({"sweep.ablations": "no_se"}, ["no_se", "no model of the sweep (cae)"]),
        ({"sweep.models": "fcae,cae", "model.latent": 8}, ["fcae.py", "latent", "another sweep"]),
        ({"sweep.models": "fcae,cae", "name": "mine"}, ["same folder", "mine-phantom"]),
        ({"sweep.dirs": "mvtec"}, ["DATASET=DIR"]),
        ({"sweep.dirs": "mvtec=x"}, ["'mvtec'", "phantom"]),
        ({"sweep.seeds": 0}, ["at least 1"]),
        ({"sweep.splits": True, "data.split_seed": 1}, ["sweep.splits", "Remove one"]),
    ],
)
def test_errors_are_raised_before_a_run_starts(tmp_path, fields, words):
    with pytest.raises(UserError) as error:
        plan(*sweep_arguments(cae, CAE, **fields), tmp_path)
    for word in words:
        assert word in str(error.value)


# --- the runs ---


def test_sweep_runs_unfinished_runs_and_continues_after_failures(tmp_path, runner, capsys):
    fields = {"sweep.models": "cae,vae", "sweep.seeds": 2, "sweep.parallel": 2, "seed": 6}
    result = sweep(*sweep_arguments(cae, CAE, **fields), tmp_path / "out", runner)
    failed = [workdir.name for workdir, status in result.failures if status == 1]
    assert sorted(failed) == ["cae-phantom-bottle-seed7", "vae-phantom-bottle-seed7"]
    printed = capsys.readouterr().out
    assert printed.count("    seed 7 fails") == 2 and "4 runs in" in printed
    assert "starting cae" in (tmp_path / "out" / failed[0] / "log.txt").read_text() or "vae" in failed[0]
    (bottle,) = result.comparison.datasets
    assert sorted(row.label for row in bottle.rows) == ["cae", "vae"]
    assert (tmp_path / "out" / "comparison.html").exists()

    # Finished runs are not repeated; a run with a truncated evaluation.json is.
    fields |= {"sweep.seeds": 1}
    sweep(*sweep_arguments(cae, CAE, **fields), tmp_path / "out", runner)
    assert "2 already finished" in capsys.readouterr().out
    (tmp_path / "out" / "vae-phantom-bottle-seed6" / "evaluation.json").write_text("{")
    sweep(*sweep_arguments(cae, CAE, **fields), tmp_path / "out", runner)
    times = {
        model: (tmp_path / "out" / f"{model}-phantom-bottle-seed6" / "times").read_text().count("ran")
        for model in ("cae", "vae")
    }
    assert times == {"cae": 1, "vae": 2}


def test_is_finished_compares_config_and_epochs(tmp_path, runner):
    arguments = sweep_arguments(cae, CAE, seed=6)
    (run,) = plan(*arguments, tmp_path)
    assert not is_finished(run)
    sweep(*arguments, tmp_path, runner)
    assert is_finished(run)
    (new_threshold,) = plan(*sweep_arguments(cae, CAE, **{"seed": 6, "threshold.false_alarm_rate": 0.1}), tmp_path)
    assert not is_finished(new_threshold)
    (moved_data,) = plan(*sweep_arguments(cae, CAE, **{"seed": 6, "data.dir": "x"}), tmp_path)
    assert is_finished(moved_data)
    evaluation = json.loads((run.workdir / "evaluation.json").read_text())
    for epochs in run.epochs, 1:  # an evaluation of an earlier epoch does not count
        content = json.dumps(evaluation | {"epochs": epochs})
        (run.workdir / "evaluation.json").write_text(content)
        assert is_finished(run) == (epochs == run.epochs)
    (new_config,) = plan(*sweep_arguments(cae, CAE, **{"seed": 6, "batch_size": 5}), tmp_path)
    with pytest.raises(UserError, match=r"(?s)batch_size: \d+ there, 5 now.*--output"):
        is_finished(new_config)


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_interrupt_terminates_child_processes(tmp_path, runner, signum):
    program = (
        "import sys\n"
        "from bigan_jax.configs import cae\n"
        "from bigan_jax.commands.sweep import sweep\n"
        "config = cae.get_config('phantom')\n"
        "config.seed = 8\n"
        f"sweep(config, 'configs/cae.py:phantom', {{}}, {str(tmp_path)!r}, {runner!r})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # A shell's background jobs and their children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    pid = tmp_path / "cae-phantom-bottle-seed8" / "pid"
    wait_for(lambda: pid.exists() and pid.read_text())
    process.send_signal(signum)
    process.communicate(timeout=30)
    assert process.returncode in (143, -signal.SIGINT, 130, 1)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def wait_for(condition, seconds=40):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_run_locally_limits_parallel_processes(tmp_path):
    program = "import sys, time; from pathlib import Path; p = Path(sys.argv[1]); "
    program += "p.touch(); time.sleep(0.3); print(len(list(p.parent.glob('*')))); p.unlink()"
    running = tmp_path / "running"
    running.mkdir()
    commands = {tmp_path / str(i): [sys.executable, "-c", program, str(running / str(i))] for i in range(5)}
    statuses = [item for poll in launchers.run_locally(commands, 2) for item in poll.items()]
    assert dict(statuses) == dict.fromkeys(commands, 0) and len(statuses) == 5
    assert max(int((folder / "log.txt").read_text()) for folder in commands) == 2


def test_missing_ray_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"bigan_jax\[cluster\]"):
        next(launchers.run_on_ray({}, 1, "local"))


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nonsense"])
def test_unreachable_cluster_is_named(address, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    with pytest.raises(UserError, match=f"config.sweep.ray={address}: no cluster"):
        next(launchers.run_on_ray({}, 1, address))


@pytest.mark.long
def test_sweep_on_ray_cluster_of_two_workers(tmp_path, runner, capsys):
    pytest.importorskip("ray")
    fields = {"sweep.models": "cae,vae", "sweep.seeds": 2, "sweep.parallel": 2, "seed": 6}
    fields["sweep.ray"] = "local"
    result = sweep(*sweep_arguments(cae, CAE, **fields), tmp_path, runner)
    assert sorted(workdir.name for workdir, _ in result.failures) == [
        "cae-phantom-bottle-seed7",
        "vae-phantom-bottle-seed7",
    ]
    assert sorted(row.label for row in result.comparison.datasets[0].rows) == ["cae", "vae"]
    assert "seed 7 fails" in capsys.readouterr().out

    # Closing the iterator terminates the runs.
    (run,) = plan(*sweep_arguments(cae, CAE, **{"seed": 8}), tmp_path)
    polls = launchers.run_on_ray({run.workdir: [*runner, *run.arguments]}, 2, "local")
    wait_for(lambda: next(polls) is None or (run.workdir / "pid").exists())
    wait_for(lambda: (run.workdir / "pid").read_text())
    polls.close()
    # Ray may report a canceled run just before its process ends.
    wait_for(lambda: not Path("/proc", (run.workdir / "pid").read_text()).exists(), 10)


@pytest.mark.long
def test_sweep_command_trains_and_skips_finished_runs(tmp_path):
    arguments = [
        *("--mode=sweep", "--config=configs/fcae.py:phantom", f"--output={tmp_path}"),
        *("--config.sweep.seeds=2", "--config.data.image_size=32", "--config.model.hidden=(8,4)"),
        *("--config.phases.phase1.epochs=1", "--config.data.phantom_normal=40"),
        *("--config.data.phantom_anomalous=6", "--config.batch_size=8"),
    ]
    result = launch(*arguments, check=False)
    assert result.returncode == 0, result.stderr
    runs = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert runs == ["fcae-phantom-bottle-seed0", "fcae-phantom-bottle-seed1"]
    assert "Comparison:" in result.stdout
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/evaluation.json")}
    again = launch(*arguments)
    assert "2 already finished" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/evaluation.json")} == before
    evaluation = json.loads((tmp_path / runs[0] / "evaluation.json").read_text())
    assert evaluation["n_train"] and "fcae" in (tmp_path / "comparison.md").read_text()
