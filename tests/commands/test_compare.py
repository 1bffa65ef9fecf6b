"""Comparison of runs: reading of files, skipped runs, rows, notes and paired differences."""

import html
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bigan_jax.commands.compare import _plot, compare
from bigan_jax.errors import UserError
from bigan_jax.evaluation import statistics
from bigan_jax.evaluation.comparison import compare_runs
from bigan_jax.evaluation.finished_run import read_run
from bigan_jax.evaluation.paper_results import METRICS
from bigan_jax.evaluation.statistics import Difference
from bigan_jax.metrics.bootstrap import paired_auroc_interval
from bigan_jax.reports.comparison_tables import comparison_tables, csv_rows
from tests.helpers.datasets import evaluation_content, image_table, main_score, scores_of_auroc, write_run


def read_runs(folder):
    return [read_run(path) for path in sorted(folder.iterdir())]


# --- untrusted files ---


def corrupt_evaluations():
    dump = json.dumps

    def replaced(**values):
        return lambda content: dump(content | values)

    def replaced_in_score(**values):
        return lambda content: dump(evaluation_content(**values))

    yield "not valid JSON", lambda content: "{"
    yield "Expected `object`, got `array`", lambda content: "[" * 100_000
    yield "Expected `object`, got `array`", lambda content: "[]"
    yield "unknown field `controls`", replaced(controls={})
    yield (
        "missing required field `ablations`",
        lambda content: dump({k: v for k, v in content.items() if k != "ablations"}),
    )
    yield "auroc: Expected `float` <= 1.0", replaced_in_score(auroc=1.5)
    yield "auroc: Expected `float | null`, got `str`", replaced_in_score(auroc="0.9")
    yield "not valid JSON", replaced_in_score(f1=float("nan"))
    yield "recall: Expected `float | null`, got `bool`", replaced_in_score(recall=True)
    yield "seed: Expected `int`", replaced(seed=0.5)
    yield "n_normal: Expected `int` >= 0", replaced(n_normal=-1)
    yield "n_train: Expected `int` >= 0", replaced(n_train=-1)
    yield "the names of baselines must be printable", replaced_in_score(baselines={"a\nb": 0.5})
    yield "model must be printable", replaced(model="a\nb")
    yield "model must be printable", replaced(model="\u202egnp.exe")
    yield "dataset: Expected `str` of length <= 100", replaced(dataset="d" * 101)
    yield "ablations: Expected `array`", replaced(ablations="no_se")
    yield "auroc_ci must have the lower limit first", replaced_in_score(auroc_ci=[0.9, 0.1])
    yield "baselines[...]: Expected `float | null`", replaced_in_score(baselines={"pca": [1]})
    yield "pixel.auroc: Expected `float` <= 1.0", replaced(pixel={"auroc": 7})
    yield "pixel_baselines: Expected `object`", replaced(pixel_baselines=[3])
    yield "calibration_scores[1]: Expected `float`", replaced_in_score(calibration_scores=[0.1, "x"])
    yield "larger than 16 MiB", lambda content: dump(content) + " " * 2**24


@pytest.mark.parametrize(("reason", "corrupt"), list(corrupt_evaluations()))
def test_corrupt_evaluation_is_reported_and_skipped(tmp_path, reason, corrupt):
    write_run(tmp_path / "runs" / "good")
    content = write_run(tmp_path / "runs" / "bad")
    (tmp_path / "runs" / "bad" / "evaluation.json").write_text(corrupt(content), encoding="utf-8")
    comparison = compare(str(tmp_path / "runs" / "*"), tmp_path / "out")
    ((folder, message),) = comparison.skipped
    assert folder.endswith("bad") and reason in message
    assert len(comparison.datasets[0].rows) == 1
    assert html.escape(reason) in (tmp_path / "out" / "comparison.html").read_text()
    with pytest.raises(UserError, match="no finished run"):
        compare(tmp_path / "runs" / "bad", tmp_path / "none")


def test_pipes_and_invalid_text_are_skipped(tmp_path):
    write_run(tmp_path / "good")
    for name in ("pipe", "bytes"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "evaluation.json")
    (tmp_path / "bytes" / "evaluation.json").write_bytes(b'{"a": "\xff"}')
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / "config.json").write_text("{}")
    (tmp_path / "unrelated").mkdir()
    comparison = compare(str(tmp_path / "*"), tmp_path / "out")
    assert [Path(name).name for name, _ in comparison.skipped] == ["bytes", "pipe"]
    assert [Path(name).name for name in comparison.unfinished] == ["started"]


@pytest.mark.parametrize(
    ("corrupt", "reason"),
    [
        (lambda text: text.replace(",normal,", ",odd,", 1), "format"),
        (lambda text: text.replace("calibrated", "points", 1), "format"),
        (lambda text: text + text.splitlines()[-1] + "\n", "twice"),
        (lambda text: "\n".join(text.splitlines()[:-1]) + "\n", "different numbers"),
        (lambda text: re.sub(r",[-\d.e]+,(\w+)$", r",nan,\1", text, count=1, flags=re.M), "finite"),
        (lambda text: re.sub(r",([-\d.e]+),(\w+)$", r",1,\2", text, flags=re.M), "the AUROC"),
        (None, "no scores.csv"),
    ],
)
def test_scores_that_cannot_be_paired_are_reported(tmp_path, corrupt, reason):
    write_run(tmp_path / "runs" / "a", model="cae", strength=3.0)
    write_run(tmp_path / "runs" / "b", model="vae")
    path = tmp_path / "runs" / "b" / "scores.csv"
    if corrupt:
        path.write_text(corrupt(path.read_text()))
    else:
        path.unlink()
    (dataset,) = compare_runs(read_runs(tmp_path / "runs"))
    assert reason in dataset.differences["vae"]


# --- rows and notes ---


def test_runs_without_images_have_no_synthetic_defects(tmp_path, capsys):
    write_run(tmp_path / "a", seed=0)
    (tmp_path / "a" / "config.json").write_text("{}")
    comparison = compare(tmp_path / "a", tmp_path / "out", synthetic=True)
    assert comparison.datasets[0].rows[0].values["synthetic"] is None
    assert "Warning: no synthetic defects for" in capsys.readouterr().out


def test_row_has_mean_and_std_over_seeds(tmp_path):
    contents = [write_run(tmp_path / f"s{seed}", seed=seed, native=0.5) for seed in range(4)]
    (dataset,) = compare_runs(read_runs(tmp_path))
    (row,) = dataset.rows
    for name in METRICS:
        values = [main_score(content)[name] for content in contents]
        assert row.values[name] == pytest.approx((np.mean(values), np.std(values, ddof=1), 4))
    assert row.values["baseline"].mean == dataset.baseline == 0.95
    assert row.values["calibration_score"].mean == 0.625
    assert row.values["native"].mean == 0.5 and row.values["pixel_baseline"].mean == 0.7
    assert row.inconsistencies == []
    assert dataset.strongest_baseline == ("mahalanobis_16", 0.95)
    assert dataset.differences["cae"].value == pytest.approx(row.values["auroc"].mean - 0.95)


def test_each_config_variant_has_its_own_row(tmp_path):
    write_run(tmp_path / "a", config={"model.latent": 16, "data.dir": "x"})
    write_run(tmp_path / "b", config={"model.latent": 16, "data.dir": "y"}, seed=1)
    write_run(tmp_path / "b2", config={"model.latent": 16}, seed=1)
    write_run(tmp_path / "c", config={"model.latent": 64})
    write_run(tmp_path / "d", config={"model.latent": 64}, quick=True)
    write_run(tmp_path / "e", config={"model.latent": 64}, ablations=["no_se"])
    write_run(tmp_path / "f", dataset="brain", category="")
    datasets = {dataset.title: dataset for dataset in compare_runs(read_runs(tmp_path))}
    assert list(datasets) == ["brain", "phantom, bottle"]
    rows = {row.label: len(row.runs) for row in datasets["phantom, bottle"].rows}
    assert rows == {"cae [model.latent=16]": 2, "cae [model.latent=64]": 1, "cae (quick)": 1, "cae, no_se": 1}
    notes = " ".join(datasets["phantom, bottle"].notes)
    assert "same run as" in notes and "synthetic images" in notes
    assert "with the modifier quick, for a first look: cae (quick)" in notes


def test_runs_on_different_images_under_one_name_are_not_seeds_of_one_row(tmp_path):
    """Neither are they copies of one run."""
    write_run(tmp_path / "nuts", dataset="folder", category="")
    screws = image_table(normal=60)
    write_run(tmp_path / "screws", dataset="folder", category="", test=screws)
    (dataset,) = compare_runs(read_runs(tmp_path))
    assert len(dataset.rows[0].runs) == 1
    (note,) = (note for note in dataset.notes if "screws" in note)
    assert "other images than" in note and "data.name" in note


def test_promises_of_the_runs_are_repeated_once(tmp_path):
    for model in ("cae", "vae"):
        write_run(tmp_path / model, model=model)
    write_run(tmp_path / "fcae", model="fcae", evaluation={"promise": None, "threshold_rule": "manual"})
    (dataset,) = compare_runs(read_runs(tmp_path))
    (note,) = [note for note in dataset.notes if note.startswith("thresholds: ")]
    (promise,) = {run.result.main.promise for row in dataset.rows for run in row.runs} - {None}
    assert note == f"thresholds: {promise.sentence}"
    assert any(note.startswith("threshold_rule differs: ") for note in dataset.notes)


def test_both_rankings_appear_if_the_scores_rank_another_detector_first(tmp_path):
    _, label, _ = image_table()
    noise = np.random.default_rng(0).normal(size=(6, len(label)))
    strengths = {"cae": (2.0, 0.5), "vae": (1.2, 1.5), "fcae": (0.2, 1.0)}  # of the calibrated and the paper's score
    for i, (model, (strength, of_paper)) in enumerate(strengths.items()):
        score, paper_score = noise[2 * i] + strength * label, noise[2 * i + 1] + of_paper * label
        write_run(tmp_path / model, model=model, score=score, paper_score=paper_score)
    (dataset,) = compare_runs(read_runs(tmp_path))
    assert dataset.score == "calibrated"
    assert [row.label for row in dataset.rows] == ["cae", "vae", "fcae"]
    aurocs = {row.label: row.runs[0].result.scores["paper"].auroc for row in dataset.rows}
    assert aurocs["vae"] > aurocs["fcae"] > aurocs["cae"]
    expected = ", ".join(f"{name} {aurocs[name]:.3f}" for name in ("vae", "fcae", "cae"))
    assert f"the paper's score ranks differently: {expected}" in dataset.notes
    values = dataset.rows[0].values
    assert values["auroc"] == values["calibrated_auroc"] != values["paper_auroc"]
    assert values["paper_auroc"].mean == aurocs["cae"]
    # Differences are by the score that ranks.
    (second,) = (row.runs[0].result.scores["calibrated"].auroc for row in dataset.rows if row.label == "vae")
    assert dataset.differences["vae"].value == pytest.approx(second - 0.95)
    (table,) = [t for t in comparison_tables(dataset) if t.title.startswith("Results")]
    assert [heading for heading in table.columns if heading[0] == "AUROC"][:2] == [
        ("AUROC", "calibrated score"),
        ("AUROC", "paper's score"),
    ]
    assert any("ranked by the calibrated score" in note for note in table.notes)


def test_no_second_ranking_if_both_scores_rank_the_same_detector_first(tmp_path):
    _, label, _ = image_table()
    noise = np.random.default_rng(0).normal(size=(6, len(label)))
    for i, strength in enumerate((3.0, 1.0, 0.9)):  # the order of the others does not matter
        scores = noise[2 * i] + strength * label, noise[2 * i + 1] + strength * label
        write_run(tmp_path / f"{i}", model=("cae", "vae", "fcae")[i], score=scores[0], paper_score=scores[1])
    (dataset,) = compare_runs(read_runs(tmp_path))
    assert not [note for note in dataset.notes if "ranks differently" in note]


@pytest.mark.parametrize(
    ("names", "expected"), [(("paper", "paper"), "paper"), (("paper", "calibrated"), "calibrated")]
)
def test_comparison_is_by_the_score_that_decides_in_all_runs(names, expected, tmp_path):
    _, label, _ = image_table()
    noise = np.random.default_rng(0).normal(size=(4, len(label)))
    for i, name in enumerate(names):
        scores = noise[i] + (2 - i) * label, noise[i + 2] + (1 + i) * label  # ranked in opposite orders
        write_run(
            tmp_path / name / str(i), model=("cae", "vae")[i],
            score=scores[0], paper_score=scores[1], evaluation={"score_name": name},
        )  # fmt: skip
    (dataset,) = compare_runs([read_run(path.parent) for path in sorted(tmp_path.glob("*/*/config.json"))])
    assert dataset.score == expected
    for row in dataset.rows:
        assert row.values["auroc"] == row.values[f"{expected}_auroc"]
        (auroc,) = (run.result.scores[expected].auroc for run in row.runs)
        assert row.values["auroc"].mean == auroc
        assert dataset.differences[row.label].value == pytest.approx(auroc - 0.95)


def test_notes_list_differences_between_runs(tmp_path):
    write_run(tmp_path / "a", model="cae", config={"data.split_seed": 1})
    write_run(tmp_path / "b", model="vae", config={"data.split_seed": 2}, evaluation={"n_train": 7})
    write_run(tmp_path / "c", model="vae", config={"data.split_seed": 2}, seed=1)
    write_run(tmp_path / "d", model="fcae", config={"phases.phase1.epochs": 9})
    write_run(tmp_path / "e", model="bigan", evaluation={"paper": {"accuracy": 0.99}})
    (dataset,) = compare_runs(read_runs(tmp_path))
    notes = "\n".join(dataset.notes)
    assert "n_train differs: 7, 80 (vae); 80 (" in notes
    assert "data.split_seed differs: 1 (cae); 2 (vae)" in notes
    assert "number of seeds differs: 1 (" in notes and "2 (vae)" in notes
    assert "incomplete: trained 2 of 9 epochs" in notes
    assert f"bigan is inconsistent: {tmp_path / 'e'}, paper: " in notes and "at this test set's prevalence" in notes
    assert notes.count("is inconsistent") == 1


def test_fields_that_vary_with_the_seed_are_noted_once(tmp_path):
    for model in ("cae", "vae"):
        for seed in range(2):
            fields, sizes = {"data.split_seed": seed}, {"n_train": 80 + seed}
            write_run(tmp_path / f"{model}{seed}", model=model, seed=seed, config=fields, evaluation=sizes)
    (dataset,) = compare_runs(read_runs(tmp_path))
    differences = [note for note in dataset.notes if "differs" in note]
    labels = ", ".join(row.label for row in dataset.rows)
    assert differences == [f"n_train differs: 80, 81 ({labels})", f"data.split_seed differs: 0, 1 ({labels})"]


# --- paired differences ---


def loop_bootstrap(scores, label, group, n_samples, rng):
    """Yields AUROCs on resamples of groups, computed from all pairs of images."""
    members = {name: [i for i, g in enumerate(group) if g == name] for name in set(group)}
    strata = {}
    for name, indices in members.items():
        strata.setdefault(frozenset(bool(label[i]) for i in indices), []).append(name)
    for _ in range(n_samples):
        names = [n for stratum in strata.values() for n in rng.choice(stratum, len(stratum))]
        chosen = np.array([i for name in names for i in members[name]])
        above, below = chosen[label[chosen]], chosen[~label[chosen]]
        yield [np.mean(np.sign(s[above][:, None] - s[below]) / 2 + 0.5) for s in scores]


def test_paired_bootstrap_equals_loop(tmp_path):
    path, label, group = image_table(24, 18, per_group=3)
    group[3] = group[-1]  # a group with normal and anomalous images
    rng = np.random.default_rng(5)
    common = rng.normal(size=42) + 0.8 * label  # the same images are hard for all detectors
    scores = [np.round(common + rng.normal(scale=s, size=42), 2) for s in (0.3, 0.3, 0.7, 0.7)]
    for i, score in enumerate(scores):
        model = ("cae", "vae")[i // 2]
        test = path, label, group
        write_run(tmp_path / f"{i}", model=model, seed=i % 2, score=score, test=test)
    runs = read_runs(tmp_path)
    samples = list(statistics.bootstrap_samples(runs, "calibrated").values())
    paired = statistics.paired_difference(samples[:2], samples[2:])
    sampled = np.array(list(loop_bootstrap(scores, label, group, 4000, np.random.default_rng(7))))
    difference = sampled[:, :2].mean(1) - sampled[:, 2:].mean(1)
    ends = np.quantile(difference, [0.025, 0.975])
    width = ends[1] - ends[0]
    assert paired.interval == pytest.approx(ends, abs=0.1 * width)
    unpaired = np.quantile(sampled[:, :2].mean(1) - np.roll(sampled[:, 2:].mean(1), 1), [0.025, 0.975])
    assert unpaired[1] - unpaired[0] > 1.5 * width  # so only a paired bootstrap passes the first assertion
    aurocs = [roc_auc_score(label, score) for score in scores]
    assert paired.value == pytest.approx(np.mean(aurocs[:2]) - np.mean(aurocs[2:]))
    assert statistics.paired_difference(samples[:1], samples[:1]) == Difference(0.0, (0.0, 0.0))
    of_two = paired_auroc_interval(scores[0], scores[2], label, np.array(group))
    sampled = np.quantile(sampled[:, 0] - sampled[:, 2], [0.025, 0.975])
    assert of_two == pytest.approx(sampled, abs=0.1 * (sampled[1] - sampled[0]))
    assert statistics.paired_difference(samples[:1], samples[2:3]).interval == pytest.approx(of_two)


def test_strongest_baseline_is_paired_with_every_row(tmp_path):
    """It is chosen once, over all runs, and its AUROC is resampled with the same images as that of the model."""
    path, label, group = image_table(24, 18, per_group=3)
    rng = np.random.default_rng(5)
    score = {model: np.round(rng.normal(size=42) + label, 6) for model in ("cae", "vae")}
    for model, baseline in (("cae", 0.8), ("vae", 0.7)):
        baselines = {"pca_8": baseline, "mean_image": 0.76, "corner_pixels": None}
        fields = {"baselines": baselines}
        write_run(tmp_path / model, model=model, score=score[model], test=(path, label, group), evaluation=fields)
    (dataset,) = compare_runs(read_runs(tmp_path))
    assert dataset.strongest_baseline == ("mean_image", pytest.approx(0.76, abs=0.002))
    for model, values in score.items():
        difference = dataset.differences[model]
        expected = paired_auroc_interval(values, scores_of_auroc(0.76, label), label, np.array(group))
        assert difference.interval == pytest.approx(expected)
        assert difference.value == pytest.approx(roc_auc_score(label, values) - dataset.strongest_baseline[1])
    (note,) = [note for note in dataset.notes if note.startswith("strongest training-free baseline: mean image")]
    assert "best of several by the test labels, which favors it" in note
    (tmp_path / "vae" / "baseline_scores.csv").unlink()
    assert "no baseline_scores.csv" in compare_runs(read_runs(tmp_path))[0].differences["vae"]


def test_pairing_requires_same_images_in_any_order(tmp_path):
    write_run(tmp_path / "a", model="cae", strength=3.0)
    write_run(tmp_path / "b", ablations=["vae"])
    write_run(tmp_path / "c", ablations=["fcae"], test=image_table(prefix="q"))
    write_run(tmp_path / "d", ablations=["bigan"], test=image_table(normal=39, anomalous=31))
    write_run(tmp_path / "e", ablations=["cvae"], test=image_table(1, 30, per_group=1))
    in_order = compare_runs(read_runs(tmp_path))[0].ablations
    head, *rows = (tmp_path / "b" / "scores.csv").read_text().splitlines()
    (tmp_path / "b" / "scores.csv").write_text("\n".join([head, *rows[::-1]]) + "\n")
    (dataset,) = compare_runs(read_runs(tmp_path))
    vae = dataset.ablations["cae", "cae, vae"]
    assert vae == in_order["cae", "cae, vae"] and vae.value < 0
    for name in ("fcae", "bigan", "cvae"):
        assert dataset.ablations["cae", f"cae, {name}"] == "not tested on the same images"
    assert "fewer than two groups" in dataset.differences["cae, cvae"]


def test_runs_over_splits_are_paired_by_split(tmp_path):
    """The second split is harder for both detectors, and has too few groups for a bootstrap."""
    tests = image_table(), image_table(8, 30, per_group=8, prefix="q")
    strengths = {"": (3.0, 1.5), "vae": (2.0, 0.5), "fcae": (0.1,), "cvae": (1.0, 0.8)}
    for name, values in strengths.items():
        for seed, strength in enumerate(values):
            fields = {"data.split_seed": seed}
            test = tests[seed if name != "cvae" else 0]
            write_run(
                tmp_path / f"{name}{seed}",
                ablations=[name] if name else [], seed=seed, test=test, strength=strength, config=fields,
            )  # fmt: skip
    (dataset,) = compare_runs(read_runs(tmp_path))
    aurocs = {row.label: [run.result.main.auroc for run in row.runs] for row in dataset.rows}
    differences = np.subtract(aurocs["cae, vae"], aurocs["cae"])
    value = dataset.ablations["cae", "cae, vae"]
    assert value.interval is None
    assert (value.value, value.std) == pytest.approx((differences.mean(), differences.std(ddof=1)))
    assert value.splits == 2
    for name in ("fcae", "cvae"):
        assert dataset.ablations["cae", f"cae, {name}"] == "not tested on the same images"
    (line,) = [row for row in csv_rows([dataset]) if row[0] == "ablation" and row[4] == "vae"]
    assert line[9:] == [value.value, value.std, 2, "", "", ""]
    (table,) = [t for t in comparison_tables(dataset) if t.title.startswith("Differences from the strongest baseline")]
    value = dataset.differences["cae"]
    assert value.value == pytest.approx(np.mean(aurocs["cae"]) - dataset.baseline) and value.interval is None
    assert ["cae", value, "over 2 splits"] in table.rows


def test_plot_has_interval_if_all_seeds_have_one(tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"a{seed}", model="cae", seed=seed)
        missing = {"auroc_ci": None} if seed else {}
        write_run(tmp_path / f"b{seed}", model="vae", seed=seed, evaluation=missing)
    (plot,) = [_plot(dataset) for dataset in compare_runs(read_runs(tmp_path))]
    assert {dot.label: dot.interval is not None for dot in plot.dots} == {"cae": True, "vae": False}


def test_plot_shows_detectors_without_the_ranking_score_by_their_own(tmp_path):
    write_run(tmp_path / "a", model="cae", dataset="phantom")
    content = write_run(tmp_path / "b", model="mahalanobis", dataset="phantom")
    of_score = content["scores"]["calibrated"] | {"baselines": {}}
    content |= {"score_name": "native", "scores": {"native": of_score}}
    (tmp_path / "b" / "evaluation.json").write_text(json.dumps(content), encoding="utf-8")
    (dataset,) = compare_runs(read_runs(tmp_path))
    assert dataset.score == "calibrated"
    assert {dot.label for dot in _plot(dataset).dots} == {"cae", "mahalanobis"}


def test_split_without_anomalous_images_is_noted(tmp_path):
    only_normal = image_table(40, 0, prefix="q")
    for model in ("cae", "vae"):
        for seed in range(2):
            fields, test = {"data.split_seed": seed}, only_normal if seed else None
            write_run(tmp_path / f"{model}{seed}", model=model, seed=seed, test=test, config=fields)
    (dataset,) = compare_runs(read_runs(tmp_path))
    assert list(dataset.differences.values()) == ["a test set lacks a class"] * 2


def test_ablation_is_compared_with_full_model(tmp_path):
    full = write_run(tmp_path / "a", model="improved_bigan", strength=2.0)
    ablated = write_run(tmp_path / "b", model="improved_bigan", ablations=["no_se"], strength=1.0)
    write_run(tmp_path / "c", model="improved_bigan", ablations=["no_se"], quick=True)
    (dataset,) = compare_runs(read_runs(tmp_path))
    ((pair, value),) = dataset.ablations.items()
    assert pair == ("improved_bigan", "improved_bigan, no_se")
    assert value.value == pytest.approx(main_score(ablated)["auroc"] - main_score(full)["auroc"])
    assert value.interval[0] < value.value < value.interval[1]


def test_ablations_are_subtracted_one_at_a_time_where_there_are_runs(tmp_path):
    for number, parts in enumerate((["a"], ["a", "b"], ["c", "b", "a"], ["b", "d"], ["e", "d", "b", "f"])):
        write_run(tmp_path / str(number), model="improved_bigan", ablations=parts)
    (dataset,) = compare_runs(read_runs(tmp_path))
    name = "improved_bigan, {}".format
    one, two, three = name("a"), name("a, b"), name("c, b, a")
    skipping = name("b, d"), name("e, d, b, f")
    assert set(dataset.ablations) == {(one, two), (two, three), skipping}


def test_ablation_notes_list_all_fields_that_differ(tmp_path):
    """Also fields that the ablation does not name."""
    field, ablated = "model.se_ratio", {"model.se_ratio": 0, "batch_size": 8, "data.dir": "x"}
    full = {field: 16, "batch_size": 4, "data.dir": "y"}
    write_run(tmp_path / "a", model="improved_bigan", config=full)
    write_run(tmp_path / "b", model="improved_bigan", ablations=["no_se"], config=ablated)
    (dataset,) = compare_runs(read_runs(tmp_path))
    (table,) = [t for t in comparison_tables(dataset) if t.title.startswith("Ablations of improved_bigan")]
    assert "improved_bigan, no_se: batch_size 8, not 4; model.se_ratio 0, not 16" in table.notes
