"""The paper's tables: whether a row can be true, and that ours are those of its text."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigan_jax.evaluation import paper_results
from bigan_jax.evaluation.paper_results import METRICS, contradiction, feasible_prevalence

ROOT = Path(__file__).parents[2]
PAPER = ROOT.parent / "shared" / "paper.txt"


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
    low, high = feasible_prevalence(rounded)
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
    for table in (paper_results.BRAIN, paper_results.BOTTLE, paper_results.PLANT):
        assert table.rows.keys() == paper_results.MODELS.keys()
        for model, row in table.rows.items():
            said = dict(zip(METRICS, row, strict=True))
            fits = feasible_prevalence(said)
            assert (fits is not None) == grid_has_a_witness(row), (table.number, model)
            assert (contradiction(said) is None) == (fits is not None)
            if fits:
                possible.add((table.number, model))
    assert possible == {("I", "cvae"), ("III", "vae"), ("III", "vqvae")}


def test_reasons_name_what_is_impossible():
    bigan = dict(zip(METRICS, paper_results.BRAIN.rows["bigan"], strict=True))
    assert "accuracy equals recall and lies above specificity" in contradiction(bigan)
    assert "F1 is 0.890 where precision and recall give 0.880" in contradiction(bigan)
    cvae = dict(zip(METRICS, paper_results.PLANT.rows["cvae"], strict=True))
    assert "ROC curve" in contradiction(cvae) and "not 0.410" in contradiction(cvae)


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not here")
def test_tables_are_the_papers():
    names = {"Beta-VAE": "beta_vae", "FC-AE": "fcae", "CNN-AE": "cae", "VQ-VAE": "vqvae"}
    row = re.compile(r"^([\w -]+)((?:\t0\.\d{3}){6})$", re.M)
    found = [
        (names.get(name, name.lower().replace(" ", "_")), tuple(map(float, values.split())))
        for name, values in row.findall(PAPER.read_text(encoding="utf-8"))
    ]
    ours = (paper_results.BRAIN, paper_results.BOTTLE, paper_results.PLANT)
    assert found == [pair for table in ours for pair in table.rows.items()]
