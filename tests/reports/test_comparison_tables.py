"""The files of a comparison (CSV, Markdown, LaTeX, HTML), with untrusted text in them."""

import csv
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bigan_jax.commands.compare import compare
from bigan_jax.evaluation import paper_results, statistics
from bigan_jax.evaluation.paper_results import METRICS
from bigan_jax.reports import table_formats
from tests.helpers.datasets import image_table, main_score, write_run

ROOT = Path(__file__).parents[2]
PUBLISHED = paper_results.BOTTLE.rows["improved_bigan"]
UNTRUSTED = "=<script>alert(1)</script>|`$x_{1}\\input{a}`[b](c)&%#~^\"'"


@pytest.fixture(scope="module")
def comparison_folder(tmp_path_factory):
    """Folder of a comparison of MVTec bottle, an ablation, and a run with untrusted names."""
    folder = tmp_path_factory.mktemp("comparison")
    test = image_table(20, 63, per_group=1)
    bottle = {"dataset": "mvtec", "category": "bottle", "test": test}
    contents = [write_run(folder / "runs" / f"i{seed}", model="improved_bigan", seed=seed, **bottle) for seed in (0, 1)]
    write_run(folder / "runs" / "n", model="improved_bigan", ablations=["no_se"], **bottle)
    write_run(folder / "runs" / "v", model="vae", native=0.66, **bottle)
    write_run(
        folder / "runs" / UNTRUSTED.replace("/", ""),
        model=UNTRUSTED,
        dataset=UNTRUSTED,
        category=UNTRUSTED,
        ablations=[UNTRUSTED],
        config={"data.channels": 1},
        evaluation={"threshold_rule": UNTRUSTED, "baselines": {UNTRUSTED: 0.9}},
    )
    compare([folder / "runs" / "*"], folder / "out")
    return folder / "out", contents


def test_csv_holds_every_value(comparison_folder):
    folder, contents = comparison_folder
    rows = list(csv.DictReader((folder / "comparison.csv").open(newline="")))
    (mean,) = [
        row
        for row in rows
        if (row["source"], row["model"], row["ablations"]) == ("mean", "improved_bigan", "")
        and row["metric"] == "auroc"
    ]
    aurocs = [main_score(content)["auroc"] for content in contents]
    assert float(mean["value"]) == pytest.approx(np.mean(aurocs), rel=1e-5)
    assert float(mean["std"]) == pytest.approx(np.std(aurocs, ddof=1), rel=1e-4)
    assert mean["n"] == "2"
    f1 = [float(r["value"]) for r in rows if r["source"] == "run" and r["metric"] == "calibrated_f1"]
    assert f1[:2] == pytest.approx([main_score(content)["f1"] for content in contents], rel=1e-5)
    published = [r for r in rows if r["source"] == "published" and r["model"] == "improved_bigan"]
    assert [float(r["value"]) for r in published] == list(PUBLISHED)
    assert all("no prevalence" in r["note"] for r in published)
    assert {r["source"] for r in rows} == {"mean", "run", "difference", "ablation", "published"}
    assert not [cell for row in rows for cell in row.values() if cell[:1] in "=+@" and cell]


def test_published_results_are_next_to_measured_ones(comparison_folder):
    folder, contents = comparison_folder
    text = (folder / "comparison.md").read_text()
    line = next(li for li in text.splitlines() if li.startswith("| Improved BiGAN"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == "Improved BiGAN †" and cells[-1] == "none"
    assert [float(cell) for cell in cells[2:13:2]] == list(PUBLISHED)
    measured = [np.mean([content["scores"]["paper"][name] for content in contents]) for name in METRICS]
    assert [float(cell.split()[0]) for cell in cells[1:13:2]] == pytest.approx(measured, abs=6e-4)
    assert "| CVAE † | – | 0.781 |" in text


def test_markdown_escapes_untrusted_text(comparison_folder):
    text = (comparison_folder[0] / "comparison.md").read_text()
    assert "<script" not in text and "alert(1)" in text
    unescaped = re.sub(r"\\[\\`*_\[\]|~$!]", "", text)
    assert not re.search(r"[`$\[\]~]", unescaped)
    for block in [block for block in text.split("\n\n") if block.startswith("|")]:
        lines = [re.sub(r"\\.", "", line) for line in block.splitlines()]
        assert len({line.count("|") for line in lines}) == 1


def test_latex_escapes_untrusted_text(comparison_folder):
    text = (comparison_folder[0] / "comparison.tex").read_text()
    assert r"\textbackslash{}input\{a\}" in text and r"\input" not in text
    for command in ("toprule", "midrule", "bottomrule", "cmidrule", "caption"):
        assert f"\\{command}" in text
    commands = "toprule midrule bottomrule cmidrule caption begin end centering resizebox ifdim width"
    commands += " linewidth else fi multicolumn par smallskip footnotesize usepackage pm dag char"
    commands += " textbackslash textasciicircum textasciitilde textless textgreater textbar"
    commands += " textasciigrave"
    assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= set(commands.split())
    body = re.sub(r"\\[{}$&#%_\\]", "", text.partition("\n\n")[2])
    assert body.count("{") == body.count("}")
    assert not re.search(r"[#~^_]", body.replace("\n", ""))
    assert all(line.endswith("{%") for line in body.splitlines() if "%" in line)


class PageParser(HTMLParser):
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


def test_page_is_self_contained_and_escaped(comparison_folder):
    text = (comparison_folder[0] / "comparison.html").read_text()
    page = PageParser(text)
    assert page.open == [] and UNTRUSTED in page.text
    assert " ±\xa00." in page.text and r"\x" not in page.text  # the space is no escaped control character
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "base", "form"}
    assert not [a for _, a in page.tags for name in a if name.startswith("on") or name == "href"]
    assert "url(" not in text and "@import" not in text and "http" not in page.text
    (policy,) = [a["content"] for _, a in page.tags if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")
    circles = [a for tag, a in page.tags if tag == "circle" and "cy" in a and "%" in a["cx"]]
    assert len(circles) == 4  # one per row
    assert all(0 <= float(a["cx"].rstrip("%")) <= 100 for a in circles)


def test_same_runs_give_identical_files(comparison_folder, tmp_path):
    folder, _ = comparison_folder
    compare(str(folder.parent / "runs" / "*"), tmp_path)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_run_with_one_class_has_a_row_without_auroc(tmp_path):
    write_run(tmp_path / "runs" / "a", test=image_table(40, 0), evaluation={"auroc_ci": None})
    write_run(tmp_path / "runs" / "b", model="vae", strength=2.0)
    (comparison,) = compare(str(tmp_path / "runs" / "*"), tmp_path / "out").datasets
    assert [row.label for row in comparison.rows] == ["vae", "cae"] and list(comparison.differences) == ["vae"]
    assert any("no AUROC" in note and "cae" in note for note in comparison.notes)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        (0.5, "0.500"),
        (0.0034, "0.0034"),
        (np.float32(123.4), "123"),
        (3, "3"),
        (True, "yes"),
        ([], "–"),
        ({"a": [0.5, 1]}, "a: 0.500, 1"),
        (statistics.spread([0.5]), "0.500"),
        (statistics.spread([0.4, None, 0.6]), "0.500 ± 0.141"),
        (statistics.spread([None]), "–"),
        (statistics.Difference(-0.0004), "0.000"),
        (statistics.Difference(0.1, (-0.05, 0.25)), "+0.100 (−0.050 to +0.250)"),
        (statistics.Difference(-0.1, None, 0.02), "−0.100 ± 0.020"),
    ],
)
def test_format_cell(cell, text):
    assert table_formats.format_cell(cell) == text


def test_groups_of_rows_have_headings():
    table = table_formats.Table(
        "T", [("", "model"), ("", "AUROC")], [["a", 0.5], ["b", 0.6]], groups={0: "Models", 1: "50 %"}
    )
    lines = table_formats.markdown(table).splitlines()
    assert lines[4:8] == ["| **Models** |  |", "| a | 0.500 |", "| **50 %** |  |", "| b | 0.600 |"]
    assert r"\multicolumn{2}{l}{50 \%} \\" + "\n" + r"b & 0.600 \\" in table_formats.latex(table)


def test_csv_escapes_spreadsheet_formulas():
    text = table_formats.csv_text(["a", "b"], [["=1+1", -0.5], ["@x", None], ["fine\nline", "-A2"], ["+", "-2"]])
    rows = [["a", "b"], ["'=1+1", "-0.5"], ["'@x", ""], [r"fine\nline", "'-A2"], ["'+", "-2"]]
    assert list(csv.reader(io.StringIO(text))) == rows


def test_command_exit_status_and_no_jax_import(tmp_path):
    write_run(tmp_path / "runs" / "good")
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "evaluation.json").write_text("{")
    arguments = ["--mode=compare", f"--workdirs={tmp_path}/runs/*", f"--output={tmp_path}/out"]
    program = (
        "import runpy, sys\ntry: runpy.run_path('launch.py', run_name='__main__')\nfinally: print('jax' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "bad was skipped: evaluation.json is not valid JSON" in result.stdout
    assert result.stdout.splitlines()[-1] == "False"
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".md", ".csv", ".tex", ".html"}


def test_groups_of_detectors_have_headings_in_a_fixed_order(tmp_path):
    for model, group, strength in (("a", "features", 3), ("b", "reconstruction", 0.5), ("c", "reconstruction", 2)):
        write_run(tmp_path / model, model=model, strength=strength, evaluation={"group": group})
    compare([tmp_path / "*"], tmp_path / "out")
    text = (tmp_path / "out" / "comparison.md").read_text()
    positions = [
        text.index(part) for part in ("**Reconstruction of images**", "| c ", "| b ", "**Pretrained features**", "| a ")
    ]
    assert positions == sorted(positions)
