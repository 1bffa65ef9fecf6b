"""Tests of benchmarks/fitted.py that need no anomalib."""

import importlib.util

import numpy as np

from benchmarks import fitted


def test_without_anomalib_the_benchmark_is_skipped(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert fitted.main(["--data=anywhere"]) == 0
    assert capsys.readouterr().out == "Skipped: anomalib is not installed. Run pip install anomalib first.\n"


def test_thinned_images_have_both_ends():
    assert fitted.thin(np.arange(83), 8).tolist() == [0, 11, 23, 35, 46, 58, 70, 82]
    assert fitted.thin(np.arange(3), 8).tolist() == fitted.thin(np.arange(3), 0).tolist() == [0, 1, 2]


def test_ratios_are_times_as_fast(capsys):
    """A pair whose first is right and takes half the seconds of the second, which knows nothing."""
    mask = np.zeros((2, 8, 8), bool)
    mask[1, 2:4, 2:4] = True
    test = {"label": np.array([False, True]), "mask": mask, "has_mask": np.array([True, True])}
    perfect = {"score": np.array([0.0, 1.0]), "map": mask.astype(np.float32), "seconds": 1.0, "processor": 2.0}
    blind = {"score": np.zeros(2), "map": np.zeros((2, 8, 8), np.float32), "seconds": 2.0, "processor": 3.0}
    fits = {"ours": {"seconds": 4.0, "processor": 5.0}, "theirs": {"seconds": 8.0, "processor": 20.0}}
    fitted.print_pair(8, test, fits, [{"ours": perfect, "theirs": blind}])
    ours, theirs, ratio = capsys.readouterr().out.splitlines()
    assert ours == "| 8 | ours | 1.0000 | 1.0000 | 1.0000 | 4.0 | 5.0 | 2.0 | 1000.0 |"
    assert theirs.startswith("| 8 | theirs | 0.5000 | 0.5000 |")
    assert ratio.endswith("| 2.00 | 4.00 | 2.00 | 1.50 |")
