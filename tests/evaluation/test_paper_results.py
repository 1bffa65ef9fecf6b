"""The paper's tables: which rows are possible, and that they equal those of its text."""

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
def test_rows_of_confusion_matrices_are_possible(positive, negative, data):
    true_positives = data.draw(st.integers(0, positive))
    false_positives = data.draw(st.integers(0, negative))
    row = {
        "accuracy": (true_positives + negative - false_positives) / (positive + negative),
        "precision": true_positives / max(true_positives + false_positives, 1),
        "recall": true_positives / positive,
        "f1": 2 * true_positives / (true_positives + false_positives + positive),
        "specificity": 1 - false_positives / negative,
    }
    prevalence = positive / (positive + negative)
    rounded = {name: round(value, 3) for name, value in row.items()}
    low, high = feasible_prevalence(rounded)
    assert low - 1e-6 <= prevalence <= high + 1e-6
    assert contradiction(rounded) is None
    assert contradiction(row, (prevalence, prevalence)) is None
    assert contradiction(row | {"accuracy": row["accuracy"] - 0.002}, (prevalence, prevalence))


def is_possible_on_a_grid(row):
    """Evaluates the definitions on a fine grid of prevalences, recalls and specificities."""
    _, accuracy, precision, recall, f1, specificity = row
    around = np.linspace(-0.00049, 0.00049, 9)
    p, r, s = np.meshgrid(np.linspace(0.0005, 0.9995, 2000), recall + around, specificity + around, indexing="ij")
    pairs = ((p * r + (1 - p) * s, accuracy), (p * r / (p * r + (1 - p) * (1 - s)), precision))
    exact = pairs[1][0]
    pairs += ((2 * exact * r / (exact + r), f1),)
    return np.all([abs(value - published) <= 0.0005 for value, published in pairs], axis=0).any()


def test_three_of_thirty_rows_are_possible():
    possible = set()
    for table in (paper_results.BRAIN, paper_results.BOTTLE, paper_results.PLANT):
        assert table.rows.keys() == paper_results.MODELS.keys()
        for model, row in table.rows.items():
            published = dict(zip(METRICS, row, strict=True))
            feasible = feasible_prevalence(published)
            assert (feasible is not None) == is_possible_on_a_grid(row), (table.number, model)
            assert (contradiction(published) is None) == (feasible is not None)
            if feasible:
                possible.add((table.number, model))
    assert possible == {("I", "cvae"), ("III", "vae"), ("III", "vqvae")}


def test_reasons_of_contradictions():
    bigan = dict(zip(METRICS, paper_results.BRAIN.rows["bigan"], strict=True))
    assert "accuracy equals recall and lies above specificity" in contradiction(bigan)
    assert "F1 is 0.890, but precision and recall give 0.880" in contradiction(bigan)
    cvae = dict(zip(METRICS, paper_results.PLANT.rows["cvae"], strict=True))
    assert "ROC curve" in contradiction(cvae) and "not 0.410" in contradiction(cvae)


@pytest.mark.skipif(not PAPER.exists(), reason="the text of the paper is not here")
def test_tables_equal_the_paper():
    names = {"Beta-VAE": "beta_vae", "FC-AE": "fcae", "CNN-AE": "cae", "VQ-VAE": "vqvae"}
    row = re.compile(r"^([\w -]+)((?:\t0\.\d{3}){6})$", re.M)
    rows = [
        (names.get(name, name.lower().replace(" ", "_")), tuple(map(float, values.split())))
        for name, values in row.findall(PAPER.read_text(encoding="utf-8"))
    ]
    tables = (paper_results.BRAIN, paper_results.BOTTLE, paper_results.PLANT)
    assert rows == [pair for table in tables for pair in table.rows.items()]
