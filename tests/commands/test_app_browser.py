"""The app's page in headless Chromium, if it is installed with its driver."""

import csv
import io
import json
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

import bigan_jax
from bigan_jax.commands.web.scoring import load_run
from bigan_jax.data import phantom
from bigan_jax.evaluation.scorer import AnomalyScorer
from tests.helpers.app import MAX_BYTES, serving, write_runs
from tests.reports.test_browser import CHROMIUM, PHONE_WIDTH, contrast

DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="requires Chromium and chromedriver")
WAIT = 60  # seconds, at most
UNTRUSTED = "=<img src=x onerror='hacked=1'>.png"
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream")

# Returns the name of each image and what the page shows of each run.
SHOW_PAGE = """
const shown = node => [...node.querySelectorAll(".result")].map(result => {
  const text = name => result.querySelector(`.${name}`).textContent;
  const canvas = result.querySelector("canvas");
  return {
    title: text("title"), decision: text("badge"), manual: text("manual"), score: text("score"), limit: text("limit"),
    percentile: text("percentile"), marked: text("marked"), promise: text("promise"), reason: text("reason"),
    size: [canvas.width, canvas.height], pixels: canvas.width ? canvas.toDataURL() : "",
  };
});
return [...document.querySelectorAll(".item")].map(node => [node.querySelector(".name").textContent, shown(node)]);
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def urls(folders):
    """The addresses of the first run alone, and of both."""
    runs = list(map(load_run, folders))
    with serving(runs[:1]) as one, serving(runs) as both:
        yield one.url, both.url


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The names of an image that is anomalous by its score, one that is normal, and two that cannot be scored."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    for name, image in ("bottle.png", phantom.draw("bottle", 0, 64, 1)[0][:48, :, 0]), (UNTRUSTED, noise):
        Image.fromarray(image).save(folder / name)
    (folder / "large.png").write_bytes(bytes(MAX_BYTES + 1))
    (folder / "text.png").write_bytes(b"no image")
    return [folder / name for name in ("bottle.png", UNTRUSTED, "large.png", "text.png")]


class Page:
    """The page in a browser."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, url, width=1280, dark=False):
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.driver.get(url)
        self.wait_for("document.body.dataset.ready")
        self.driver.get_log("browser")  # forgets messages of earlier pages

    def command(self, name, **parameters):
        self.driver.execute_cdp_cmd(name, parameters)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait_for(self, condition):
        """Waits until a JavaScript expression is true."""
        end = time.monotonic() + WAIT
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < end, f"{condition}: {self.run('return document.body.innerText')}"
            time.sleep(0.05)

    def choose(self, *paths):
        self.driver.find_element(By.ID, "files").send_keys("\n".join(map(str, paths)))

    def upload(self, *paths):
        """Chooses files and waits until all have a result."""
        n_images = self.run("return document.querySelectorAll('.item').length") + len(paths)
        self.choose(*paths)
        self.wait_for(f"document.querySelectorAll('.item').length == {n_images}")
        self.wait_for("![...document.querySelectorAll('.waiting')].some(node => !node.hidden)")

    def results(self):
        """Returns, by the names of the images, what is shown of each run."""
        self.run("return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return {name: results for name, results in self.run(SHOW_PAGE)}

    def move(self, name, position, run=0):
        """Moves a slider to a position from 0 to 1000."""
        script = "const slider = document.querySelectorAll(arguments[0])[arguments[1]]; slider.value = arguments[2];"
        self.run(f"{script} slider.dispatchEvent(new Event('input'));", f".{name}-slider", run, position)

    def click(self, selector):
        self.run("document.querySelector(arguments[0]).click()", selector)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield Page(driver)
    driver.quit()


@pytest.mark.parametrize(("width", "dark"), [(PHONE_WIDTH, False), (1280, True)])
def test_page_scores_images_and_names_unreadable_files(page, urls, images, folders, width, dark):
    page.open(urls[0], width, dark)
    page.upload(*images)
    results = page.results()
    assert list(results) == [path.name for path in images]
    expected = bigan_jax.load(folders[0]).predict(images[:2])
    evaluation = json.loads((folders[0] / "evaluation.json").read_text())
    for i, (decision, percentile) in enumerate([("anomalous", "100 %"), ("normal", "33.3 %")]):
        assert expected.decision[i] == (decision == "anomalous")
        (shown,) = results[images[i].name]
        assert shown["decision"] == decision and shown["manual"] == "" and shown["limit"] == "5"
        assert float(shown["score"]) == pytest.approx(expected.score[i], rel=1e-3)
        assert shown["percentile"] == f"above {percentile} of 3 calibration images"
        share = (expected.error_map[i] >= evaluation["pixel_threshold"]).mean()
        assert float(shown["marked"].partition(" %")[0]) == pytest.approx(100 * share, abs=1)
        assert shown["promise"].startswith("On average at most 5 % of new normal images")
        assert shown["size"] == [[512, 384], [320, 480]][i]  # enlarged by whole numbers
    assert "larger than 0.19" in results["large.png"][0]["reason"]
    assert "not an image" in results["text.png"][0]["reason"]
    assert page.run("return document.getElementById('status').textContent") == "2 of 4 images scored, 2 refused."

    assert page.run("return typeof hacked") == "undefined"
    messages = [entry["message"] for entry in page.driver.get_log("browser")]
    assert len(messages) == 1 and "422" in messages[0]  # of text.png; large.png is not sent
    content_width, *colors = page.run(
        "const style = getComputedStyle(document.body);"
        "return [document.documentElement.scrollWidth, style.color, style.backgroundColor]"
    )
    assert content_width <= width
    assert contrast(*colors) > 7
    assert (colors[1] == "rgb(20, 21, 23)") == dark
    below = page.run(
        "const [results, drop] = ['items', 'drop'].map(id => document.getElementById(id).getBoundingClientRect());"
        "return results.top > drop.bottom"
    )
    assert below == (width == PHONE_WIDTH)


def test_decisions_follow_the_sliders_at_once(page, urls, images):
    page.open(urls[0])
    page.upload(images[0])
    (before,) = page.results()["bottle.png"]
    page.move("threshold", 1000)
    (high,) = page.results()["bottle.png"]
    assert (high["decision"], high["manual"]) == ("normal", "by a manual threshold")
    assert high["limit"].endswith(" (manual)") and float(high["limit"].split()[0]) > float(high["score"])
    assert high["promise"] == "Manual threshold: it promises nothing. 0 of 3 calibration images reach it."
    page.move("threshold", 0)
    (low,) = page.results()["bottle.png"]
    assert low["decision"] == "anomalous" and low["promise"].endswith("3 of 3 calibration images reach it.")
    assert low["pixels"] == before["pixels"]  # of the pixel threshold alone
    limits = page.results()["bottle.png"][0]["limit"]
    page.move("threshold", 0)  # the range stays, so that the slider does not run away from the pointer
    assert page.results()["bottle.png"][0]["limit"] == limits

    page.move("pixel", 1000)
    (none,) = page.results()["bottle.png"]
    page.move("pixel", 0)
    (all_,) = page.results()["bottle.png"]
    assert none["marked"] == "0 % of the map" and all_["marked"] == "100 % of the map"
    assert len({before["pixels"], none["pixels"], all_["pixels"]}) == 3
    page.click(".reset")
    assert page.results()["bottle.png"] == [before]


def test_typed_threshold_decides_exactly(page, urls, images):
    """An image is anomalous from its score on."""
    page.open(urls[0])
    page.upload(images[0])
    score = page.run("return document.querySelector('.score').textContent")
    script = "const field = document.querySelector('.threshold'); field.value = arguments[0];"
    for threshold, decision in (float(score) * 1.001, "normal"), (float(score) * 0.999, "anomalous"):
        page.run(f"{script} field.dispatchEvent(new Event('change'));", str(threshold))
        assert page.results()["bottle.png"][0]["decision"] == decision


def test_runs_are_compared_and_conditions_chosen(page, urls, images, folders):
    page.open(urls[1])
    page.upload(images[0])
    first, second = page.results()["bottle.png"]
    assert first["title"].startswith("fcae on ") and second["title"].startswith("cvae on ")
    assert first["decision"] == "anomalous" and "one of bottle, leaf" in second["reason"]
    for condition in ("bottle", "leaf"):
        script = "const choice = document.querySelectorAll('.condition')[1]; choice.value = arguments[0];"
        page.run(f"{script} choice.dispatchEvent(new Event('change'));", condition)
        page.wait_for("![...document.querySelectorAll('.waiting')].some(node => !node.hidden)")
        unchanged, second = page.results()["bottle.png"]
        expected = bigan_jax.load(folders[1]).predict(images[:1], condition)
        assert float(second["score"]) == pytest.approx(expected.score[0], rel=1e-3)
        assert second["reason"] == "" and unchanged == first
    page.move("threshold", 1000, run=1)
    decisions = [result["decision"] for result in page.results()["bottle.png"]]
    assert decisions == ["anomalous", "normal"]


def test_page_shows_what_it_waits_for_and_stays_usable(page, urls, images, monkeypatch):
    may_end, score = threading.Event(), AnomalyScorer.score
    monkeypatch.setattr(AnomalyScorer, "score", lambda *arguments: may_end.wait(WAIT) and score(*arguments))
    page.open(urls[0])
    page.choose(*images[:2])
    progress = "document.querySelector('.progress')?.textContent"
    page.wait_for(f"{progress}?.startsWith('scoring, ')")
    before = page.run(f"return {progress}")
    page.wait_for(f"{progress} !== '{before}'")  # the seconds
    page.move("threshold", 1000)
    page.click(".item:last-child .remove")
    may_end.set()
    page.wait_for("document.querySelector('.badge').textContent")
    results = page.results()
    assert list(results) == ["bottle.png"] and results["bottle.png"][0]["decision"] == "normal"


def test_results_are_downloaded(page, urls, images, tmp_path):
    page.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.open(urls[0])
    page.upload(*images[:2], images[3])
    page.move("threshold", 0)
    for button in ("#csv", "#json", ".overlay"):
        page.click(button)
    end = time.monotonic() + WAIT
    while not {"scores.csv", "scores.json", "bottle.png.png"} <= {path.name for path in tmp_path.iterdir()}:
        assert time.monotonic() < end, list(tmp_path.iterdir())
        time.sleep(0.05)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "scores.csv").read_text(), newline="")))
    objects = json.loads((tmp_path / "scores.json").read_text())
    assert [row["image"] for row in rows] == ["bottle.png", f"'{UNTRUSTED}", "text.png"]  # no formula
    assert [row["image"] for row in objects] == ["bottle.png", UNTRUSTED, "text.png"]
    shown = page.results()
    for row, entry in zip(rows[:2], objects[:2], strict=True):
        assert {**row, "image": ""} == {**{name: str(value) for name, value in entry.items()}, "image": ""}
        (result,) = shown[entry["image"]]
        assert entry["score"] == pytest.approx(float(result["score"]), rel=1e-3)
        assert (entry["decision"], entry["threshold_rule"]) == ("anomalous", "manual")
    assert "not an image" in objects[2]["reason"] and objects[2]["score"] == ""
    assert Image.open(tmp_path / "bottle.png.png").size == (512, 384)


def test_camera_takes_pictures(page, urls):
    page.open(urls[0])
    page.command("Browser.grantPermissions", permissions=["videoCapture"], origin=urls[0])
    page.click("#open-camera")
    page.wait_for("document.getElementById('video').videoWidth")
    page.click("#take")
    page.wait_for("document.querySelector('.badge')?.textContent")
    page.click("#close-camera")
    page.wait_for("!document.getElementById('video').srcObject.active")
    results = page.results()
    assert list(results) == ["camera-1.png"] and float(results["camera-1.png"][0]["score"]) > 0


def test_missing_camera_is_reported(page, urls):
    page.open(urls[0])
    page.command("Browser.resetPermissions")
    page.command("Browser.setPermission", permission={"name": "camera"}, setting="denied", origin=urls[0])
    page.click("#open-camera")
    page.wait_for("document.getElementById('message').textContent.includes('may not use the camera')")
    page.run("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    page.click("#open-camera")
    page.wait_for("document.getElementById('message').textContent.includes('no camera to this page')")
