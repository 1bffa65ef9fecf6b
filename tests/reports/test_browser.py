"""The report in a real browser: headless Chromium, where the machine has one."""

import base64
import hashlib
import html
import http.server
import json
import re
import shutil
import subprocess
import threading

import numpy as np
import pytest

from bigan_jax.errors import printable
from bigan_jax.reports import html_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
PHONE = 390
HOSTILE = "<img src=x onerror='hacked=1'>\x1b[31m\u202e</script><script>hacked=1</script>.png"
KINDS = ("good", "crack", "a & <b>\"'")

# Before anything else of the page: whatever goes wrong is kept.
LISTEN = """
const wrong = [];
addEventListener("error", e => wrong.push(e.message || `cannot load ${e.target.src}`), true);
addEventListener("securitypolicyviolation", e => wrong.push(`refused ${e.blockedURI}`));
"""
LOOK = """
addEventListener("load", () => {
  const all = s => [...document.querySelectorAll(s)];
  const shown = () => all(".case").filter(c => c.checkVisibility()).map(c => c.dataset.path);
  const choose = choices => {
    all("#tools select").forEach(s => { s.value = choices[s.id] ?? ""; });
    document.getElementById("order").dispatchEvent(new Event("change"));
    return [shown(), document.getElementById("count").textContent];
  };
  const style = getComputedStyle(document.body);
  const found = {
    wrong, hacked: typeof hacked !== "undefined", width: innerWidth,
    content: document.documentElement.scrollWidth, ink: style.color, page: style.backgroundColor,
    pictures: all("img").map(i => i.complete && i.naturalWidth),
    fetched: performance.getEntriesByType("resource").map(r => r.name.slice(0, 40)),
    chosen: CHOICES.map(choose),
  };
  const answer = document.createElement("pre");
  answer.id = "answer";
  answer.textContent = JSON.stringify(found);
  parent.document.body.append(answer);
});
"""
CHOICES = [
    {},
    {"order": "score"},
    {"order": "margin"},
    {"order": "path"},
    {"label": "1", "order": "score"},
    {"verdict": "missed|false alarm", "order": "score"},
    {"verdict": "found|false alarm", "label": "0", "order": "score"},
    {"kind": KINDS[2], "order": "score"},
    {"size": "large"},
]


def items():
    """Two dozen pictures of every kind and decision, with names that sort by number."""
    rng = np.random.default_rng(0)
    for i in range(24):
        label, decision = bool(i % 2), bool(i // 2 % 2)
        name = HOSTILE if i == 5 else f"picture{i}-" + "long" * (100 if i == 6 else 1) + ".png"
        score = round(float(rng.random()) * 0.5 + 0.5 * decision, 6)
        png = html_report.png_bytes(rng.integers(0, 256, (16, 16, 3 if i % 3 else 1), np.uint8))
        kind = KINDS[1 + i % 4 // 2] if label else "good"
        yield html_report.GalleryItem(name, label, kind, score, decision, png, png, png, None)


EVALUATION = {
    "model": "cae",
    "dataset": HOSTILE,
    "auroc": 0.9,
    "auroc_ci": [0.85, 0.95],
    "threshold": 0.5,
    "warnings": [HOSTILE],
    "controls": {HOSTILE: 0.8, "w" * 300: 0.7},
    "pixel": {"auroc": 0.8, "average_precision": 0.3, "aupro": 0.5, "dice": 0.2},
    "score_table": [
        {"score": "0.7 mse + 0.3 ssim", "standardize": True, "reduction": "mean", "auroc": 0.9}
        | {"paper": True, "used": True}
    ],
    "by_defect_type": [{"defect_type": "k" * 200, "n": 9, "auroc": 0.9, "recall": 0.7}],
    "versions": {"jax": "1.2.3", "flax": "1.2.3"},
}


def browse(tmp_path, page, *flags, width=None):
    """What LOOK finds on the page, and the browser's own messages.

    A window has a least width, a frame in it has not: with `width` the page is in one.
    """
    look = LOOK.replace("CHOICES", json.dumps(CHOICES))
    allowed = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in (LISTEN, look)
    )
    page = page.replace("script-src ", f"script-src {allowed} ", 1)
    page = page.replace("<title>", f"<script>{LISTEN}</script><title>", 1)
    page = page.replace("</body>", f"<script>{look}</script></body>", 1)
    if width:
        frame = f'<iframe style="border: 0" width="{width}" height="800" srcdoc='
        page = f'<!doctype html><meta charset="utf-8"><body>{frame}"{html.escape(page)}"></iframe>'
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--window-size=1200,900", *flags, "--dump-dom"]
    result = subprocess.run(
        [*command, path.as_uri()], capture_output=True, timeout=60, encoding="utf-8"
    )
    answer = re.search(r'<pre id="answer">(.*?)</pre>', result.stdout, re.S)
    assert answer, result.stderr[-2000:]
    messages = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(answer[1])), messages


def written(tmp_path):
    png = html_report.png_bytes(np.zeros((30, 60), np.uint8))
    path = html_report.write_report(
        tmp_path / "report.html", EVALUATION, [], {"roc_curve": png}, list(items())
    )
    return path.read_text(encoding="utf-8")


def contrast(one, other):
    """WCAG 2's contrast ratio of two CSS colors, rgb(r, g, b)."""

    def luminance(color):
        rgb = np.array([int(part) for part in re.findall(r"\d+", color)][:3]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722] + 0.05

    dark, light = sorted((luminance(one), luminance(other)))
    return light / dark


def test_the_report_works_on_a_phone(tmp_path):
    found, messages = browse(tmp_path, written(tmp_path), width=PHONE)
    assert found["wrong"] == [] and messages == []
    assert not found["hacked"]
    assert found["fetched"] == []
    assert found["width"] == PHONE and found["content"] <= PHONE
    assert len(found["pictures"]) == 24 * 3 + 2 and min(found["pictures"]) > 0
    assert contrast(found["ink"], found["page"]) > 7

    cases = [item._replace(path=printable(item.path)) for item in items()]
    by_score = sorted(cases, key=lambda item: -item.score)
    by_margin = sorted(cases, key=lambda i: (i.score - 0.5) * (1 if i.label else -1))

    def names(chosen):
        return [item.path for item in chosen]

    first, *sorted_ways, large = (paths for paths, _ in found["chosen"])
    assert first == names([*by_margin[:6], *by_margin[:-7:-1], *by_margin[6:-6]])
    assert large == first
    hostile = printable(HOSTILE)
    number = {name: int(name[7 : name.index("-")]) for name in names(cases) if name != hostile}
    assert sorted_ways == [
        names(by_score),
        names(by_margin),
        [hostile, *sorted(number, key=number.get)],
        names(item for item in by_score if item.label),
        names(item for item in by_score if item.label != item.decision),
        names(item for item in by_score if item.decision and not item.label),
        names(item for item in by_score if item.defect_type == KINDS[2]),
    ]
    assert found["chosen"][4][1] == "12 of 24 pictures"


def test_the_policy_refuses_what_got_past_the_escaping(tmp_path):
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        smuggled = f'<img src="{address}/image"><script>hacked = 1</script>'
        smuggled += f'<script src="{address}/script"></script><img src="x" onerror="hacked = 1">'
        page = written(tmp_path).replace("<main>", f"<main>{smuggled}")
        found, messages = browse(tmp_path, page, "--blink-settings=preferredColorScheme=0")
        server.shutdown()
    assert asked == [] and not found["hacked"]
    assert sum(message.startswith("refused") for message in found["wrong"]) >= 4
    assert len(messages) >= 4  # so their absence elsewhere means something
    assert contrast(found["ink"], found["page"]) > 7  # in the dark, this time
