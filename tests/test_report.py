"""The report and its figures: self-contained, escaped, and whole when values are missing."""

import base64
import io
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from PIL import Image

from bigan_jax import plots, report

HOSTILE = "<img src=x onerror=alert(1)>.png"
PNG = report.png_bytes(np.zeros((4, 4), np.uint8))

EVALUATION = {
    "model": "cae",
    "dataset": "phantom",
    "category": "leaf",
    "seed": 0,
    "config_name": "configs/cae.py:phantom",
    "ablations": ["no_se"],
    "n_train": 80,
    "n_calibration": 20,
    "n_normal": 25,
    "n_anomalous": 30,
    "auroc": 0.9,
    "auroc_ci": [0.85, 0.95],
    "average_precision": 0.91,
    "mse_auroc": 0.912,
    "ssim_auroc": 0.899,
    "accuracy": 0.8,
    "precision": 0.81,
    "recall": 0.82,
    "f1": 0.83,
    "specificity": 0.84,
    "balanced_accuracy": 0.835,
    "threshold": 0.01234,
    "threshold_rule": "conformal, at most 5 % false alarms",
    "threshold_note": "A note on the promise.",
    "oracle": {"threshold": 0.011, "f1": 0.87, "accuracy": 0.86},
    "predict_all": {"f1": 0.7, "accuracy": 0.55},
    "native": {"name": "feature distance", "auroc": 0.77},
    "pixel": {"auroc": 0.8, "average_precision": 0.3, "aupro": 0.5},
    "pixel_controls": {"raw_intensity": {"auroc": 0.95, "average_precision": 0.4, "aupro": None}},
    "controls": {"mean_image": 0.7, "pca_64": 0.88, "corner_pixels": None},
    "warnings": ["the discriminator collapsed at epoch 3"],
    "notes": ["statistics re-estimated"],
    "versions": {"jax": "0.10.2"},
}
AUDIT = {
    "duplicates": {"exact": 0, "pairs": []},
    "trivial_facts": [{"fact": HOSTILE, "auroc": 0.5}, {"fact": "size", "auroc": None}],
}


def history(epochs=6):
    rows = []
    for epoch in range(epochs):
        row = {"epoch": epoch, "phase": "one" if epoch < 3 else "two", "step": epoch}
        row |= {"seconds": 1.0, "images_per_second": 100.0, "reconstruction/mse": 1 / (1 + epoch)}
        rows.append(row if epoch < 3 else row | {"discriminator/bce": 0.7, "health": "fine"})
    return rows


def items():
    names = [HOSTILE, "b.png", "c.png", "d.png"]
    facts = [(True, True, 9.0), (True, False, 0.001), (False, True, 0.5), (False, False, 0.0)]
    for name, (label, decision, score) in zip(names, facts, strict=True):
        mask = PNG if label else None
        yield report.GalleryItem(name, label, "", score, decision, PNG, PNG, PNG, mask)


class Page(HTMLParser):
    """What a browser would see: tags with attributes, scripts apart from text."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.script, self.open = [], "", "", []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.script += data
        else:
            self.text += " ".join(data.split()) + " "


def page(tmp_path, evaluation=EVALUATION, rows=(), figures=None, gallery=(), audit=None):
    path = report.write_report(
        tmp_path / "new" / "report.html", evaluation, rows, figures or {}, gallery, audit
    )
    return Page(path.read_text(encoding="utf-8"))


def test_report_is_well_formed_and_fetches_nothing(tmp_path):
    found = page(tmp_path, EVALUATION, history(), {"roc_curve": PNG}, list(items()), AUDIT)
    assert found.open == []
    for tag, attributes in found.tags:
        assert tag not in ("link", "iframe", "object", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "action", "poster"):
                assert value.startswith("data:image/png;base64,"), (tag, name, value[:40])
    for fetching in ("http:", "https:", "//", "url(", "@import", "fetch(", "import("):
        assert fetching not in found.script, fetching
    policies = [a["content"] for _, a in found.tags if "http-equiv" in a]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'")


def test_hostile_file_names_stay_text(tmp_path):
    evaluation = EVALUATION | {"dataset": HOSTILE, "warnings": [HOSTILE], "notes": [HOSTILE]}
    evaluation |= {"controls": {HOSTILE: 0.4}, "versions": {HOSTILE: HOSTILE}}
    shown = [item._replace(kind=HOSTILE + '"') for item in items()]
    found = page(tmp_path, evaluation, history(), {HOSTILE: PNG}, shown, AUDIT | {HOSTILE: HOSTILE})
    assert found.text.count("<img src=x onerror=alert(1)>.png") >= 8
    assert not [a for tag, a in found.tags if tag == "img" and a["src"] == "x"]
    assert not [a for _, a in found.tags if "onerror" in a]


def test_every_figure_of_the_evaluation_is_shown(tmp_path):
    text = page(tmp_path, EVALUATION, history(), {}, list(items()), AUDIT).text
    for value in (
        "0.900",
        "0.850 to 0.950",
        "0.910",
        "0.01234",
        "0.835",
        "0.870",
        "0.550",
        "0.912",
        "0.899",
    ):
        assert value in text, value
    for words in (
        *("oracle (uses test labels)", "A note on the promise.", "feature distance"),
        *("collapsed at epoch 3", "statistics re-estimated", "0.10.2", "ablations: no_se"),
        *("cae on phantom leaf", "Leak audit", "trivial facts", "PCA, 64 components", "one, two"),
        "do not locate defects better than raw intensity as a map (0.950)",
    ):
        assert words in text, words


@pytest.mark.parametrize("evaluation", [dict.fromkeys(EVALUATION), {}])
def test_nothing_known_still_makes_a_report(tmp_path, evaluation):
    found = page(tmp_path, evaluation)
    assert found.open == []
    assert "None" not in found.text
    assert "lacks normal or anomalous" in found.text


def test_only_a_fitted_threshold_claims_to_be_label_free(tmp_path):
    claim = "No test label was used"
    assert claim in page(tmp_path).text
    assert claim not in page(tmp_path, EVALUATION | {"threshold_rule": "manual"}).text


def test_no_anomalous_pictures(tmp_path):
    undefined = ("auroc", "auroc_ci", "average_precision", "precision", "recall", "f1")
    evaluation = EVALUATION | dict.fromkeys((*undefined, "balanced_accuracy", "native"))
    evaluation |= {"n_anomalous": 0, "controls": {"mean_image": None}}
    evaluation |= {"oracle": {"threshold": None, "f1": None, "accuracy": None}}
    evaluation |= {"pixel": {"auroc": None, "average_precision": None, "aupro": None}}
    normals = [item for item in items() if not item.label]
    text = page(tmp_path, evaluation, [], {}, normals, {}).text
    assert "None" not in text and "–" in text and "0.840" in text


@pytest.mark.parametrize(
    "auroc, interval, controls, beats, words",
    [
        (0.9, [0.8, 0.95], {"pca_64": 0.966, "mean_image": 0.7}, False, "does not beat"),
        (0.9, [0.8, 0.95], {"pca_64": 0.9}, False, "does not beat"),
        (0.9, [0.89, 0.95], {"pca_64": 0.8}, True, "beats the strongest"),
        (0.9, [0.7, 0.95], {"pca_64": 0.8}, True, "may be chance"),
        (0.9, None, {"pca_64": None}, None, "stands alone"),
        (None, None, {"pca_64": 0.8}, None, "No AUROC"),
    ],
)
def test_verdict_is_plain(auroc, interval, controls, beats, words):
    found = report.verdict({"auroc": auroc, "auroc_ci": interval, "controls": controls})
    assert found.beats is beats
    assert words in found.sentence


def test_gallery_opens_with_the_worst_and_the_best(tmp_path):
    found = page(tmp_path, EVALUATION | {"threshold": 0.1}, gallery=list(items()))
    cases = [a for tag, a in found.tags if "case" in (a.get("class") or "").split()]
    assert [case["data-path"] for case in cases] == ["c.png", "b.png", HOSTILE, "d.png"]
    verdicts = [case["data-verdict"] for case in cases]
    assert verdicts == ["false alarm", "missed", "found", "passed"]
    assert page(tmp_path, gallery=list(items())[:1]).open == []


def test_png_bytes_round_trip():
    rng = np.random.default_rng(0)
    for shape in ((5, 7), (5, 7, 1), (5, 7, 3)):
        array = rng.integers(0, 256, shape, np.uint8)
        read = np.asarray(Image.open(io.BytesIO(report.png_bytes(array))))
        assert (read == array.squeeze()).all()
    with pytest.raises(TypeError, match="uint8"):
        report.png_bytes(np.zeros((2, 2)))


def test_data_uri_holds_the_png(tmp_path):
    found = page(tmp_path, figures={"mine": PNG})
    (source,) = [a["src"] for tag, a in found.tags if tag == "img"]
    assert base64.b64decode(source.partition(",")[2]) == PNG


# Figures


def test_error_colours_are_one_fixed_scale():
    errors = np.array([[0.0, 0.5, 1.0, 2.0]])
    found = plots.error_map_rgb(errors, 1.0)
    assert found.dtype == np.uint8 and found.shape == (1, 4, 3)
    assert (found[0, 2] == found[0, 3]).all()
    assert (plots.error_map_rgb(errors / 2, 0.5) == found).all()
    # The neighbour's value moves nothing.
    assert (plots.error_map_rgb(errors[:, :2], 1.0) == found[:, :2]).all()
    brightness = plots.error_map_rgb(np.linspace(0, 1, 32)[None], 1.0)[0].astype(int).sum(1)
    assert (np.diff(brightness) >= 0).all()
    assert (plots.error_map_rgb(np.zeros((2, 2)), 0.0) == found[0, 0]).all()


def size_of(figure):
    return Image.open(io.BytesIO(plots.to_png(figure))).size


@pytest.mark.parametrize("normals, anomalous, calibration", [(9, 8, 7), (9, 0, 0), (0, 0, 0)])
def test_figures_are_drawn_whatever_is_missing(normals, anomalous, calibration):
    rng = np.random.default_rng(0)
    parts = [rng.random(count).astype(np.float32) for count in (normals, anomalous, calibration)]
    score, label = np.concatenate(parts[:2]), np.arange(normals + anomalous) >= normals
    for threshold in (0.5, None, 99.0):
        assert size_of(plots.score_histogram(*parts, threshold)) > (400, 300)
        assert size_of(plots.roc_curve(score, label, threshold)) > (400, 400)
        assert size_of(plots.precision_recall_curve(score, label, threshold)) > (400, 400)


def test_training_curves_have_a_panel_for_each_objective():
    rows = history()
    rows[2]["reconstruction/mse"] = None
    rows[4]["reconstruction/mse"] = float("nan")
    figure = plots.training_curves(rows)
    assert [axes.get_title() for axes in figure.axes] == ["reconstruction", "discriminator"]
    assert size_of(figure) > (600, 300)
    assert size_of(plots.training_curves([])) > (300, 200)
    assert size_of(plots.training_curves(history(1))) > (300, 200)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_gallery_figure(count):
    grey, colour = np.full((8, 8), 0.5), np.full((8, 8, 3), 0.5)
    row = plots.GalleryRow("$x_{1.png", 0.1, True, False, colour, colour, grey, grey, grey, None)
    rows = [row, row._replace(path=HOSTILE, image=grey, mask=grey > 1), row][:count]
    assert size_of(plots.gallery(rows, [0.01, 1.0, 0.5])) > (800, 200)
    assert size_of(plots.gallery(rows, 1.0)) > (800, 200)


def test_figures_leave_global_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    first, second = (plots.to_png(plots.training_curves(history())) for _ in range(2))
    assert first == second
    assert dict(matplotlib.rcParams) == before
