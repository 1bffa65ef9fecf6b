"""Untrusted run folders and flags: regression tests of security holes."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from bigan_jax.commands import predict
from bigan_jax.commands.load import load
from bigan_jax.configs import cae, fcae
from bigan_jax.data.files import unreadable
from bigan_jax.detector import TrainState
from bigan_jax.errors import UserError, printable_lines
from bigan_jax.evaluation import finished_run
from bigan_jax.evaluation.anomaly_score import ScoreTerms
from bigan_jax.evaluation.finished_run import epochs_done, read_run, read_scores
from bigan_jax.evaluation.result import require_evaluation
from bigan_jax.evaluation.scorer import Scores
from bigan_jax.reports import evaluation_files
from bigan_jax.runtime import lock
from bigan_jax.runtime.run_config import read_config
from bigan_jax.training.saving.checkpoints import CheckpointManager
from bigan_jax.training.saving.progress import Progress
from bigan_jax.training.saving.train_log import read_train_log
from tests.helpers.datasets import evaluation_content, write_run
from tests.helpers.runs import ROOT
from tests.robustness.test_untrusted_files import limited_memory


def corrupt_run(folder, name, change):
    write_run(folder)
    path = folder / name
    path.write_text(change(path.read_text()))
    return folder


def test_number_too_large_for_a_float_is_refused(tmp_path):
    huge = "1" + "0" * 400
    workdir = corrupt_run(tmp_path / "run", "evaluation.json", lambda t: t.replace('"f1": ', f'"f1": {huge}, "x": '))
    with pytest.raises(UserError, match="f1: Number out of range"):
        read_run(workdir)


def test_invalid_epoch_numbers_are_ignored(tmp_path):
    for text in '{"epoch": -1}', '{"epoch": ' + "9" * 4000 + "}":
        (tmp_path / "train.jsonl").write_text(text)
        assert epochs_done(tmp_path / "train.jsonl") is None
    epochs = {"phases.phase1.epochs": int("9" * 4000), "phases.phase2.epochs": 1}
    write_run(tmp_path / "run", config=epochs)
    assert read_run(tmp_path / "run").total_epochs is None


def test_long_path_does_not_use_memory_for_every_row(tmp_path, monkeypatch):
    monkeypatch.setattr(finished_run, "_MAX_TABLE_BYTES", 2**22)  # allocated for the file

    def long(text):
        head, first, *rest = text.splitlines()
        return "\n".join([head, "x" * 10**5 + first, *rest, ""])

    workdir = corrupt_run(tmp_path / "run", "scores.csv", long)
    run = read_run(workdir)
    with limited_memory(2**23):
        assert len(read_scores(run, "paper").path[-1]) > 10**5
    wide = "path,label,group,paper" + ",c" * 10**6 + "\n" + "a,normal,b,1\n" * 1000
    (workdir / "scores.csv").write_text(wide)
    with pytest.raises(UserError, match="does not have the format"):
        read_scores(run, "paper")


def test_error_message_escapes_control_characters():
    error = UserError("a\x1b[2J:\n  b\u202ec.png")
    assert printable_lines(error) == "a\\x1b[2J:\n  b\\u202ec.png"


@pytest.mark.parametrize(
    "flag",
    [
        "--config.model.widths=" + "(" * 500,
        "--config.model=" + "[" * 5000 + "]" * 5000,
        "--config.seed=" + "9" * 5000,
        "--config.model={'a'}",
        "--config.threshold={}",
        "--config.model.widths[0]=3",
    ],
)
def test_invalid_flags_are_reported(flag, tmp_path):
    command = [sys.executable, "launch.py", "--config=configs/cae.py:phantom", flag]
    command += [f"--workdir={tmp_path / 'run'}", "--config.data.phantom_normal=20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.replace("\n", "").isprintable()


# --- run folders ---


@pytest.mark.parametrize("link", ["checkpoints", "lock", "figures/roc.png", "checkpoints/1/state"])
def test_link_that_leads_out_of_a_run_folder_is_refused(tmp_path, link):
    outside, workdir = tmp_path / "outside", tmp_path / "run"
    if link == "lock":
        link = lock.NAME
        outside.write_text("precious")
    else:
        (outside / "9.deleting").mkdir(parents=True)
    (workdir / link).parent.mkdir(parents=True)
    (workdir / link).symlink_to(outside)
    with pytest.raises(UserError, match="link that leads out"), lock.exclusive_lock(workdir):
        pass
    with pytest.raises(UserError, match="link that leads out"):
        CheckpointManager(workdir)
    assert outside.read_text() == "precious" if outside.is_file() else any(outside.iterdir())
    # The folder itself may be a link, and so may links within it.
    (workdir / link).unlink()
    (workdir / "inside").symlink_to(workdir / "train.jsonl")
    (tmp_path / "link").symlink_to(workdir)
    with lock.exclusive_lock(tmp_path / "link"):
        pass


def test_network_larger_than_its_checkpoint_is_not_allocated(tmp_path):
    state = TrainState(*[None] * len(TrainState._fields))._replace(params={"w": np.ones((4, 4), np.float32)})
    checkpoints = CheckpointManager(tmp_path)
    checkpoints.save(Progress(1), state)
    checkpoints.close()
    huge = state._replace(params={"w": jax.ShapeDtypeStruct((2**20, 2**20), np.float32)})
    with pytest.raises(UserError, match=r"4,096 GiB.*Put back the config.json"):
        CheckpointManager(tmp_path, read_only=True).restore(huge)
    assert CheckpointManager(tmp_path, read_only=True).restore(state)[1].params["w"].sum() == 16


@pytest.mark.parametrize(
    "line",
    [
        "[" * 10_000,
        "[1]",
        "null",
        "{}",
        '{"epoch": "2"}',
        '{"epoch": 2, "phase": 1}',
        '{"epoch": 2, "health": "x"}',
        '{"epoch": 2, "loss": {}}',
        '{"epoch": 2, "loss": "<b>"}',
        '{"epoch": 2, "rollbacks": [1]}',
        '{"epoch": 2, "rollbacks": [{"epoch": 1, "objective": "a"}]}',
        "\udcff",
    ],
)
def test_invalid_row_ends_the_training_log(tmp_path, line):
    first = '{"epoch": 1, "phase": "p", "loss": 0.5, "many": [1, NaN], "health": ["w"]}\n'
    rest = '\n{"epoch": 3}\n'
    text = (first + line + rest).encode("utf-8", "surrogateescape")
    (tmp_path / "train.jsonl").write_bytes(text)
    assert [row["epoch"] for row in read_train_log(tmp_path)] == [1]


@pytest.mark.parametrize(
    "change",
    [
        lambda config: [],
        lambda config: config | {"model": 3},
        lambda config: config | {"data": []},
        lambda config: config | {"seed": "0"},
        lambda config: {k: v for k, v in config.items() if k != "optimizers"},
        lambda config: config | {"__class__": {"a": 1}},
        lambda config: config | {"a.b": {"lock": 1}},
    ],
)
def test_invalid_config_is_reported(tmp_path, change):
    config = json.loads(json.dumps(cae.get_config("phantom").to_dict()))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path).model.latent == 128
    (tmp_path / "config.json").write_text(json.dumps(change(config)))
    try:
        read_config(tmp_path)  # an unknown field alone is harmless
    except UserError as error:
        assert "config.json cannot be read" in str(error)
    (tmp_path / "config.json").write_text('{"a": ' * 50_000)
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "train.jsonl", "evaluation.json"])
def test_pipes_and_huge_files_are_not_read(tmp_path, name):
    """Of a huge file, the limit and one byte are read."""
    read = {"config.json": read_config, "train.jsonl": read_train_log}.get(name, require_evaluation)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"no {name}"):
        read(tmp_path)
    (tmp_path / name).unlink()
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**40)  # sparse, takes no disk space
    with pytest.raises(UserError, match=f"{name} is larger than"):
        read(tmp_path)


@pytest.mark.parametrize(
    "change", [{"logs": {"a": 1}}, {"logs": []}, {"rollbacks": [{"epoch": 1}]}, {"seconds": "1"}, {"steps": 1.5}]
)
def test_invalid_progress_with_a_valid_checksum_is_damage(tmp_path, change, capsys):
    state = TrainState(*[None] * len(TrainState._fields))._replace(params={"w": np.ones(4, np.float32)})
    checkpoints = CheckpointManager(tmp_path)
    for progress in Progress(1), Progress(2)._replace(**change):
        checkpoints.save(progress, state)
    checkpoints.close()
    assert CheckpointManager(tmp_path, read_only=True).restore(state)[0] == Progress(1)._replace(rollbacks=[])
    assert "checkpoints/2 is damaged (its progress is not what" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", "0.5"),
        ("threshold", int("9" * 400)),
        ("conditions", None),
        ("conditions", [1]),
        ("calibration_scores", []),
        ("calibration_scores", ["x"]),
        ("color_limits", 3),
        ("color_limits", {"combined": "x"}),
        ("score", {"standard_deviations": {"mse": None}}),
        ("steps", -1),
    ],
)
def test_invalid_evaluation_is_reported(tmp_path, name, value):
    content = evaluation_content(calibration_scores=[1, 2])
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    assert require_evaluation(tmp_path).main.calibration_scores == [1, 2]
    if isinstance(value, dict):
        value = content[name] | value
    content = evaluation_content(**{name: value})
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    message = rf"has no valid evaluation: evaluation\.json: (scores\[...\]\.)?{name}.*(Expected|out of range)"
    with pytest.raises(UserError, match=message):
        require_evaluation(tmp_path)


def test_edited_config_is_reported_when_a_run_is_loaded(tmp_path):
    config = json.loads(json.dumps(fcae.get_config("phantom").to_dict()))
    config["optimizers"] = {"reconstruction": {"b7": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    content = json.dumps(evaluation_content())
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json is invalid"):
        load(tmp_path)


# --- names ---


def test_names_in_tables_are_escaped(tmp_path):
    names = np.array(["a\x1b[2J.png", "b\u202egnp.png", "<script>.png"])
    values = np.arange(3.0)
    terms = ScoreTerms(dict.fromkeys(("mse", "ssim", "perceptual"), values), {})
    by_name = {"paper": values, "calibrated": values}
    scores = Scores("paper", by_name, terms, error_map=None, reconstruction=None)
    classes = {"label": evaluation_files.class_names(np.array([True, False, True])), "group": names}
    rows = evaluation_files.score_rows(names, scores, values >= 1, classes)
    text = "".join(",".join(row) + "\n" for row in (rows[0], *(row.values() for row in rows)))
    assert text.startswith("path,label,group,mse,ssim_error,perceptual,paper,calibrated,decision\n")
    assert text.replace("\n", "").isprintable() and "a\\x1b[2J.png,anomalous,a\\x1b[2J" in text
    predict._append_unreadable([unreadable.UnreadableFile(names[0], "why\x1b")], tmp_path / "unreadable.csv")
    assert (tmp_path / "unreadable.csv").read_text().replace("\n", "").isprintable()
