"""Tests of docs/results: the page follows from results.csv, and the commands fit their rows."""

import csv
import json
import re
import shlex
from collections import defaultdict

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

import bigan_jax
from benchmarks import results
from bigan_jax.configs import fcae
from bigan_jax.errors import UserError

ROWS = results.read_rows()


def test_page_is_generated_from_the_csv():
    """After a change of either: `python -m benchmarks.results`."""
    assert results.PAGE.read_text(encoding="utf-8") == results.page(ROWS.values())


def test_csv_has_the_known_columns_and_sorted_runs():
    with results.CSV.open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file)) == list(results.COLUMNS)
    assert len(ROWS) >= 175 and list(ROWS) == sorted(ROWS)


def test_commands_parse_to_the_config_of_their_row(monkeypatch):
    """Commands of one config file and argument share one reading of the file."""
    monkeypatch.chdir(results.ROOT)
    rows_of = defaultdict(list)
    for row in ROWS.values():
        python, script, file, *_ = shlex.split(row["command"])
        assert (python, script) == ("python", "launch.py")
        rows_of[file].append(row)
    for file, rows in rows_of.items():
        flag_values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=flag_values, sys_argv=[file])
        flag_values(["launch.py", file])
        default = flag_values["config"].value
        for row in rows:
            check_command(row, default.copy_and_resolve_references())


def check_command(row, config):
    words = shlex.split(row["command"])[3:]
    assert words == ["--config.data.dir=DIR", *shlex.split(row["overrides"])]
    values = dict(word.removeprefix("--config.").split("=", 1) for word in words)
    parsers = {name: parser_of(config, name) for name in values}  # a field that exists
    config.update_from_flattened_dict({k: parsers[k](v) for k, v in values.items()})
    assert row["run"].endswith(f"-seed{config.seed}")
    expected = {
        "model": config.name,
        "ablations": "+".join(config.ablations),
        "dataset": config.data.name,
        "category": config.data.category,
        "seed": config.seed,
        "split_seed": config.data.split_seed,
        "image_size": config.data.image_size,
        "channels": config.data.channels,
        "dtype": config.dtype,
        "epochs": sum(phase.epochs for phase in config.phases.values()),
        "quick": str(config.quick).lower(),
    }
    assert {name: row[name] for name in expected} == {k: str(v) for k, v in expected.items()}
    assert (config.score.mse, config.score.ssim) == (0.7, 0.3)
    assert not config.score.perceptual and config.score.reduction == "mean"


def parser_of(config, name):
    """What reads the text of a field: by the type of its default."""
    *groups, field = name.split(".")
    for group in groups:
        config = config[group]
    kind = type(config[field])
    return (lambda text: tuple(json.loads(f"[{text[1:-1]}]"))) if kind is tuple else kind


def test_a_command_parses_as_launch_reads_it(monkeypatch):
    """One row by the parser of launch.py itself, with a tuple, numbers and text."""
    monkeypatch.chdir(results.ROOT)
    row = ROWS["improved_bigan-plant_colour-quick-no_perceptual-seed1"]
    words = shlex.split(row["command"])[1:]
    flag_values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=flag_values, sys_argv=words)
    flag_values(words)
    config = flag_values["config"].value
    assert config.model.widths == (32, 64, 128, 256) and config.data.channels == 3
    assert config.data.name == row["dataset"] and config.phases.phase2.epochs == 15


def test_numbers_of_the_page_are_means_of_the_csv():
    groups = defaultdict(list)
    baselines = defaultdict(dict)
    for row in ROWS.values():
        groups[row["model"], row["ablations"], row["quick"], row["dataset"]].append(row)
        for column in "baseline_pca_64", "best_baseline_auroc":
            baselines[row["dataset"], column][row["split_seed"]] = float(row[column])
    samples = [[float(r["auroc"]) for r in g] for g in groups.values()]
    samples += [list(by_split.values()) for by_split in baselines.values()]
    numbers = summaries(samples, digits=3)
    scores = [[float(r["calibration_score"]) for r in g] for g in groups.values()]
    numbers |= summaries(scores, digits=4)
    cells = re.findall(r"\d\.\d+(?: ± \d\.\d+)? \(\d+\)", results.PAGE.read_text(encoding="utf-8"))
    assert len(cells) > 60 and set(cells) <= numbers


def summaries(samples, digits):
    found = set()
    for values in samples:
        std = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
        found.add(f"{np.mean(values):.{digits}f}{std} ({len(values)})")
    return found


def test_add_appends_a_finished_run(tmp_path):
    config = fcae.get_config("phantom")
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(
            {
                "data.image_size": 16,
                "data.phantom_normal": 40,
                "data.phantom_anomalous": 5,
                "model.hidden": (8, 4),
                "phases.phase1.epochs": 2,
            }
        )
    bigan_jax.train(config, tmp_path / "run")
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    rows = {}
    results.add(rows, tmp_path / "run")
    (name,) = rows
    row = rows[name]
    assert name == "fcae-phantom-bottle-seed0" and tuple(row) == results.COLUMNS
    assert float(row["auroc"]) == pytest.approx(evaluation["scores"]["paper"]["auroc"], rel=1e-5)
    assert float(row["best_baseline_auroc"]) == max(float(row[f"baseline_{name}"]) for name in results._BASELINES)
    assert row["pixel_aupro_low"] and row["top1_auroc"] and row["epochs"] == "2"
    assert row["command"].startswith("python launch.py --config=configs/fcae.py:phantom --config.data")
    assert "'--config.model.hidden=(8,4)'" in row["command"] and "data.dir" not in row["command"]

    evaluation["scores"]["paper"]["auroc"] = 0.5
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(evaluation))
    fields = json.loads((tmp_path / "run" / "config.json").read_text())
    fields["score"]["perceptual"] = 0.3
    (tmp_path / "run" / "config.json").write_text(json.dumps(fields))
    results.add(rows, tmp_path / "run")
    assert row["perceptual_auroc"] == "0.5" != row["auroc"]
    with pytest.raises(UserError, match="without the term first"):
        results.add({}, tmp_path / "run")
