"""Comparison of runs: what is read, what is left out, and what is said of it."""

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
from bigan_jax.reports.comparison_tables import comparison_tables, csv_rows
from tests.helpers.datasets import pictures, write_run


def runs_in(folder):
    return [read_run(path) for path in sorted(folder.iterdir())]


# Reading strangers' files


def broken_files():
    good = json.dumps

    def replaced(**values):
        return lambda content: good(content | values)

    yield "not valid JSON", lambda content: "{"
    yield "Expected `object`, got `array`", lambda content: "[" * 100_000
    yield "Expected `object`, got `array`", lambda content: "[]"
    yield "unknown field `controls`", replaced(controls={})
    yield (
        "missing required field `ablations`",
        lambda content: good(
            {name: value for name, value in content.items() if name != "ablations"}
        ),
    )
    yield "auroc: Expected `float` <= 1.0", replaced(auroc=1.5)
    yield "auroc: Expected `float | null`, got `str`", replaced(auroc="0.9")
    yield "not valid JSON", replaced(f1=float("nan"))
    yield "recall: Expected `float | null`, got `bool`", replaced(recall=True)
    yield "seed: Expected `int`", replaced(seed=0.5)
    yield "n_normal: Expected `int` >= 0", replaced(n_normal=-1)
    yield "model must be printable", replaced(model="a\nb")
    yield "model must be printable", replaced(model="\u202egnp.exe")
    yield "dataset: Expected `str` of length <= 100", replaced(dataset="d" * 101)
    yield "ablations: Expected `array`", replaced(ablations="no_se")
    yield "auroc_ci must have the lower limit first", replaced(auroc_ci=[0.9, 0.1])
    yield "baselines[...]: Expected `float | null`", replaced(baselines={"pca": [1]})
    yield "pixel.auroc: Expected `float` <= 1.0", replaced(pixel={"auroc": 7})
    yield "pixel_baselines: Expected `object`", replaced(pixel_baselines=[3])
    yield "calibration_scores[1]: Expected `float`", replaced(calibration_scores=[0.1, "x"])
    yield "larger than 16 MiB", lambda content: good(content) + " " * 2**24


@pytest.mark.parametrize(("reason", "spoil"), list(broken_files()))
def test_a_broken_evaluation_is_named_and_left_out(tmp_path, reason, spoil):
    write_run(tmp_path / "runs" / "good")
    content = write_run(tmp_path / "runs" / "bad")
    (tmp_path / "runs" / "bad" / "evaluation.json").write_text(spoil(content), encoding="utf-8")
    found = compare(str(tmp_path / "runs" / "*"), tmp_path / "out")
    ((folder, why),) = found.skipped
    assert folder.endswith("bad") and reason in why
    assert len(found.standings[0].rows) == 1
    assert html.escape(reason) in (tmp_path / "out" / "comparison.html").read_text()
    with pytest.raises(UserError, match="no finished run"):
        compare(tmp_path / "runs" / "bad", tmp_path / "none")


def test_files_that_are_no_files(tmp_path):
    write_run(tmp_path / "good")
    for name in ("pipe", "bytes"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "evaluation.json")
    (tmp_path / "bytes" / "evaluation.json").write_bytes(b'{"a": "\xff"}')
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / "config.json").write_text("{}")
    (tmp_path / "unrelated").mkdir()
    found = compare(str(tmp_path / "*"), tmp_path / "out")
    assert [Path(name).name for name, _ in found.skipped] == ["bytes", "pipe"]
    assert [Path(name).name for name in found.unfinished] == ["started"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda text: text.replace(",normal,", ",odd,", 1), "format"),
        (lambda text: text.replace("score", "points", 1), "format"),
        (lambda text: text + text.splitlines()[-1] + "\n", "twice"),
        (lambda text: "\n".join(text.splitlines()[:-1]) + "\n", "different numbers"),
        (lambda text: re.sub(r",[-\d.e]+,(\w+)$", r",nan,\1", text, count=1, flags=re.M), "finite"),
        (lambda text: re.sub(r",([-\d.e]+),(\w+)$", r",1,\2", text, flags=re.M), "the AUROC"),
        (None, "no scores.csv"),
    ],
)
def test_scores_that_cannot_be_paired_are_said(tmp_path, spoil, reason):
    write_run(tmp_path / "runs" / "a", model="cae", strength=3.0)
    write_run(tmp_path / "runs" / "b", model="vae")
    path = tmp_path / "runs" / "b" / "scores.csv"
    if spoil:
        path.write_text(spoil(path.read_text()))
    else:
        path.unlink()
    (found,) = compare_runs(runs_in(tmp_path / "runs"))
    assert reason in found.differences["vae"]


# Rows


def test_seeds_are_averaged(tmp_path):
    contents = [write_run(tmp_path / f"s{seed}", seed=seed, native=0.5) for seed in range(4)]
    (found,) = compare_runs(runs_in(tmp_path))
    (row,) = found.rows
    for name in METRICS:
        values = [content[name] for content in contents]
        assert row.values[name] == pytest.approx((np.mean(values), np.std(values, ddof=1), 4))
    assert row.values["baseline"].mean == found.baseline == 0.95
    assert row.values["calibration_score"].mean == 0.625
    assert row.values["native"].mean == 0.5 and row.values["pixel_baseline"].mean == 0.7
    assert row.inconsistencies == [] and found.differences == {}


def test_what_is_not_the_same_detector_gets_its_own_row(tmp_path):
    write_run(tmp_path / "a", config={"model.latent": 16, "data.dir": "x"})
    write_run(tmp_path / "b", config={"model.latent": 16, "data.dir": "y"}, seed=1)
    write_run(tmp_path / "b2", config={"model.latent": 16}, seed=1)
    write_run(tmp_path / "c", config={"model.latent": 64})
    write_run(tmp_path / "d", config={"model.latent": 64}, quick=True)
    write_run(tmp_path / "e", config={"model.latent": 64}, ablations=["no_se"])
    write_run(tmp_path / "f", dataset="brain", category="")
    found = {each.title: each for each in compare_runs(runs_in(tmp_path))}
    assert list(found) == ["brain", "phantom, bottle"]
    rows = {row.label: len(row.runs) for row in found["phantom, bottle"].rows}
    assert rows == {
        "cae [model.latent=16]": 2,
        "cae [model.latent=64]": 1,
        "cae (quick)": 1,
        "cae, no_se": 1,
    }
    notes = " ".join(found["phantom, bottle"].notes)
    assert "same run as" in notes and "synthetic images" in notes
    assert "with the modifier quick, for a first look: cae (quick)" in notes


def test_two_folders_under_one_name_are_told_apart(tmp_path):
    """They are not seeds of one detector, and neither is a copy of the other."""
    write_run(tmp_path / "nuts", dataset="folder", category="")
    screws = pictures(normal=60)
    write_run(tmp_path / "screws", dataset="folder", category="", test=screws)
    (found,) = compare_runs(runs_in(tmp_path))
    assert len(found.rows[0].runs) == 1
    (note,) = (note for note in found.notes if "screws" in note)
    assert "other images than" in note and "data.name" in note


def test_an_older_config_means_what_it_meant(tmp_path):
    """A field that it lacks is not one in which runs agree."""
    write_run(tmp_path / "old", config={"model.latent": 16})
    write_run(tmp_path / "new", config={"model.latent": 16, "data.window": True}, seed=1)
    (found,) = compare_runs(runs_in(tmp_path))
    labels = {row.label for row in found.rows}
    assert labels == {"cae [data.window=false]", "cae [data.window=true]"}


def test_a_doubted_threshold_is_told(tmp_path):
    write_run(tmp_path / "a", model="cae", evaluation={"threshold_note": "from 3 groups only"})
    write_run(tmp_path / "b", model="vae")
    (found,) = compare_runs(runs_in(tmp_path))
    (told,) = [note for note in found.notes if "calibrated" in note]
    assert told.endswith(": cae")


def test_notes_tell_what_is_not_comparable(tmp_path):
    write_run(tmp_path / "a", model="cae", config={"data.split_seed": 1})
    write_run(tmp_path / "b", model="vae", config={"data.split_seed": 2}, evaluation={"n_train": 7})
    write_run(tmp_path / "c", model="vae", config={"data.split_seed": 2}, seed=1)
    write_run(tmp_path / "d", model="fcae", config={"phases.phase1.epochs": 9})
    write_run(tmp_path / "e", model="bigan", evaluation={"accuracy": 0.99})
    (found,) = compare_runs(runs_in(tmp_path))
    notes = "\n".join(found.notes)
    assert "n_train differs: 7, 80 (vae); 80 (" in notes
    assert "data.split_seed differs: 1 (cae); 2 (vae)" in notes
    assert "number of seeds differs: 1 (" in notes and "2 (vae)" in notes
    assert "incomplete: trained 2 of 9 epochs" in notes
    assert "bigan is inconsistent" in notes and "at this test set's prevalence" in notes
    assert notes.count("is inconsistent") == 1


def test_runs_of_a_row_with_each_their_own_split_are_told_together(tmp_path):
    for model in ("cae", "vae"):
        for seed in range(2):
            fields, sizes = {"data.split_seed": seed}, {"n_train": 80 + seed}
            write_run(
                tmp_path / f"{model}{seed}", model=model, seed=seed, config=fields, evaluation=sizes
            )
    (found,) = compare_runs(runs_in(tmp_path))
    told = [note for note in found.notes if "differs" in note]
    labels = ", ".join(row.label for row in found.rows)
    assert told == [
        f"n_train differs: 80, 81 ({labels})",
        f"data.split_seed differs: 0, 1 ({labels})",
    ]


# Paired differences


def brute_force(scores, label, group, draws, rng):
    """AUROCs on whole-group resamples, each made of repeated pictures and counted pair by pair."""
    members = {name: [i for i, g in enumerate(group) if g == name] for name in set(group)}
    strata = {}
    for name, indices in members.items():
        strata.setdefault(frozenset(bool(label[i]) for i in indices), []).append(name)
    for _ in range(draws):
        names = [n for stratum in strata.values() for n in rng.choice(stratum, len(stratum))]
        chosen = np.array([i for name in names for i in members[name]])
        above, below = chosen[label[chosen]], chosen[~label[chosen]]
        yield [np.mean(np.sign(s[above][:, None] - s[below]) / 2 + 0.5) for s in scores]


def test_paired_bootstrap_is_that_of_a_loop(tmp_path):
    path, label, group = pictures(24, 18, per_group=3)
    group[3] = group[-1]  # a group with both kinds
    rng = np.random.default_rng(5)
    common = rng.normal(size=42) + 0.8 * label  # detectors find the same pictures hard
    scores = [np.round(common + rng.normal(scale=s, size=42), 2) for s in (0.3, 0.3, 0.7, 0.7)]
    for i, score in enumerate(scores):
        model = ("cae", "vae")[i // 2]
        test = path, label, group
        write_run(tmp_path / f"{i}", model=model, seed=i % 2, score=score, test=test)
    runs = runs_in(tmp_path)
    found = statistics.paired_difference(
        runs[:2], runs[2:], samples := statistics.bootstrap_samples(runs)
    )
    drawn = np.array(list(brute_force(scores, label, group, 4000, np.random.default_rng(7))))
    difference = drawn[:, :2].mean(1) - drawn[:, 2:].mean(1)
    ends = np.quantile(difference, [0.025, 0.975])
    width = ends[1] - ends[0]
    assert found.interval == pytest.approx(ends, abs=0.1 * width)
    unpaired = np.quantile(drawn[:, :2].mean(1) - np.roll(drawn[:, 2:].mean(1), 1), [0.025, 0.975])
    assert unpaired[1] - unpaired[0] > 1.5 * width  # so the first assertion tells pairing
    aurocs = [roc_auc_score(label, score) for score in scores]
    assert found.value == pytest.approx(np.mean(aurocs[:2]) - np.mean(aurocs[2:]))
    assert statistics.paired_difference(runs[:1], runs[:1], samples) == Difference(0.0, (0.0, 0.0))


def test_pairs_need_the_same_pictures_in_any_order(tmp_path):
    write_run(tmp_path / "a", model="cae", strength=3.0)
    write_run(tmp_path / "b", model="vae")
    write_run(tmp_path / "c", model="fcae", test=pictures(prefix="q"))
    write_run(tmp_path / "d", model="bigan", test=pictures(normal=39, anomalous=31))
    write_run(tmp_path / "e", model="cvae", test=pictures(1, 30, per_group=1))
    straight = compare_runs(runs_in(tmp_path))[0].differences
    head, *rows = (tmp_path / "b" / "scores.csv").read_text().splitlines()
    (tmp_path / "b" / "scores.csv").write_text("\n".join([head, *rows[::-1]]) + "\n")
    (found,) = compare_runs(runs_in(tmp_path))
    assert found.differences["vae"] == straight["vae"]
    assert found.differences["vae"].value < 0
    assert found.differences["fcae"] == "not tested on the same images"
    assert found.differences["bigan"] == "not tested on the same images"
    assert found.differences["cvae"] == "not tested on the same images"
    few = [row.runs for row in found.rows if row.model == "cvae"] * 2
    assert "fewer than two groups" in statistics.paired_difference(
        *few, statistics.bootstrap_samples(few[0])
    )


def test_over_splits_each_is_paired_with_its_own(tmp_path):
    """The second split is harder for both, which says nothing of either; one has a group too few
    for a bootstrap."""
    tests = pictures(), pictures(8, 30, per_group=8, prefix="q")
    strengths = {"cae": (3.0, 1.5), "vae": (2.0, 0.5), "fcae": (0.1,), "cvae": (1.0, 0.8)}
    for model, values in strengths.items():
        for seed, strength in enumerate(values):
            fields = {"data.split_seed": seed}
            test = tests[seed if model != "cvae" else 0]
            write_run(
                tmp_path / f"{model}{seed}",
                model=model, seed=seed, test=test, strength=strength, config=fields,
            )  # fmt: skip
    (found,) = compare_runs(runs_in(tmp_path))
    aurocs = {row.label: [run.result.auroc for run in row.runs] for row in found.rows}
    best = next(iter(aurocs))
    assert best == "cae"
    apart = np.subtract(aurocs["vae"], aurocs["cae"])
    value = found.differences["vae"]
    assert value.interval is None
    assert (value.value, value.std) == pytest.approx((apart.mean(), apart.std(ddof=1)))
    assert value.splits == 2
    assert found.differences["fcae"] == found.differences["cvae"] == "not tested on the same images"
    (table,) = [t for t in comparison_tables(found) if t.title.startswith("Differences")]
    assert ["vae", value, "over 2 splits"] in table.rows
    lines = list(csv_rows([found]))
    (line,) = [row for row in lines if row[0] == "difference" and row[3] == "vae"]
    assert line[9:] == [value.value, value.std, 2, "", "", ""]


def test_the_plot_has_an_interval_where_all_runs_have_one(tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"a{seed}", model="cae", seed=seed)
        less = {"auroc_ci": None} if seed else {}
        write_run(tmp_path / f"b{seed}", model="vae", seed=seed, evaluation=less)
    (section,) = [_plot(found) for found in compare_runs(runs_in(tmp_path))]
    assert {dot.label: dot.interval is not None for dot in section.dots} == {
        "cae": True,
        "vae": False,
    }


def test_a_split_without_a_class_is_said(tmp_path):
    lacking = pictures(40, 0, prefix="q")
    for model in ("cae", "vae"):
        for seed in range(2):
            fields, test = {"data.split_seed": seed}, lacking if seed else None
            write_run(tmp_path / f"{model}{seed}", model=model, seed=seed, test=test, config=fields)
    (found,) = compare_runs(runs_in(tmp_path))
    assert list(found.differences.values()) == ["a test set lacks a class"]


def test_ablations_stand_against_their_full_model(tmp_path):
    full = write_run(tmp_path / "a", model="improved_bigan", strength=2.0)
    part = write_run(tmp_path / "b", model="improved_bigan", ablations=["no_se"], strength=1.0)
    write_run(tmp_path / "c", model="improved_bigan", ablations=["no_se"], quick=True)
    (found,) = compare_runs(runs_in(tmp_path))
    ((pair, value),) = found.ablations.items()
    assert pair == ("improved_bigan", "improved_bigan, no_se")
    assert value.value == pytest.approx(part["auroc"] - full["auroc"])
    assert value.interval[0] < value.value < value.interval[1]


def test_ablations_stand_against_every_row_that_lacks_fewer_parts(tmp_path):
    for number, parts in enumerate((["a"], ["a", "b"], ["c", "b", "a"], ["b", "d"])):
        write_run(tmp_path / str(number), model="improved_bigan", ablations=parts)
    (found,) = compare_runs(runs_in(tmp_path))
    name = "improved_bigan, {}".format
    one, two, three = name("a"), name("a, b"), name("c, b, a")
    assert set(found.ablations) == {(one, two), (one, three), (two, three)}


def test_an_ablation_is_told_by_the_fields_that_differ(tmp_path):
    """Also where more differs than what the ablation's name says."""
    field, ablated = "model.se_ratio", {"model.se_ratio": 0, "batch_size": 8, "data.dir": "x"}
    whole = {field: 16, "batch_size": 4, "data.dir": "y"}
    write_run(tmp_path / "a", model="improved_bigan", config=whole)
    write_run(tmp_path / "b", model="improved_bigan", ablations=["no_se"], config=ablated)
    (found,) = compare_runs(runs_in(tmp_path))
    (table,) = [
        t for t in comparison_tables(found) if t.title.startswith("Ablations of improved_bigan")
    ]
    assert "improved_bigan, no_se: batch_size 8, not 4; model.se_ratio 0, not 16" in table.notes
