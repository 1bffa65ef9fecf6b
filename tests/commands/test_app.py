"""The app: what its server refuses, what it answers, and the command."""

import base64
import io
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

import bigan_jax
from bigan_jax.commands import console
from bigan_jax.commands.web.scoring import load_run
from bigan_jax.commands.web.server import HOST, listen
from bigan_jax.data import phantom
from bigan_jax.data.files.images import read_full_size, read_image
from bigan_jax.errors import UserError
from bigan_jax.evaluation.scorer import AnomalyScorer
from bigan_jax.reports.overlays import marked
from tests.helpers.app import CONDITIONS, MAX_BYTES, TOKEN, serving, write_runs
from tests.helpers.runs import ROOT, environment

SLOW_APP = """
import time
from bigan_jax.commands import console
from bigan_jax.evaluation.scorer import AnomalyScorer
AnomalyScorer.score = lambda *_: time.sleep(3600)
console.main()
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def runs(folders):
    return list(map(load_run, folders))


@pytest.fixture(scope="module")
def server(runs):
    with serving(runs) as server:
        yield server


def png(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def bottle(defect=None, height=40):
    """The upper part of a phantom of 60x60 pixels."""
    return phantom.draw("bottle", 100_000, 60, 1, defect)[0][:height, :, 0]


# --- access ---


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("token", ["", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "é", f"x/{TOKEN}"])
def test_requests_without_the_token_are_refused(server, method, token):
    for path in ("", "runs", "app.js", "score/0"):
        status, headers, body = server.request(method, f"/{urllib.parse.quote(token)}/{path}", b"image")
        assert status == 403 and b"token" in body and TOKEN.encode() not in body
        assert headers["x-content-type-options"] == "nosniff"


def test_page_has_strict_headers(server):
    kinds = {"": "text/html", "app.js": "text/javascript", "app.css": "text/css", "page.css": "text/css"}
    for path, kind in {**kinds, "runs": "application/json"}.items():
        status, headers, body = server.request("GET", f"/{TOKEN}/{path}")
        assert status == 200 and headers["content-type"].startswith(kind) and len(body) > 100
        assert headers["content-security-policy"].startswith("default-src 'self'; img-src data: blob:;")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store" and headers["referrer-policy"] == "no-referrer"
    assert server.request("GET", f"/{TOKEN}/../server.py")[0] == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:80", 200), ("evil.example", 400), ("127.0.0.1.evil.example", 400), ("evil.example:127", 400)],
)
def test_other_host_names_are_refused(server, host, status):
    """A page of another site whose name was made to lead to 127.0.0.1 sends its own name."""
    assert server.request("GET", f"/{TOKEN}/runs", host=host)[0] == status


# --- files ---


def test_files_are_bounded(server):
    status, answer = server.score(0, bytes(MAX_BYTES + 1), name="large.png")
    assert status == 413 and answer["name"] == "large.png" and "larger than 0.19" in answer["reason"]
    assert server.score(0, bytes(MAX_BYTES), name="as large as allowed.png")[0] == 422


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.png", b"", "not an image"),
        ("photo.heic", b"\0\0\0\x18ftypheic" + bytes(100), "HEIC is not supported"),
        ("half.png", png(np.zeros((32, 32), np.uint8))[:-30], "truncated"),
        ("small.png", png(np.zeros((2, 9), np.uint8)), "too small"),
        ("huge.ppm", b"P6 20000 20000 255 ", "megapixels"),
        ("scan.dcm", bytes(200), "DICOM"),
        ("archive.zip", b"PK\3\4" + bytes(100), "not an image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unreadable_files_are_named_with_the_reason(server, name, content, reason):
    status, answer = server.score(0, content, name=name)
    assert status == 422 and answer.keys() == {"name", "reason"}
    assert answer["name"] == name and reason in answer["reason"]


def test_unknown_runs_and_conditions_are_refused(server):
    image = png(bottle())
    assert server.score(2, image)[0] == 404
    for index, condition, words in (0, "leaf", "takes no condition"), (1, "", "bottle, leaf"), (1, "leav", "'leaf'"):
        status, answer = server.score(index, image, condition=condition)
        assert status == 422 and words in answer["reason"]


# --- scores ---


@pytest.mark.parametrize(("index", "condition"), [(0, ""), *((1, condition) for condition in CONDITIONS)])
def test_scores_are_those_of_the_scorer(server, folders, index, condition, tmp_path):
    scorer = bigan_jax.load(folders[index])
    decisions = set()
    for image in (bottle(), np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)):
        (path := tmp_path / "image.png").write_bytes(png(image))
        expected = scorer.predict([path], condition)
        status, answer = server.score(index, path.read_bytes(), name="image.png", condition=condition)
        assert status == 200 and not answer["dark"]
        assert answer["score"] == pytest.approx(expected.score[0], rel=1e-5)
        assert answer["percentile"] == expected.percentile[0] and answer["anomalous"] == expected.decision[0]
        decisions.add(answer["anomalous"])
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["image"].partition(",")[2]))))
        np.testing.assert_array_equal(shown, image)
    assert decisions == {True, False}


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_map_covers_the_part_of_the_image_that_was_scored(runs, fit):
    """Marked pixels are those of the masks that predict writes, for a large image that the page shrinks."""
    scorer = runs[0].scorer
    run = runs[0]._replace(scorer=scorer)
    before = scorer.image_format
    content = png(np.kron(bottle("contamination"), np.ones((20, 20), np.uint8)))
    try:
        scorer.image_format = before._replace(fit=fit)
        answer = run.score("image.png", content, "")
        image = read_full_size(io.BytesIO(content))
        error_map = scorer.score(read_image(io.BytesIO(content), *scorer.image_format)[None]).error_map[0]
    finally:
        scorer.image_format = before
    values = np.frombuffer(base64.b64decode(answer["map"]["values"]), "<f4")
    values = values.reshape(answer["map"]["height"], answer["map"]["width"])
    threshold = float(np.quantile(values, 0.8))
    left, top, right, bottom = (round(x) for x in np.array(answer["box"]) * (image.size * 2))
    mask = Image.new("L", image.size)
    part = Image.fromarray((values >= threshold).astype(np.uint8) * 255)
    mask.paste(part.resize((right - left, bottom - top), Image.Resampling.NEAREST), (left, top))
    np.testing.assert_array_equal(mask, marked(error_map, threshold, image.size, fit))
    assert image.size == (1200, 800)
    shown = Image.open(io.BytesIO(base64.b64decode(answer["image"].partition(",")[2])))
    assert shown.size == (640, 427)


def test_nothing_is_written(server):
    image = png(bottle())
    server.score(0, image)  # compiles
    opened, watching = [], True

    def hook(event, arguments):
        if event == "open" and watching and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            opened.append(arguments[0])

    sys.addaudithook(hook)  # for good: there is no way to remove it
    assert server.score(0, image, name="x.png")[0] == 200
    watching = False
    assert opened == []


def test_server_answers_while_one_image_is_scored(server, monkeypatch):
    may_end, active, original = threading.Event(), [], AnomalyScorer.score

    def slow_score(*arguments):
        active.append(None)
        assert may_end.wait(60) and len(active) == 1
        scores = original(*arguments)
        active.clear()
        return scores

    monkeypatch.setattr(AnomalyScorer, "score", slow_score)
    with ThreadPoolExecutor(3) as threads:
        scores = [threads.submit(server.score, 0, png(bottle())) for _ in range(3)]
        assert server.request("GET", f"/{TOKEN}/runs")[0] == 200
        assert not any(score.done() for score in scores)
        may_end.set()
        assert [score.result()[0] for score in scores] == [200, 200, 200]


def test_unexpected_errors_are_reported_and_do_not_end_the_app(server, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(AnomalyScorer, "score", lambda *_: [][0])
        status, answer = server.score(0, png(bottle()), name="a.png")
    assert (status, answer) == (500, {"name": "a.png", "reason": "the app failed: list index out of range"})
    assert "IndexError" in capsys.readouterr().err
    assert server.score(0, png(bottle()))[0] == 200


# --- the command ---


def test_command_serves_until_ctrl_c_even_while_it_scores(folders):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_APP, "app", str(folders[0]), "--no-browser"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stdout.readline().strip()
        assert url.startswith(f"http://{HOST}:") and len(url.split("/")[3]) >= 32
        assert b"app.js" in urllib.request.urlopen(url, timeout=60).read()

        def score():
            with suppress(OSError):
                urllib.request.urlopen(f"{url}score/0", png(bottle()), timeout=60)

        threading.Thread(target=score, daemon=True).start()
        time.sleep(0.5)  # most likely it scores by now
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and printed.endswith("Stopped.\n"), errors
    assert "Traceback" not in errors and "Cancel" not in errors


def test_mistakes_are_reported(folders, tmp_path, monkeypatch):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.json").write_bytes((folders[0] / "config.json").read_bytes())
    with pytest.raises(UserError, match="has no valid evaluation"):
        console.run(["app", str(folders[0]), str(unfinished), "--no-browser"])
    with pytest.raises(UserError, match="none does not exist"):
        console.run(["app", "none"])
    with listen(0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"--port={port}: .*--port=0"):
            console.run(["app", str(folders[0]), f"--port={port}", "--no-browser"])
    with pytest.raises(UserError, match="--port=70000"):
        console.run(["app", str(folders[0]), "--port=70000"])
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"pip install 'bigan_jax\[app\]'"):
        console.run(["app", str(folders[0])])
