"""The report and its figures: self-contained, escaped, and whole when values are missing."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from bigan_jax.evaluation.verdict import verdict
from bigan_jax.reports import html_report
from bigan_jax.reports.image_grid import GalleryImage

HOSTILE = "<img src=x onerror=alert(1)>.png"
PNG = html_report.png_bytes(np.zeros((4, 4), np.uint8))

EVALUATION = {
    "model": "cae",
    "dataset": "phantom",
    "category": "leaf",
    "seed": 0,
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
GRAY = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
AUDIT = {
    "policy": "keep",
    "findings": [
        {
            "check": "exact duplicates across splits",
            "result": HOSTILE,
            "meaning": "",
            "alarming": False,
        },
        {"check": "shortcut features", "result": "1", "meaning": "Compare it.", "alarming": True},
    ],
    "shortcut_aurocs": {"sharpness": 0.93, "width": 0.5},
    "balance": [{"split": "test", "condition": HOSTILE, "normal": 1, "anomalous": 2}],
    "dropped": {"train": 3, "calibration": 0, "test": 0},
    "duplicates": [
        {
            "distance": 0.0125,
            "first": {"split": "test", "path": HOSTILE, "label": "normal", "image": GRAY},
            "second": {"split": "train", "path": "twin.png", "label": "normal", "image": GRAY},
        },
        {
            "distance": 0.0141,
            "first": {"split": "test", "path": "a.png", "label": "normal"},
            "second": {"split": "train", "path": "unshown.png", "label": "normal"},
        },
    ],
}


def history(epochs=6):
    rows = []
    for epoch in range(epochs):
        row = {"epoch": epoch, "phase": "one" if epoch < 3 else "two", "step": epoch}
        row |= {"seconds": 1.0, "images_per_second": 100.0, "reconstruction/mse": 1 / (1 + epoch)}
        rows.append(row)
    return rows


def items():
    names = [HOSTILE, "b.png", "c.png", "d.png"]
    facts = [(True, True, 9.0), (True, False, 0.001), (False, True, 0.5), (False, False, 0.0)]
    for name, (label, decision, score) in zip(names, facts, strict=True):
        mask = np.zeros((4, 4), bool) if label else None
        images = np.zeros((2, 4, 4, 1), np.uint8)
        maps = {"combined": np.zeros((4, 4))}
        yield GalleryImage(name, label, "", score, decision, *images, maps, mask)


class Page(HTMLParser):
    """What a browser would see: tags with attributes, scripts apart from text."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.script, self.open = [], "", "", []
        self.feed(html)
        self.close()
        self.text = " ".join(self.text.split())

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
            self.text += data + " "


def page(tmp_path, evaluation=EVALUATION, rows=(), figures=None, gallery=(), audit=None):
    path = html_report.write_report(
        tmp_path / "new" / "report.html", evaluation, rows, figures or {}, gallery, audit
    )
    return Page(path.read_text(encoding="utf-8"))


def test_report_is_well_formed_and_fetches_nothing(tmp_path):
    found = page(tmp_path, EVALUATION, history(), {"roc_curve": PNG}, list(items()), AUDIT)
    assert found.open == []
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for tag, attributes in found.tags:
        assert tag not in ("link", "iframe", "object", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name == "href":
                assert value.removeprefix("#") in ids and value.startswith("#")
            if name in ("src", "srcset", "action", "poster"):
                assert value.startswith("data:image/png;base64,"), (tag, name, value[:40])
    for fetching in ("http:", "https:", "//", "url(", "@import", "fetch(", "import("):
        assert fetching not in found.script, fetching
    policies = [a["content"] for _, a in found.tags if "http-equiv" in a]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'")
    assert "script-src 'sha256-" in policies[0]


def test_hostile_file_names_stay_text(tmp_path):
    evaluation = EVALUATION | {"dataset": HOSTILE, "warnings": [HOSTILE], "notes": [HOSTILE]}
    evaluation |= {"controls": {HOSTILE: 0.4}, "versions": {HOSTILE: HOSTILE}}
    shown = [item._replace(defect_type=HOSTILE + '"') for item in items()]
    found = page(tmp_path, evaluation, history(), {HOSTILE: PNG}, shown, AUDIT | {HOSTILE: HOSTILE})
    assert found.text.count("<img src=x onerror=alert(1)>.png") >= 8
    assert not [a for tag, a in found.tags if tag == "img" and a["src"] == "x"]
    assert not [a for _, a in found.tags if "onerror" in a]


def test_control_characters_are_shown_not_obeyed(tmp_path):
    name = "a\x1b]0;title\x07\x00\u202egnp.\u2066\udcff\n.png"
    shown = [item._replace(path=name, defect_type=name) for item in items()]
    evaluation = EVALUATION | {"warnings": [name], "versions": {name: name}}
    audit = AUDIT | {"balance": [{"split": "test", "condition": name}]}
    found = page(tmp_path, evaluation, gallery=shown, audit=audit)
    escaped = r"a\x1b]0;title\x07\x00\u202egnp.\u2066\udcff\n.png"
    assert found.text.count(escaped) >= 10
    seen = found.text + "".join(v or "" for _, a in found.tags for v in a.values())
    assert all(c.isprintable() for c in seen)


def test_newer_figures_are_shown_where_they_are_known(tmp_path):
    row = {"standardize": False, "reduction": "mean", "paper": False, "used": False}
    evaluation = EVALUATION | {
        "score_table": [
            row | {"score": "mse", "auroc": 0.601, "used": True},
            row | {"score": "ssim", "auroc": 0.702, "standardize": True, "reduction": "max"},
            row | {"score": "0.7 mse + 0.3 ssim", "auroc": None, "paper": True},
        ],
        "score_table_note": "A note on oracles.",
        "by_defect_type": [{"defect_type": HOSTILE, "n": 3, "auroc": 0.777, "recall": 0.125}],
        "by_condition": [{"condition": "leaf", "n": 5, "auroc": None, "specificity": 0.375}],
        "intervals": {"f1": [0.511, 0.522], "average_precision": (0.533, 0.544)},
        "pixel": EVALUATION["pixel"] | {"dice": 0.456},
        "pixel_threshold": 0.0789,
        "color_limits": {"combined": 0.4321},
    }
    text = page(tmp_path, evaluation, gallery=list(items())).text
    for words in (
        "ssim, terms standardized highest 0.702 mse used here mean 0.601 "
        "0.7 mse + 0.3 ssim the paper's mean –",
        "A note on oracles.",
        f"{HOSTILE} 3 0.777 0.125",
        "leaf 5 – 0.375",
        "0.511 to 0.522",
        "(0.533 to 0.544)",
        "0.456",
        "0.0789",
        "0.4321 and above",
    ):
        assert words in text, words
    for heading in ("Other scores", "By kind"):
        assert heading in text and heading not in page(tmp_path).text


def test_config_is_shown_field_by_field(tmp_path):
    path = html_report.write_report(
        tmp_path / "report.html", EVALUATION, [], {}, [], config={"data": {"dir": HOSTILE}, "n": 7}
    )
    assert f"Config data dir {HOSTILE} pictures 7" in Page(path.read_text(encoding="utf-8")).text


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
        *(
            "cae on phantom leaf",
            "Leak audit",
            "shortcut features",
            "PCA, 64 components",
            "one, two",
        ),
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
    found = verdict({"auroc": auroc, "auroc_ci": interval, "controls": controls})
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
        read = Image.open(io.BytesIO(html_report.png_bytes(array)))
        read = np.asarray(read.convert("RGB") if shape[2:] == (3,) else read)
        assert (read == array.squeeze()).all()
    with pytest.raises(TypeError, match="uint8"):
        html_report.png_bytes(np.zeros((2, 2)))


def test_a_png_by_palette_has_its_colors():
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (256, 3), np.uint8)
    places = rng.integers(0, 256, (64, 48), np.uint8)
    image = Image.open(io.BytesIO(html_report.png_bytes(places, palette=palette)))
    assert image.mode == "P"
    assert (np.asarray(image.convert("RGB")) == palette[places]).all()


def test_large_pictures_shrink_in_proportion():
    large = np.full((40, 80, 3), 77, np.uint8)
    assert Image.open(io.BytesIO(html_report.png_bytes(large, longest=20))).size == (20, 10)
    assert Image.open(io.BytesIO(html_report.png_bytes(large, longest=90))).size == (80, 40)


def test_data_uri_holds_the_png(tmp_path):
    found = page(tmp_path, figures={"mine": PNG})
    (source,) = [a["src"] for tag, a in found.tags if tag == "img"]
    assert base64.b64decode(source.partition(",")[2]) == PNG
