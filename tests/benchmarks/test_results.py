"""Tests of docs/results: the pages follow from the stored results, and the commands fit their rows."""

import ast
import csv
import json
import re
import shlex
from collections import defaultdict

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

import bigan_jax
from benchmarks.results import pages, runs, selection, synthetic, tables
from bigan_jax.commands.compare import compare
from bigan_jax.commands.synthetic import measure_runs
from bigan_jax.configs import pca
from bigan_jax.errors import UserError
from bigan_jax.metrics.bootstrap import paired_auroc_interval
from bigan_jax.reports.table_formats import format_cell

ROWS, LINES, SYNTHETIC = runs.read_rows(), runs.read_lines(), synthetic.read_rows()
RESULTS = tables.Results(ROWS, LINES)


def test_pages_are_generated_from_the_stored_results():
    """After a change of either: `python -m benchmarks.results`."""
    for name, text in pages.pages(ROWS, LINES, SYNTHETIC).items():
        assert (runs.RESULTS / name).read_text(encoding="utf-8") == text, name


def test_stored_results_are_complete_and_small():
    with runs.CSV.open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file)) == list(runs.COLUMNS)
    assert list(ROWS) == sorted(ROWS)
    assert ROWS.keys() | {line["test"] for line in LINES.values() if "test" in line} == LINES.keys()
    assert {run for run, _ in SYNTHETIC} <= ROWS.keys()
    assert sum(path.stat().st_size for path in runs.RESULTS.iterdir()) < 3e6


def test_scores_of_images_give_the_aurocs_of_the_csv():
    for name, row in ROWS.items():
        line = LINES[name]
        labels = LINES[line["test"]]["label"]
        assert (labels.count(0), labels.count(1)) == (int(row["n_test_normal"]), int(row["n_test_anomalous"]))
        for score, column in ((row["score"], "auroc"), ("paper", "paper_auroc")):
            if row[column]:
                assert roc_auc_score(labels, line["scores"][score]) == pytest.approx(float(row[column]), abs=2e-4), name


def test_commands_parse_to_the_config_of_their_row(monkeypatch):
    """Commands of one config file and argument share one reading of the file."""
    monkeypatch.chdir(runs.ROOT)
    rows_of = defaultdict(list)
    for row in ROWS.values():
        program, mode, config, *_ = shlex.split(row["command"])
        assert (program, mode) == ("bigan-jax", "train")
        rows_of[config].append(row)
    for argument, rows in rows_of.items():
        name, _, rest = argument.partition(":")
        words = [f"--config=configs/{name}.py:{rest}"]
        flag_values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=flag_values, sys_argv=words)
        flag_values(["launch.py", *words])
        for row in rows:
            check_command(row, flag_values["config"].value.copy_and_resolve_references())


def check_command(row, config):
    assert shlex.split(row["command"])[3:] == ["--data.dir=DIR", *shlex.split(row["overrides"])]
    values = dict(word.removeprefix("--").split("=", 1) for word in shlex.split(row["overrides"]))
    parsers = {name: parser_of(config, name) for name in values}  # a field that exists
    config.update_from_flattened_dict({k: parsers[k](v) for k, v in values.items()})
    expected = {
        "model": config.name,
        "group": config.group,
        "ablations": "+".join(config.ablations),
        "dataset": config.data.name,
        "category": config.data.category,
        "seed": config.seed,
        "split_seed": config.data.split_seed,
        "image_size": config.data.image_size,
        "channels": config.data.channels,
        "dtype": config.dtype,
        "score": config.score.name,
        "quick": str(config.quick).lower(),
    }
    assert {name: row[name] for name in expected} == {k: str(v) for k, v in expected.items()}
    if config.phases:
        assert int(row["epochs"]) == sum(phase.epochs for phase in config.phases.values())
    assert (config.score.mse, config.score.ssim, config.score.perceptual) == (0.7, 0.3, 0)
    assert config.score.reduction == "mean"


def parser_of(config, name):
    """What reads the text of a field: by the type of its default."""
    *groups, field = name.split(".")
    for group in groups:
        config = config[group]
    kind = type(config[field])
    return ast.literal_eval if kind is tuple else kind


@pytest.mark.parametrize("prefix", ["", "paper_"])
def test_overview_shows_means_of_the_csv_and_the_best_in_bold(prefix):
    """The table is read again, and its numbers are computed from the rows without the code of the pages."""
    lines = [line.strip("| ").split(" | ") for line in tables.overview(RESULTS, prefix).splitlines()]
    titles = {title: name for name, title in tables.TITLES.items()}
    bold = defaultdict(list)
    for model, *cells in lines[2:]:
        for title, cell in zip(lines[0][1:], cells, strict=False):
            if model.startswith("*") or not re.match(r"[*\d]", cell):
                continue
            values = [
                float(row[f"{prefix}auroc"])
                for row in ROWS.values()
                if row["model"] + " (features)" * (row["ablations"] == "features") == model.replace("\\", "")
                and tables.dataset_of(row) == titles[title]
                and row["ablations"] in ("", "features")
            ]
            assert cell.strip("*").startswith(f"{np.mean(values):.3f}".rstrip("0")[:4]), (model, title)
            bold[title].append((len(values), np.mean(values), cell.startswith("**")))
    assert len(bold) >= 4
    for cells in bold.values():
        most = max(n for n, *_ in cells)
        best = max(mean for n, mean, _ in cells if n == most)
        assert all(is_bold == (n == most and mean > best - 5e-4) for n, mean, is_bold in cells)


def test_differences_are_paired_over_images():
    first, second = (next(d for d in RESULTS.by_dataset["mvtec-bottle"] if d.model == m) for m in ("cae", "fcae"))
    first, second = (d._replace(rows=d.rows[:1]) for d in (first, second))
    difference = RESULTS.difference(first, second)
    lines = [LINES[d.rows[0]["run"]] for d in (first, second)]
    test = LINES[lines[0]["test"]]
    scores = [np.array(line["scores"]["calibrated"]) for line in lines]
    expected = paired_auroc_interval(*scores, np.array(test["label"], bool), np.array(test["group"], object))
    assert difference.interval == pytest.approx(expected)
    assert difference.value == pytest.approx(float(first.rows[0]["auroc"]) - float(second.rows[0]["auroc"]), abs=2e-4)
    assert format_cell(difference).startswith("+" if difference.value > 0 else "−")


def ablated(row, ablations):
    return {**row, "run": f"{row['run']}+{ablations}", "ablations": ablations}


def test_ablations_change_one_thing_at_a_time():
    full = ROWS["improved_bigan-mvtec-bottle-quick-seed0"]
    rows = [full, *(ablated(full, a) for a in ("no_perceptual", "no_perceptual+no_se", "no_se+no_ssim+no_residual"))]
    lines = LINES | {row["run"]: LINES[full["run"]] for row in rows}
    table = tables.ablations(tables.Results({row["run"]: row for row in rows}, lines))
    found = [row[1:3] for row in table.rows]
    assert sorted(found) == [["no_perceptual", "improved_bigan"], ["no_se", "improved_bigan, no_perceptual"]]
    assert [row[4].value for row in table.rows] == [0, 0]


def test_a_finding_that_no_longer_holds_stops_the_pages():
    rows = {
        name: {**row, "auroc": "0.1"} if (row["model"], row["dataset"]) == ("improved_bigan", "mvtec") else row
        for name, row in ROWS.items()
    }
    with pytest.raises(pages.OutdatedText, match="Write this finding anew"):
        pages.index_page(tables.Results(rows, LINES))


def test_correlations_rank_within_a_split():
    """The AUROC of the second split is lower for all detectors: pooled, the correlation would not be 1."""
    rng = np.random.default_rng(0)
    found, expected = [], []
    for split, shift in (("0", 0.5), ("1", 0.0)):
        aurocs, figures = rng.uniform(0, 0.5, 6) + shift, rng.normal(size=6)
        found += [
            selection.Cell("plant", split, str(i), "paper", a, {"mean": f})
            for i, (a, f) in enumerate(zip(aurocs, figures, strict=True))
        ]
        expected.append(spearmanr(aurocs, figures).statistic)
    (result,) = selection.correlations(found, "mean").values()
    assert result.spearman == pytest.approx(np.mean(expected)) and result.splits == 2
    assert selection.correlations(found[:3], "mean") == {}


def test_add_stores_a_finished_run(tmp_path):
    config = pca.get_config("phantom")
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(
            {"data.image_size": 16, "data.phantom_normal": 40, "data.phantom_anomalous": 5, "model.components": 4}
        )
    workdir = tmp_path / "runs" / "any"
    bigan_jax.train(config, workdir)
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    rows, lines = {}, {}
    (found,) = runs.find_runs([tmp_path])
    runs.add(rows, lines, found, "abc")
    (name,) = rows
    row = rows[name]
    assert name == "pca-phantom-bottle-seed0" and tuple(row) == runs.COLUMNS and row["commit"] == "abc"
    assert row["command"] == "bigan-jax train pca:phantom " + row["overrides"] and "data.dir" not in row["command"]
    for score, column in ((row["score"], "auroc"), ("paper", "paper_auroc")):
        assert float(row[column]) == pytest.approx(evaluation["scores"][score]["auroc"], rel=1e-5)
    assert "--model.components=4" in row["command"]
    labels = lines[lines[name]["test"]]["label"]
    assert roc_auc_score(labels, lines[name]["scores"]["paper"]) == pytest.approx(float(row["paper_auroc"]))

    measured = dict(measure_runs([workdir]))[workdir]
    assert measured.keys() == {"paper", "calibrated"} and 0 <= measured["paper"]["mean"] <= 1
    compared = compare([workdir], tmp_path / "comparison", synthetic=True)
    assert compared.datasets[0].rows[0].values["synthetic"].mean == measured["calibrated"]["mean"]
    assert "AUROC of synthetic defects" in (tmp_path / "comparison" / "comparison.md").read_text(encoding="utf-8")

    other = json.loads(json.dumps(lines))
    other[lines[name]["test"]]["path"][0] = "another.png"
    with pytest.raises(UserError, match="other images"):
        runs.add({}, other, workdir, "abc")
    with pytest.raises(UserError, match="stored with another config"):
        runs.add({name: {**row, "overrides": "--model.components=8"}}, {}, workdir, "abc")
    with pytest.raises(UserError, match="no finished run"):
        list(runs.find_runs([tmp_path / "elsewhere"]))
