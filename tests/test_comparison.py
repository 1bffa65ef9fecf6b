"""Comparison of runs: what is read, what is left out, what is said of it, and in which files."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from bigan_jax import pairing, paper_tables, tables
from bigan_jax.comparison import compare
from bigan_jax.errors import UserError
from bigan_jax.paper_tables import METRICS, contradiction, fitting_prevalence
from bigan_jax.results import read_run
from bigan_jax.standings import standings
from tests.fabricated import pictures, write_run

ROOT = Path(__file__).parents[1]
PAPER = ROOT.parent / "shared" / "paper.txt"
HOSTILE = "=<script>alert(1)</script>|`$x_{1}\\input{a}`[b](c)&%#~^\"'"


def runs_in(folder):
    return [read_run(path) for path in sorted(folder.iterdir())]


# Can a row be true?


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.data())
def test_every_confusion_matrix_can_be_true(positive, negative, data):
    hit = data.draw(st.integers(0, positive))
    alarm = data.draw(st.integers(0, negative))
    row = {
        "accuracy": (hit + negative - alarm) / (positive + negative),
        "precision": hit / max(hit + alarm, 1),
        "recall": hit / positive,
        "f1": 2 * hit / (hit + alarm + positive),
        "specificity": 1 - alarm / negative,
    }
    share = positive / (positive + negative)
    rounded = {name: round(value, 3) for name, value in row.items()}
    low, high = fitting_prevalence(rounded)
    assert low - 1e-6 <= share <= high + 1e-6
    assert contradiction(rounded) is None
    assert contradiction(row, (share, share)) is None
    assert contradiction(row | {"accuracy": row["accuracy"] - 0.002}, (share, share))


def grid_has_a_witness(row):
    """Tries a fine grid of prevalences, recalls and specificities, as the definitions say."""
    _, accuracy, precision, recall, f1, specificity = row
    around = np.linspace(-0.00049, 0.00049, 9)
    p, r, s = np.meshgrid(
        np.linspace(0.0005, 0.9995, 2000), recall + around, specificity + around, indexing="ij"
    )
    found = (
        (p * r + (1 - p) * s, accuracy),
        (p * r / (p * r + (1 - p) * (1 - s)), precision),
    )
    exact = found[1][0]
    found += ((2 * exact * r / (exact + r), f1),)
    return np.all([abs(value - said) <= 0.0005 for value, said in found], axis=0).any()


def test_three_of_the_papers_thirty_rows_can_be_true():
    possible = set()
    for table in (paper_tables.BRAIN, paper_tables.BOTTLE, paper_tables.PLANT):
        assert table.rows.keys() == paper_tables.MODELS.keys()
        for model, row in table.rows.items():
            said = dict(zip(METRICS, row, strict=True))
            fits = fitting_prevalence(said)
            assert (fits is not None) == grid_has_a_witness(row), (table.number, model)
            assert (contradiction(said) is None) == (fits is not None)
            if fits:
                possible.add((table.number, model))
    assert possible == {("I", "cvae"), ("III", "vae"), ("III", "vqvae")}


def test_reasons_name_what_is_impossible():
    bigan = dict(zip(METRICS, paper_tables.BRAIN.rows["bigan"], strict=True))
    assert "accuracy equals recall and lies above specificity" in contradiction(bigan)
    assert "F1 is 0.890 where precision and recall give 0.880" in contradiction(bigan)
    cvae = dict(zip(METRICS, paper_tables.PLANT.rows["cvae"], strict=True))
    assert "ROC curve" in contradiction(cvae) and "not 0.410" in contradiction(cvae)


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not here")
def test_tables_are_the_papers():
    names = {"Beta-VAE": "beta_vae", "FC-AE": "fcae", "CNN-AE": "cae", "VQ-VAE": "vqvae"}
    row = re.compile(r"^([\w -]+)((?:\t0\.\d{3}){6})$", re.M)
    found = [
        (names.get(name, name.lower().replace(" ", "_")), tuple(map(float, values.split())))
        for name, values in row.findall(PAPER.read_text(encoding="utf-8"))
    ]
    ours = (paper_tables.BRAIN, paper_tables.BOTTLE, paper_tables.PLANT)
    assert found == [pair for table in ours for pair in table.rows.items()]


# Reading strangers' files


def broken_files():
    good = json.dumps

    def replaced(**values):
        return lambda content: good(content | values)

    yield "not JSON", lambda content: "{"
    yield "not JSON", lambda content: "[" * 100_000
    yield "not an object", lambda content: "[]"
    yield "lacks ablations", lambda c: good({k: v for k, v in c.items() if k != "ablations"})
    yield "auroc is not a number", replaced(auroc=1.5)
    yield "auroc is not a number", replaced(auroc="0.9")
    yield "f1 is not a number", replaced(f1=float("nan"))
    yield "recall is not a number", replaced(recall=True)
    yield "seed is not a whole number", replaced(seed=0.5)
    yield "n_normal is not", replaced(n_normal=-1)
    yield "model is not a printable name", replaced(model="a\nb")
    yield "model is not a printable name", replaced(model="\u202egnp.exe")
    yield "dataset is not a printable name", replaced(dataset="d" * 101)
    yield "ablations is not a list", replaced(ablations="no_se")
    yield "auroc_ci is not", replaced(auroc_ci=[0.9, 0.1])
    yield "controls is not", replaced(controls={"pca": [1]})
    yield "pixel is not", replaced(pixel={"auroc": 7})
    yield "pixel_controls is not", replaced(pixel_controls=[3])
    yield "larger than 16 MiB", lambda content: good(content) + " " * 2**24


@pytest.mark.parametrize(("reason", "spoil"), list(broken_files()))
def test_a_broken_evaluation_is_named_and_left_out(tmp_path, reason, spoil):
    write_run(tmp_path / "runs" / "good")
    content = write_run(tmp_path / "runs" / "bad")
    (tmp_path / "runs" / "bad" / "evaluation.json").write_text(spoil(content), encoding="utf-8")
    found = compare(str(tmp_path / "runs" / "*"), tmp_path / "out")
    ((folder, why),) = found.left_out
    assert folder.endswith("bad") and reason in why
    assert len(found.standings[0].rows) == 1
    assert reason in (tmp_path / "out" / "comparison.html").read_text()
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
    assert [Path(name).name for name, _ in found.left_out] == ["bytes", "pipe"]
    assert [Path(name).name for name in found.unfinished] == ["started"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda text: text.replace(",normal,", ",odd,", 1), "not what a run writes"),
        (lambda text: text.replace("score", "points", 1), "not what a run writes"),
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
    (found,) = standings(runs_in(tmp_path / "runs"))
    assert reason in found.differences["vae"]


# Rows


def test_seeds_are_averaged(tmp_path):
    contents = [write_run(tmp_path / f"s{seed}", seed=seed, native=0.5) for seed in range(4)]
    (found,) = standings(runs_in(tmp_path))
    (row,) = found.rows
    for name in METRICS:
        values = [content[name] for content in contents]
        assert row.figures[name] == pytest.approx((np.mean(values), np.std(values, ddof=1), 4))
    assert row.figures["control"].mean == found.control == 0.95
    assert row.figures["native"].mean == 0.5 and row.figures["pixel_control"].mean == 0.7
    assert row.wrong == [] and found.differences == {}


def test_what_is_not_the_same_detector_gets_its_own_row(tmp_path):
    write_run(tmp_path / "a", config={"model.latent": 16, "data.dir": "x"})
    write_run(tmp_path / "b", config={"model.latent": 16, "data.dir": "y"}, seed=1)
    write_run(tmp_path / "b2", config={"model.latent": 16}, seed=1)
    write_run(tmp_path / "c", config={"model.latent": 64})
    write_run(tmp_path / "d", config={"model.latent": 64}, quick=True)
    write_run(tmp_path / "e", config={"model.latent": 64}, ablations=["no_se"])
    write_run(tmp_path / "f", dataset="brain", category="")
    found = {each.title: each for each in standings(runs_in(tmp_path))}
    assert list(found) == ["brain", "phantom, bottle"]
    rows = {row.label: len(row.runs) for row in found["phantom, bottle"].rows}
    assert rows == {
        "cae [model.latent=16]": 2,
        "cae [model.latent=64]": 1,
        "cae (quick)": 1,
        "cae, no_se": 1,
    }
    notes = " ".join(found["phantom, bottle"].notes)
    assert "same run as" in notes and "drawn pictures" in notes
    assert "a first look (64x64, a tenth of the schedule): cae (quick)" in notes


def test_notes_tell_what_is_not_comparable(tmp_path):
    write_run(tmp_path / "a", model="cae", config={"data.split_seed": 1})
    write_run(tmp_path / "b", model="vae", config={"data.split_seed": 2}, evaluation={"n_train": 7})
    write_run(tmp_path / "c", model="vae", config={"data.split_seed": 2}, seed=1)
    write_run(tmp_path / "d", model="fcae", config={"phases.phase1.epochs": 9})
    write_run(tmp_path / "e", model="bigan", evaluation={"accuracy": 0.99})
    (found,) = standings(runs_in(tmp_path))
    notes = "\n".join(found.notes)
    assert "n_train differs: 7 (vae); 80 (" in notes
    assert "data.split_seed differs: 1 (cae); 2 (vae)" in notes
    assert "number of seeds differs: 1 (" in notes and "2 (vae)" in notes
    assert "incomplete: trained 2 of 9 epochs" in notes
    assert "bigan cannot be true" in notes and "at this test set's prevalence" in notes
    assert notes.count("cannot be true") == 1


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
    found = pairing.difference(runs[:2], runs[2:], samples := pairing.samples(runs))
    drawn = np.array(list(brute_force(scores, label, group, 4000, np.random.default_rng(7))))
    difference = drawn[:, :2].mean(1) - drawn[:, 2:].mean(1)
    ends = np.quantile(difference, [0.025, 0.975])
    width = ends[1] - ends[0]
    assert found.interval == pytest.approx(ends, abs=0.1 * width)
    unpaired = np.quantile(drawn[:, :2].mean(1) - np.roll(drawn[:, 2:].mean(1), 1), [0.025, 0.975])
    assert unpaired[1] - unpaired[0] > 1.5 * width  # so the first assertion tells pairing
    aurocs = [roc_auc_score(label, score) for score in scores]
    assert found.value == pytest.approx(np.mean(aurocs[:2]) - np.mean(aurocs[2:]))
    assert pairing.difference(runs[:1], runs[:1], samples) == (0.0, (0.0, 0.0))


def test_pairs_need_the_same_pictures_in_any_order(tmp_path):
    write_run(tmp_path / "a", model="cae", strength=3.0)
    write_run(tmp_path / "b", model="vae")
    write_run(tmp_path / "c", model="fcae", test=pictures(prefix="q"))
    write_run(tmp_path / "d", model="bigan", test=pictures(normal=39, anomalous=31))
    write_run(tmp_path / "e", model="cvae", test=pictures(1, 30, per_group=1))
    straight = standings(runs_in(tmp_path))[0].differences
    head, *rows = (tmp_path / "b" / "scores.csv").read_text().splitlines()
    (tmp_path / "b" / "scores.csv").write_text("\n".join([head, *rows[::-1]]) + "\n")
    (found,) = standings(runs_in(tmp_path))
    assert found.differences["vae"] == straight["vae"]
    assert found.differences["vae"].value < 0
    assert found.differences["fcae"] == "not tested on the same pictures"
    assert found.differences["bigan"] == "not tested on the same pictures"
    assert "fewer than two groups" in found.differences["cvae"]


def test_ablations_stand_against_their_full_model(tmp_path):
    full = write_run(tmp_path / "a", model="improved_bigan", strength=2.0)
    part = write_run(tmp_path / "b", model="improved_bigan", ablations=["no_se"], strength=1.0)
    write_run(tmp_path / "c", model="improved_bigan", ablations=["no_se"], quick=True)
    (found,) = standings(runs_in(tmp_path))
    ((pair, value),) = found.ablations.items()
    assert pair == ("improved_bigan", "improved_bigan, no_se")
    assert value.value == pytest.approx(part["auroc"] - full["auroc"])
    assert value.interval[0] < value.value < value.interval[1]


def test_ablations_stand_against_every_row_that_lacks_fewer_parts(tmp_path):
    for number, parts in enumerate((["a"], ["a", "b"], ["c", "b", "a"], ["b", "d"])):
        write_run(tmp_path / str(number), model="improved_bigan", ablations=parts)
    (found,) = standings(runs_in(tmp_path))
    name = "improved_bigan, {}".format
    one, two, three = name("a"), name("a, b"), name("c, b, a")
    assert set(found.ablations) == {(one, two), (one, three), (two, three)}


# Files


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder of a comparison with the paper's bottle, an ablation, and a hostile stranger."""
    folder = tmp_path_factory.mktemp("compared")
    test = pictures(20, 63, per_group=1)
    bottle = {"dataset": "mvtec", "category": "bottle", "test": test}
    contents = [
        write_run(folder / "runs" / f"i{seed}", model="improved_bigan", seed=seed, **bottle)
        for seed in (0, 1)
    ]
    write_run(folder / "runs" / "n", model="improved_bigan", ablations=["no_se"], **bottle)
    write_run(folder / "runs" / "v", model="vae", native=0.66, **bottle)
    write_run(
        folder / "runs" / HOSTILE.replace("/", ""),
        model=HOSTILE,
        dataset=HOSTILE,
        category=HOSTILE,
        ablations=[HOSTILE],
        config={"data.channels": 1},
        evaluation={"threshold_rule": HOSTILE, "controls": {HOSTILE: 0.9}},
    )
    compare([folder / "runs" / "*"], folder / "out")
    return folder / "out", contents


def test_csv_holds_every_figure(written):
    folder, contents = written
    rows = list(csv.DictReader((folder / "comparison.csv").open(newline="")))
    (mean,) = [
        row
        for row in rows
        if (row["source"], row["model"], row["ablations"]) == ("mean", "improved_bigan", "")
        and row["metric"] == "auroc"
    ]
    values = [content["auroc"] for content in contents]
    assert float(mean["value"]) == pytest.approx(np.mean(values), rel=1e-5)
    assert float(mean["std"]) == pytest.approx(np.std(values, ddof=1), rel=1e-4)
    assert mean["n"] == "2"
    assert [float(r["value"]) for r in rows if r["source"] == "run" and r["metric"] == "f1"][
        :2
    ] == [pytest.approx(content["f1"], rel=1e-5) for content in contents]
    paper = [r for r in rows if r["source"] == "paper" and r["model"] == "improved_bigan"]
    assert [float(r["value"]) for r in paper] == list(paper_tables.BOTTLE.rows["improved_bigan"])
    assert all("no prevalence" in r["note"] for r in paper)
    assert {r["source"] for r in rows} == {"mean", "run", "difference", "ablation", "paper"}
    assert not [cell for row in rows for cell in row.values() if cell[:1] in "=+@" and cell]


def test_the_papers_figures_stand_beside_ours(written):
    folder, contents = written
    text = (folder / "comparison.md").read_text()
    line = next(li for li in text.splitlines() if li.startswith("| Improved BiGAN"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == "Improved BiGAN †" and cells[-1] == "none"
    assert [float(cell) for cell in cells[2:13:2]] == list(
        paper_tables.BOTTLE.rows["improved_bigan"]
    )
    ours = [np.mean([content[name] for content in contents]) for name in METRICS]
    assert [float(cell.split()[0]) for cell in cells[1:13:2]] == pytest.approx(ours, abs=6e-4)
    assert "| CVAE † | – | 0.781 |" in text


def test_markdown_has_no_markup_of_strangers(written):
    text = (written[0] / "comparison.md").read_text()
    assert "<script" not in text and "alert(1)" in text
    bare = re.sub(r"\\[\\`*_\[\]|~$!]", "", text)
    assert not re.search(r"[`$\[\]~]", bare)
    tables_of = [block for block in text.split("\n\n") if block.startswith("|")]
    for block in tables_of:
        lines = [re.sub(r"\\.", "", line) for line in block.splitlines()]
        assert len({line.count("|") for line in lines}) == 1


def test_latex_has_no_commands_of_strangers(written):
    text = (written[0] / "comparison.tex").read_text()
    assert r"\textbackslash{}input\{a\}" in text and r"\input" not in text
    for word in ("toprule", "midrule", "bottomrule", "cmidrule", "caption"):
        assert f"\\{word}" in text
    known = "toprule midrule bottomrule cmidrule caption begin end centering resizebox ifdim width"
    known += " linewidth else fi multicolumn par smallskip footnotesize usepackage pm dag char"
    known += " textbackslash textasciicircum textasciitilde textless textgreater textbar"
    known += " textasciigrave"
    assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= set(known.split())
    body = re.sub(r"\\[{}$&#%_\\]", "", text.partition("\n\n")[2])
    assert body.count("{") == body.count("}")
    assert not re.search(r"[#~^_]", body.replace("\n", ""))
    assert all(line.endswith("{%") for line in body.splitlines() if "%" in line)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "line", "circle", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_self_contained_and_escaped(written):
    text = (written[0] / "comparison.html").read_text()
    page = Page(text)
    assert page.open == [] and HOSTILE in page.text
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "base", "form"}
    assert not [a for _, a in page.tags for name in a if name.startswith("on") or name == "href"]
    assert "url(" not in text and "@import" not in text and "http" not in page.text
    (policy,) = [a["content"] for _, a in page.tags if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")
    circles = [a for tag, a in page.tags if tag == "circle" and "cy" in a and "%" in a["cx"]]
    assert len(circles) == 4  # a dot for each row
    assert all(0 <= float(a["cx"].rstrip("%")) <= 100 for a in circles)


def test_the_same_runs_give_the_same_files(written, tmp_path):
    folder, _ = written
    compare(str(folder.parent / "runs" / "*"), tmp_path)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_one_class_alone_has_a_row_and_no_dot(tmp_path):
    write_run(tmp_path / "runs" / "a", test=pictures(40, 0), evaluation={"auroc_ci": None})
    write_run(tmp_path / "runs" / "b", model="vae", strength=2.0)
    (found,) = compare(str(tmp_path / "runs" / "*"), tmp_path / "out").standings
    assert [row.label for row in found.rows] == ["vae", "cae"] and found.differences == {}
    assert any("no AUROC, since the test lacks a class: cae" in note for note in found.notes)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (None, "–"),
        (0.5, "0.500"),
        (3, "3"),
        (tables.spread([0.5]), "0.500"),
        (tables.spread([0.4, None, 0.6]), "0.500 ± 0.141"),
        (tables.spread([None]), "–"),
        (tables.Difference(-0.0004), "0.000"),
        (tables.Difference(0.1, (-0.05, 0.25)), "+0.100 (−0.050 to +0.250)"),
    ],
)
def test_cells(cell, words):
    assert tables.text(cell) == words


def test_formulas_are_disarmed_in_csv():
    text = tables.csv_text(["a", "b"], [["=1+1", -0.5], ["@x", None], ["fine\nline", "-2"]])
    assert list(csv.reader(io.StringIO(text))) == [
        ["a", "b"],
        ["'=1+1", "-0.5"],
        ["'@x", ""],
        ["fine?line", "'-2"],
    ]


def test_the_command_tells_by_its_exit_status_and_needs_no_jax(tmp_path):
    write_run(tmp_path / "runs" / "good")
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "evaluation.json").write_text("{")
    arguments = ["--mode=compare", f"--workdirs={tmp_path}/runs/*", f"--output={tmp_path}/out"]
    program = (
        "import runpy, sys\n"
        "try: runpy.run_path('launch.py', run_name='__main__')\n"
        "finally: print('jax' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "bad was left out: evaluation.json is not JSON" in result.stdout
    assert result.stdout.splitlines()[-1] == "False"
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".md", ".csv", ".tex", ".html"}
