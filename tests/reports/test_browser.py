"""The report in headless Chromium, if it is installed."""

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
from bigan_jax.reports.image_grid import GalleryImage
from tests.helpers.datasets import make_result

COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, COMMANDS)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="requires Chromium")
PHONE_WIDTH = 390
UNTRUSTED = "<img src=x onerror='hacked=1'>\x1b[31m\u202e</script><script>hacked=1</script>.png"
DEFECT_TYPES = ("good", "crack", "a & <b>\"'")

# Runs before the rest of the page and records all errors.
ERROR_LISTENER = """
const errors = [];
addEventListener("error", e => errors.push(e.message || `cannot load ${e.target.src}`), true);
addEventListener("securitypolicyviolation", e => errors.push(`refused ${e.blockedURI}`));
"""
# Tries all CHOICES of the tools and appends what the page shows, as JSON in #result.
INSPECTION = """
addEventListener("load", () => {
  const all = s => [...document.querySelectorAll(s)];
  const visible = () => all(".case").filter(c => c.checkVisibility()).map(c => c.dataset.path);
  const choose = choices => {
    all("#tools select").forEach(s => { s.value = choices[s.id] ?? ""; });
    document.getElementById("order").dispatchEvent(new Event("change"));
    return [visible(), document.getElementById("count").textContent];
  };
  const style = getComputedStyle(document.body);
  const result = {
    errors, hacked: typeof hacked !== "undefined", width: innerWidth,
    content_width: document.documentElement.scrollWidth, color: style.color,
    background: style.backgroundColor,
    images: all("img").map(i => i.complete && i.naturalWidth),
    fetched: performance.getEntriesByType("resource").map(r => r.name.slice(0, 40)),
    chosen: CHOICES.map(choose),
  };
  const output = document.createElement("pre");
  output.id = "result";
  output.textContent = JSON.stringify(result);
  parent.document.body.append(output);
});
"""
CHOICES = [
    {},
    {"order": "score"},
    {"order": "margin"},
    {"order": "path"},
    {"label": "1", "order": "score"},
    {"verdict": "below threshold|false alarm", "order": "score"},
    {"verdict": "found|false alarm", "label": "0", "order": "score"},
    {"type": DEFECT_TYPES[2], "order": "score"},
    {"size": "large"},
]


def gallery_images():
    """24 images of every defect type and decision, with names that sort by number."""
    rng = np.random.default_rng(0)
    for i in range(24):
        label, decision = bool(i % 2), bool(i // 2 % 2)
        name = UNTRUSTED if i == 5 else f"image{i}-" + "long" * (100 if i == 6 else 1) + ".png"
        score = round(float(rng.random()) * 0.5 + 0.5 * decision, 6)
        image = rng.integers(0, 256, (16, 16, 3 if i % 3 else 1), np.uint8)
        maps = {"combined": rng.random((16, 16))}
        defect_type = DEFECT_TYPES[1 + i % 4 // 2] if label else "good"
        yield GalleryImage(name, label, defect_type, score, decision, image, image, maps)


FIELDS = {
    "dataset": printable(UNTRUSTED),
    "threshold": 0.5,
    "warnings": [UNTRUSTED],
    "baselines": {printable(UNTRUSTED): 0.8, "w" * 100: 0.7},
    "score_table": [
        {"score": "0.7 mse + 0.3 ssim", "standardize": True, "reduction": "mean", "auroc": 0.9}
        | {"paper": True, "used": True}
    ],
    "by_defect_type": [{"defect_type": "k" * 200, "n": 9, "auroc": 0.9, "recall": 0.7}],
}


def open_in_browser(tmp_path, page, *flags, width=None):
    """Returns the result of INSPECTION on the page, and the messages of the browser's console."""
    inspection = INSPECTION.replace("CHOICES", json.dumps(CHOICES))
    return run_chromium(tmp_path / "page.html", page, inspection, "script-src ", *flags, width=width)


def run_chromium(path, page, inspection, directive, *flags, width=None):
    """Writes a page to `path`, runs a script in it, and returns what it writes to #result, and the console's messages.

    The page's security policy allows the script, before its first `directive`. With `width` the page is opened in a
    frame, since windows have a minimum width.
    """
    allowed = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in (ERROR_LISTENER, inspection)
    )
    policy = f"script-src {allowed} " if directive == "script-src " else f"script-src {allowed}; {directive}"
    page = page.replace(directive, policy, 1)
    page = page.replace("<title>", f"<script>{ERROR_LISTENER}</script><title>", 1)
    page = page.replace("</body>", f"<script>{inspection}</script></body>", 1)
    if width:
        frame = f'<iframe style="border: 0" width="{width}" height="800" srcdoc='
        page = f'<!doctype html><meta charset="utf-8"><body>{frame}"{html.escape(page)}"></iframe>'
    path.write_text(page, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", f"--user-data-dir={path.parent / 'profile'}"]
    command += ["--enable-logging=stderr", "--window-size=1200,900", *flags, "--dump-dom"]
    result = subprocess.run([*command, path.as_uri()], capture_output=True, timeout=60, encoding="utf-8")
    output = re.search(r'<pre id="result">(.*?)</pre>', result.stdout, re.S)
    assert output, result.stderr[-2000:]
    messages = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(output[1])), messages


def report_page(tmp_path):
    png = html_report.png_bytes(np.zeros((30, 60), np.uint8))
    path = html_report.write_report(
        tmp_path / "report.html", make_result(**FIELDS), [], {"roc_curve": png}, list(gallery_images())
    )
    return path.read_text(encoding="utf-8")


def contrast(color, other):
    """The contrast ratio of two CSS colors, rgb(r, g, b), by WCAG 2."""

    def luminance(color):
        rgb = np.array([int(part) for part in re.findall(r"\d+", color)][:3]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722] + 0.05

    dark, light = sorted((luminance(color), luminance(other)))
    return light / dark


def test_report_works_on_a_phone(tmp_path):
    result, messages = open_in_browser(tmp_path, report_page(tmp_path), width=PHONE_WIDTH)
    assert result["errors"] == [] and messages == []
    assert not result["hacked"]
    assert result["fetched"] == []
    assert result["width"] == PHONE_WIDTH and result["content_width"] <= PHONE_WIDTH
    assert len(result["images"]) == 24 * 3 + 2 and min(result["images"]) > 0
    assert contrast(result["color"], result["background"]) > 7

    images = [item._replace(path=printable(item.path)) for item in gallery_images()]
    by_score = sorted(images, key=lambda item: -item.score)
    by_margin = sorted(images, key=lambda i: (i.score - 0.5) * (1 if i.label else -1))

    def names(items):
        return [item.path for item in items]

    default, *choices, large = (paths for paths, _ in result["chosen"])
    assert default == names([*by_margin[:6], *by_margin[:-7:-1], *by_margin[6:-6]])
    assert large == default
    untrusted = printable(UNTRUSTED)
    numbers = {name: int(name[5 : name.index("-")]) for name in names(images) if name != untrusted}
    assert choices == [
        names(by_score),
        names(by_margin),
        [untrusted, *sorted(numbers, key=numbers.get)],
        names(item for item in by_score if item.label),
        names(item for item in by_score if item.label != item.decision),
        names(item for item in by_score if item.decision and not item.label),
        names(item for item in by_score if item.defect_type == DEFECT_TYPES[2]),
    ]
    assert result["chosen"][4][1].startswith("12 of 24 ")


def test_content_security_policy_blocks_unescaped_content(tmp_path):
    requests = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        injected = f'<img src="{address}/image"><script>hacked = 1</script>'
        injected += f'<script src="{address}/script"></script><img src="x" onerror="hacked = 1">'
        page = report_page(tmp_path).replace("<main>", f"<main>{injected}")
        result, messages = open_in_browser(tmp_path, page, "--blink-settings=preferredColorScheme=0")
        server.shutdown()
    assert requests == [] and not result["hacked"]
    assert sum(message.startswith("refused") for message in result["errors"]) >= 4
    assert len(messages) >= 4  # so that their absence in the other test is meaningful
    assert contrast(result["color"], result["background"]) > 7  # in the dark color scheme
