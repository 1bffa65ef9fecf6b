"""The report of a prediction: its order, pages and content, also in headless Chromium."""

import re

import numpy as np
import pytest
from PIL import Image

from bigan_jax.data.files.unreadable import UnreadableFile
from bigan_jax.errors import printable
from bigan_jax.metrics.drift import find_drift
from bigan_jax.reports import gallery
from bigan_jax.reports.gallery import write_gallery
from bigan_jax.reports.overlays import output_name, thumbnail_name
from bigan_jax.reports.prediction_files import ImagePrediction, append_predictions
from bigan_jax.reports.regions import Region
from tests.helpers.datasets import make_result
from tests.reports.test_browser import CHROMIUM, PHONE_WIDTH, UNTRUSTED, run_chromium

THRESHOLD = 0.5
INSPECTION = """
addEventListener("load", () => {
  const all = s => [...document.querySelectorAll(s)].filter(e => e.checkVisibility());
  const names = () => all(".case").map(c => c.querySelector(".path").title);
  const choose = id => { document.getElementById(id).click(); return names(); };
  const images = all(".case img"), boxes = all(".shot svg").length;
  const result = {
    errors, hacked: typeof hacked !== "undefined", width: innerWidth,
    content_width: document.documentElement.scrollWidth,
    loaded: images.map(i => i.complete && i.naturalWidth), names: names(),
    shapes: images.map(i => i.width / i.height),
    boxes, anomalous: choose("only-anomalous"), normal: choose("only-normal"), warned: choose("only-warned"),
    without: (document.getElementById("hide-boxes").click(), all(".shot svg").length),
  };
  const output = document.createElement("pre");
  output.id = "result";
  output.textContent = JSON.stringify(result);
  parent.document.body.append(output);
});
"""


def prediction(index, score, size=(40, 30), name=None):
    name = name or f"sub ä/{index} #1%.png"
    polygons = [[[(4, 4), (12, 4), (12, 9), (4, 9)]]]
    region = Region((4, 4, 8, 5), 40, 40 / (size[0] * size[1]), 0.9, 0.7, polygons)
    decision = "anomalous" if score >= THRESHOLD else "normal"
    warning = "dark" if index == 3 else ""
    regions = [region] * (index % 3)
    return ImagePrediction(name, score, 50.0, decision, THRESHOLD, warning, size, output_name(name), regions)


def write(folder, predictions, unreadable=(), images=True):
    for p in predictions if images else []:
        for path in (folder / thumbnail_name(p.file), folder / "overlays" / p.png):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", p.size, (90, 120, 40)).save(path)
    append_predictions(folder, predictions)
    scores = np.array([p.score for p in predictions], float)
    result = make_result(threshold=THRESHOLD, dataset=printable(UNTRUSTED))
    return write_gallery(folder, result, find_drift(np.linspace(0, 1, 50), scores, THRESHOLD), unreadable)


def names(page):
    return re.findall(r'class="path" title="([^"]*)"', page)


def test_highest_score_comes_first_in_pages_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "PAGE", 10)
    scores = np.random.default_rng(0).permutation(23) / 23
    path = write(tmp_path, [prediction(i, float(score)) for i, score in enumerate(scores)], images=False)
    assert path.name == "report.html"
    pages = [(tmp_path / f"report{suffix}.html").read_text(encoding="utf-8") for suffix in ("", "-2", "-3")]
    assert [len(names(page)) for page in pages] == [10, 10, 3]
    assert [name for page in pages for name in names(page)] == [f"sub ä/{i} #1%.png" for i in np.argsort(-scores)]
    assert "page 2 of 3" in pages[1] and 'href="report-3.html" rel="next"' in pages[1]
    assert 'href="report.html" rel="prev"' in pages[1] and 'rel="next"' not in pages[2]
    assert [page.count("No verdict on drift") for page in pages] == [1, 0, 0]
    assert not (tmp_path / "report-4.html").exists()
    links = re.findall(r'href="(overlays/[^"]*)"', pages[0])
    assert links[0].startswith("overlays/sub%20%C3%A4/") and links[0].endswith("%20%231%2525.png.png")


def test_untrusted_names_are_text(tmp_path):
    listed = [UnreadableFile(f"{UNTRUSTED}{i}", "<b>why") for i in range(150)]
    page = write(tmp_path, [prediction(0, 0.9, name=UNTRUSTED)], listed, images=False).read_text(encoding="utf-8")
    assert "<img src=x" not in page and "<script" not in page and "<b>why" not in page and "\x1b" not in page
    assert page.count("&lt;b&gt;why") == 100 and "100 of 150 files" in page
    # No other page is fetched, and no code runs.
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; img-src 'self' file:;") and "script" not in policy


def test_no_images(tmp_path):
    page = write(tmp_path, [], [UnreadableFile("a.png", "is empty")]).read_text(encoding="utf-8")
    assert "0 images scored" in page and "is empty" in page and names(page) == []


@pytest.mark.skipif(CHROMIUM is None, reason="requires Chromium")
def test_gallery_in_a_browser_on_a_phone(tmp_path):
    sizes = [(40, 30), (30, 40), (400, 12), (12, 400), (4, 4), (50, 50)]
    scored = [prediction(i, 0.9 - 0.1 * i, size) for i, size in enumerate(sizes)]
    scored += [prediction(9, 0.95, name=UNTRUSTED), prediction(10, 0.96, name="long" * 60 + ".png")]
    path = write(tmp_path, scored, [UnreadableFile(UNTRUSTED, "why")])
    page = path.read_text(encoding="utf-8").replace('loading="lazy"', "")
    result, messages = run_chromium(path, page, INSPECTION, "style-src", width=PHONE_WIDTH)
    assert result["errors"] == [] and messages == [] and not result["hacked"]
    assert result["width"] == PHONE_WIDTH and result["content_width"] <= PHONE_WIDTH
    ordered = sorted(scored, key=lambda p: -p.score)
    shown = [printable(p.file) for p in ordered]
    assert result["names"] == shown and len(result["loaded"]) == 8 and min(result["loaded"]) > 0
    for p, ratio in zip(ordered, result["shapes"], strict=True):
        assert max(p.size) > 10 * min(p.size) or ratio == pytest.approx(p.size[0] / p.size[1], rel=0.05)
    assert result["boxes"] == sum(bool(p.regions) for p in scored) and result["without"] == 0
    decisions = {kind: [printable(p.file) for p in ordered if p.decision == kind] for kind in ("anomalous", "normal")}
    assert result["anomalous"] == decisions["anomalous"] and result["normal"] == decisions["normal"]
    assert result["warned"] == [printable(p.file) for p in ordered if p.warning] and len(result["warned"]) == 1
