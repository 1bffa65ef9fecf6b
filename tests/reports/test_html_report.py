"""The report: self-contained, escaped, and complete if values are undefined."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from bigan_jax.evaluation.verdict import baseline_check
from bigan_jax.metrics.image import IMAGE_METRICS
from bigan_jax.metrics.pixel import PIXEL_METRICS
from bigan_jax.reports.charts import roc_curve, to_svg
from bigan_jax.reports.evaluation_files import summary
from bigan_jax.reports.html import png_bytes
from bigan_jax.reports.html_report import write_report
from bigan_jax.reports.image_grid import GalleryImage
from tests.helpers.datasets import make_result

UNTRUSTED = "<img src=x onerror=alert(1)>.png"
PNG = png_bytes(np.zeros((4, 4), np.uint8))
PIXEL = {"auroc": 0.9, "average_precision": 0.3, "aupro": 0.5}

FIELDS = {
    "category": "leaf",
    "ablations": ["no_se"],
    "n_calibration": 20,
    "auroc": 0.9,
    "paper": {"auroc": 0.765, "threshold": 0.04321, "baselines": {"pca_64": 0.654}},
    "auroc_ci": [0.85, 0.95],
    "average_precision": 0.91,
    "term_aurocs": {"mse": 0.912, "ssim": 0.899},
    "accuracy": 0.8,
    "precision": 0.81,
    "recall": 0.82,
    "f1": 0.83,
    "specificity": 0.84,
    "balanced_accuracy": 0.835,
    "intervals": None,
    "threshold": 0.01234,
    "oracle": {"threshold": 0.011, "f1": 0.87, "accuracy": 0.86},
    "native": {"name": "feature distance", "auroc": 0.77},
    "pixel": PIXEL | {"auroc": 0.8, "dice": None, "intervals": None},
    "pixel_baselines": {"raw_intensity": PIXEL | {"auroc": 0.95}},
    "warnings": ["the discriminator collapsed at epoch 3"],
    "notes": ["statistics re-estimated"],
}
GRAY = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
AUDIT = {
    "policy": "keep",
    "findings": [
        {"check": "exact duplicates across splits", "result": UNTRUSTED, "meaning": "", "alarming": False},
        {"check": "shortcut features", "result": "1", "meaning": "Compare it.", "alarming": True},
    ],
    "shortcut_aurocs": {"sharpness": 0.93, "width": 0.5},
    "balance": [{"split": "test", "condition": UNTRUSTED, "normal": 1, "anomalous": 2}],
    "dropped": {"train": 3, "calibration": 0, "test": 0},
    "duplicates": [
        {
            "distance": 0.0125,
            "first": {"split": "test", "path": UNTRUSTED, "label": "normal", "image": GRAY},
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


def gallery_images():
    names = [UNTRUSTED, "b.png", "c.png", "d.png"]
    outcomes = [(True, True, 9.0), (True, False, 0.001), (False, True, 0.5), (False, False, 0.0)]
    for name, (label, decision, score) in zip(names, outcomes, strict=True):
        mask = np.zeros((4, 4), bool) if label else None
        images = np.zeros((2, 4, 4, 1), np.uint8)
        maps = {"combined": np.zeros((4, 4))}
        yield GalleryImage(name, label, "", score, decision, *images, maps, mask)


class Page(HTMLParser):
    """The content of a page: tags with attributes, text, and scripts apart from text."""

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


def page(tmp_path, fields=None, history=(), figures=None, gallery=(), audit=None):
    path = write_report(
        tmp_path / "new" / "report.html", make_result(**FIELDS | (fields or {})), history, figures or {}, gallery, audit
    )
    return Page(path.read_text(encoding="utf-8"))


def test_report_is_well_formed_and_fetches_nothing(tmp_path):
    report = page(tmp_path, {}, history(), {"roc_curve": PNG}, list(gallery_images()), AUDIT)
    assert report.open == []
    ids = [attributes["id"] for _, attributes in report.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for tag, attributes in report.tags:
        assert tag not in ("link", "iframe", "object", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name == "href":
                assert value.removeprefix("#") in ids and value.startswith("#")
            if name in ("src", "srcset", "action", "poster"):
                assert value.startswith("data:image/png;base64,"), (tag, name, value[:40])
    for fetching in ("http:", "https:", "//", "url(", "@import", "fetch(", "import("):
        assert fetching not in report.script, fetching
    policies = [a["content"] for _, a in report.tags if "http-equiv" in a]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'")
    assert "script-src 'sha256-" in policies[0]


def test_untrusted_text_is_escaped(tmp_path):
    fields = {"dataset": UNTRUSTED, "warnings": [UNTRUSTED], "notes": [UNTRUSTED]}
    fields |= {"baselines": {UNTRUSTED: 0.4}, "versions": {UNTRUSTED: UNTRUSTED}}
    images = [image._replace(defect_type=UNTRUSTED + '"') for image in gallery_images()]
    audit = AUDIT | {UNTRUSTED: UNTRUSTED}
    report = page(tmp_path, fields, history(), {UNTRUSTED: PNG}, images, audit)
    assert report.text.count("<img src=x onerror=alert(1)>.png") >= 8
    assert not [a for tag, a in report.tags if tag == "img" and a["src"] == "x"]
    assert not [a for _, a in report.tags if "onerror" in a]


def test_control_characters_are_escaped(tmp_path):
    name = "a\x1b]0;title\x07\x00\u202egnp.\u2066\udcff\n.png"
    images = [image._replace(path=name, defect_type=name) for image in gallery_images()]
    fields = {"warnings": [name], "versions": {name: name}}
    audit = AUDIT | {"balance": [{"split": "test", "condition": name}]}
    report = page(tmp_path, fields, gallery=images, audit=audit)
    escaped = r"a\x1b]0;title\x07\x00\u202egnp.\u2066\udcff\n.png"
    assert report.text.count(escaped) >= 10
    text = report.text + "".join(v or "" for _, a in report.tags for v in a.values())
    assert all(c.isprintable() for c in text)


def test_optional_sections(tmp_path):
    row = {"standardize": False, "reduction": "mean", "paper": False, "used": False}
    defect_type = {"defect_type": UNTRUSTED, "n": 3, "auroc": 0.777, "recall": 0.125}
    condition = {"condition": "leaf", "n": 5, "n_normal": 2, "n_anomalous": 3}
    intervals = {"f1": [0.511, 0.522], "average_precision": [0.533, 0.544]}
    pixel_intervals = {name: [0.21, 0.22] for name in PIXEL_METRICS}
    fields = {
        "score_table": [
            row | {"score": "mse", "auroc": 0.601, "used": True},
            row | {"score": "ssim", "auroc": 0.702, "standardize": True, "reduction": "max"},
            row | {"score": "0.7 mse + 0.3 ssim", "auroc": None, "paper": True},
        ],
        "score_table_note": "A note on oracles.",
        "by_defect_type": [defect_type],
        "by_condition": [condition | {"auroc": None, "recall": None, "specificity": 0.375}],
        "intervals": {name: [0.8, 0.95] for name in IMAGE_METRICS} | intervals,
        "pixel": PIXEL | {"dice": 0.456, "intervals": pixel_intervals},
        "pixel_threshold": 0.0789,
        "color_limits": {"combined": 0.4321},
    }
    text = page(tmp_path, fields, gallery=list(gallery_images())).text
    for words in (
        "ssim, terms standardized highest 0.702 mse used here mean 0.601 0.7 mse + 0.3 ssim the paper's mean –",
        "A note on oracles.",
        f"{UNTRUSTED} 3 0.777 0.125",
        "leaf 5 2 3 – – 0.375",
        "0.511 to 0.522",
        "0.533 to 0.544",
        "0.210 to 0.220",
        "0.456",
        "0.0789",
        "0.4321 and above",
    ):
        assert words in text, words
    for heading in ("Other scores", "By defect type"):
        assert heading in text and heading not in page(tmp_path).text


def test_config_is_shown_field_by_field(tmp_path):
    path = write_report(
        tmp_path / "report.html", make_result(), [], {}, [], config={"data": {"dir": UNTRUSTED}, "n": 7}
    )
    assert f"Config data dir {UNTRUSTED} images 7" in Page(path.read_text(encoding="utf-8")).text


def test_every_value_of_the_evaluation_is_shown(tmp_path):
    text = page(tmp_path, {}, history(), {}, list(gallery_images()), AUDIT).text
    for value in ("0.900", "0.850 to 0.950", "0.910", "0.01234", "0.835", "0.870", "0.550", "0.912", "0.899"):
        assert value in text, value
    for words in (
        *("oracle (uses test labels)", "feature distance", make_result().main.promise.sentence),
        *("collapsed at epoch 3", "statistics re-estimated", "0.10.2", "ablations: no_se"),
        *("cae on phantom leaf", "Leak audit", "shortcut features", "PCA, 64 components", "one, two"),
        "do not locate defects better than raw intensity as a map (0.950)",
        "the paper's score 0.765 0.910 0.820 0.840 0.830 0.04321 0.654",
        "the calibrated score decides 0.900 0.910 0.820 0.840 0.830 0.01234 0.950",
    ):
        assert words in text, words


def test_only_a_calibrated_threshold_is_called_label_free(tmp_path):
    claim = "No test label was used"
    assert claim in page(tmp_path).text
    manual = page(tmp_path, {"threshold_rule": "manual", "promise": None}).text
    assert claim not in manual and "set by hand, which promises nothing" in manual


def test_undefined_values(tmp_path):
    """All optional values of an evaluation are None."""
    fields = dict.fromkeys([*IMAGE_METRICS, "auroc_ci", "intervals", "native"])
    fields |= {"n_anomalous": 0, "baselines": {"mean_image": None}, "term_aurocs": {"mse": None}}
    fields |= {"oracle": {"threshold": None, "f1": None, "accuracy": None}, "specificity": 0.84}
    fields |= {"predict_all": {"f1": None, "accuracy": None}, "pixel_baselines": {}}
    fields |= {"paper": {}, "pixel": dict.fromkeys([*PIXEL_METRICS, "dice", "intervals"]), "warnings": []}
    normal = [image for image in gallery_images() if not image.label]
    for gallery in normal, []:
        report = page(tmp_path, fields, gallery=gallery, audit={})
        assert report.open == []
        assert "None" not in report.text and "–" in report.text and "0.840" in report.text
        assert "lacks normal or anomalous" in report.text


@pytest.mark.parametrize(
    "auroc, interval, baselines, words",
    [
        (0.9, None, {"pca_64": 0.966, "mean_image": 0.7}, "PCA, 64 components scores 0.966, higher than this"),
        (0.9, None, {"pca_64": 0.9}, "as high as this model (0.900)."),
        (0.9, [0.05, 0.15], {"pca_64": 0.8}, "scores 0.800, below this model (0.900)."),
        (0.9, [0.05, 0.15], {"pca_64": 0.8}, "Model minus baseline: +0.100, 95 % interval +0.050 to +0.150."),
        (0.9, [-0.05, 0.25], {"pca_64": 0.8}, "95 % interval -0.050 to +0.250, so the difference may be chance."),
        (0.9, [-0.25, 0.05], {"pca_64": 1.0}, "95 % interval -0.250 to +0.050, so the difference may be chance."),
        (0.9, None, {"pca_64": None}, "no training-free baseline was run"),
        (None, None, {"pca_64": 0.8}, "there is no AUROC"),
    ],
)
def test_baseline_check(auroc, interval, baselines, words):
    difference = interval and {"baseline": "pca_64", "value": auroc - baselines["pca_64"], "interval": interval}
    result = make_result(auroc=auroc, baselines=baselines, over_baseline=difference)
    sentence = baseline_check(result.main)
    assert words in sentence and sentence.startswith("Baseline check: ")
    assert ("may be chance" in sentence) == words.endswith("may be chance.")
    assert summary(result)[-1] == sentence


def test_summary_has_both_scores_and_the_promise():
    result = make_result(paper={"auroc": 0.654, "recall": 0.321}, auroc_ci=None)
    text = "\n".join(summary(result))
    assert "cae on phantom bottle\nImages: AUROC 0.900; at the threshold 0.5: recall 0.900" in text
    assert f"Threshold: {result.main.promise.sentence}" in text
    assert "With the paper's score: AUROC 0.654, recall 0.321" in text
    assert "With the calibrated score: AUROC 0.900" in "\n".join(summary(result.replace(score_name="paper")))
    assert "set by hand, which promises nothing" in "\n".join(summary(make_result(promise=None)))
    undefined = dict.fromkeys(["auroc", "recall"])
    assert "AUROC –" in summary(make_result(**undefined))[1]


def test_summary_without_anomalous_images_says_what_is_unknown():
    _, images, threshold, advice = summary(make_result(n_anomalous=0, n_normal=25, specificity=0.84, auroc=None))
    assert "nothing is known about detection" in images and "4 of 25 normal test images called anomalous" in images
    assert threshold.startswith("Threshold: ") and "a folder named anomalous" in advice


def test_gallery_starts_with_the_worst_and_the_best_cases(tmp_path):
    report = page(tmp_path, {"threshold": 0.1}, gallery=list(gallery_images()))
    cases = [a for tag, a in report.tags if "case" in (a.get("class") or "").split()]
    assert [case["data-path"] for case in cases] == ["c.png", "b.png", UNTRUSTED, "d.png"]
    verdicts = [case["data-verdict"] for case in cases]
    assert verdicts == ["false alarm", "below threshold", "found", "passed"]
    assert page(tmp_path, gallery=list(gallery_images())[:1]).open == []


def test_first_screen_has_the_verdict_and_examples(tmp_path):
    fields = {
        "pixel": PIXEL | {"auroc": 0.876, "dice": None, "intervals": {name: [0.861, 0.889] for name in PIXEL_METRICS}}
    }
    examples = list(gallery_images())[:3]
    path = write_report(tmp_path / "report.html", make_result(**FIELDS | fields), [], {}, [], examples=examples)
    html = path.read_text(encoding="utf-8")
    first = Page(html[html.index('<section id="result"') : html.index('<section id="warnings"')])
    for words in (
        "0.900 image AUROC 95 % interval 0.850 to 0.950 0.876 pixel AUROC 95 % interval 0.861 to 0.889",
        "Baseline check: Mahalanobis distance of 16x16 thumbnails scores 0.950, higher than this model (0.900).",
        "recall 0.820, specificity 0.840",
        "1 warning below.",
        f"input reconstruction error map mask {UNTRUSTED} found score 9",
        "b.png below threshold score 0.001",
        "not chosen by hand",
    ):
        assert words in first.text, words
    assert len([tag for tag, _ in first.tags if tag == "img"]) == 4 + 4 + 3
    assert html.index('id="result"') < html.index('id="warnings"') < html.index("<table")


def test_report_without_reconstructions_has_no_column_for_them(tmp_path):
    images = [image._replace(reconstruction=None) for image in gallery_images()]
    path = write_report(tmp_path / "report.html", make_result(group="features"), [], {}, images, examples=images[:1])
    report = Page(path.read_text(encoding="utf-8"))
    assert "reconstruction" not in report.text and "input error map mask" in report.text
    assert "repeat(3, minmax(0, 1fr))" in report.script


def test_bars_start_at_chance(tmp_path):
    report = page(tmp_path, {"baselines": {"pca_8": 0.75, "pca_64": 0.25, "mean_image": None}})
    widths = [a["style"] for tag, a in report.tags if tag == "i"]
    assert widths == ["width: 80.0%", "width: 50.0%", "width: 0%", "width: 0%"]  # of this model: 0.9


def test_svg_figures_are_embedded_without_scripts(tmp_path):
    svg = to_svg(roc_curve(np.arange(4.0), np.arange(4) > 1, 2.5))
    report = page(tmp_path, figures={"roc_curve": svg})
    (source,) = [a["src"] for tag, a in report.tags if tag == "img"]
    kind, _, content = source.partition(",")
    assert kind == "data:image/svg+xml;base64" and base64.b64decode(content) == svg
    assert b"<script" not in svg and b"<text" not in svg  # text is shapes, which need no font


def test_png_bytes_round_trip():
    rng = np.random.default_rng(0)
    for shape in ((5, 7), (5, 7, 1), (5, 7, 3)):
        array = rng.integers(0, 256, shape, np.uint8)
        read = Image.open(io.BytesIO(png_bytes(array)))
        read = np.asarray(read.convert("RGB") if shape[2:] == (3,) else read)
        assert (read == array.squeeze()).all()
    with pytest.raises(TypeError, match=r"(?i)uint8"):
        png_bytes(np.zeros((2, 2)))


def test_png_with_a_palette():
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (256, 3), np.uint8)
    indices = rng.integers(0, 256, (64, 48), np.uint8)
    image = Image.open(io.BytesIO(png_bytes(indices, palette=palette)))
    assert image.mode == "P"
    assert (np.asarray(image.convert("RGB")) == palette[indices]).all()


def test_large_images_shrink_in_proportion():
    large = np.full((40, 80, 3), 77, np.uint8)
    assert Image.open(io.BytesIO(png_bytes(large, longest=20))).size == (20, 10)
    assert Image.open(io.BytesIO(png_bytes(large, longest=90))).size == (80, 40)


def test_data_uri_holds_the_png(tmp_path):
    report = page(tmp_path, figures={"mine": PNG})
    (source,) = [a["src"] for tag, a in report.tags if tag == "img"]
    assert base64.b64decode(source.partition(",")[2]) == PNG
