"""The plot of the results page: one strip per dataset, one dot per detector, in an SVG image of 380 pixels' width.

The axis is from chance to 1, so that a detector below chance does not squeeze the others: it is a triangle at the
border. Colors follow the reader's system, light or dark.
"""

from collections.abc import Sequence
from html import escape

from bigan_jax.evaluation.verdict import GROUP_TITLES

from .tables import TITLES, Detector, Results

_WIDTH, _LEFT, _RIGHT = 380, 16, 366
_LANES = {group: 14 * i for i, group in enumerate(GROUP_TITLES)}
_STRIP, _FIRST = 90, 62  # height of a strip and top of the first one, pixels
_HIGHLIGHT = "improved_bigan"
_NAMES = {"reconstruction": "reconstruction", "features": "pretrained features", "baseline": "kept baselines"}
_STYLE = """\
  text { font: 12px system-ui, sans-serif; fill: #222 }
  .title { font-weight: 600 }
  .small { font-size: 11px; fill: #555 }
  .grid { stroke: #ccc }
  .line { stroke: #555; stroke-dasharray: 3 2 }
  .reconstruction { fill: #0072b2 }
  .features { fill: #d55e00 }
  .baseline { fill: #7a7a7a }
  .mark { stroke: #222; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #eee } .small { fill: #bbb } .grid { stroke: #444 } .line { stroke: #bbb } .mark { stroke: #fff }
    .reconstruction { fill: #56b4e9 } .features { fill: #ff9e4a } .baseline { fill: #a8a8a8 }
  }
"""


def dot_plot(results: Results) -> str:
    """Returns the plot of the mean AUROC of all detectors by their default scores."""
    names = [name for name in TITLES if results.main_detectors(name)]
    height = _FIRST + _STRIP * len(names) + 26
    parts = [_legend()]
    for i, name in enumerate(names):
        baseline = results.baseline(name)
        parts.append(
            _strip(_FIRST + i * _STRIP, TITLES[name], results.main_detectors(name), baseline and baseline[1].mean)
        )
    bottom = _FIRST + _STRIP * len(names)
    parts += [
        f'<text class="small" x="{_x(v / 10):.1f}" y="{bottom + 4}" text-anchor="middle">{v / 10:g}</text>'
        for v in range(5, 11)
    ]
    parts.append(f'<text class="small" x="{_WIDTH / 2}" y="{bottom + 20}" text-anchor="middle">image AUROC</text>')
    title = "Image AUROC of all detectors on each dataset"
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}">\n'
        f"<title>{title}</title>\n<style>\n{_STYLE}</style>\n{body}\n</svg>\n"
    )


def _x(auroc: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * (auroc - 0.5) / 0.5


def _legend() -> str:
    parts = []
    for x, (group, text) in zip((8, 118, 258), _NAMES.items(), strict=True):
        parts.append(f'<circle class="{group}" cx="{x + 5}" cy="14" r="5"/><text x="{x + 14}" y="18">{text}</text>')
    parts.append('<circle class="reconstruction mark" cx="13" cy="34" r="5"/><text x="22" y="38">Improved BiGAN</text>')
    parts.append('<line class="line" x1="142" y1="27" x2="142" y2="41"/><text x="149" y="38">best baseline</text>')
    parts.append('<path class="reconstruction" d="M250 34l8 -5v10z"/><text x="263" y="38">below 0.5</text>')
    return "\n".join(parts)


def _strip(top: float, title: str, detectors: Sequence[Detector], baseline: float | None) -> str:
    known = [(d, value.mean) for d in detectors if (value := d.spread("auroc"))]
    best, best_value = max(known, key=lambda pair: pair[1])
    below = sum(value < 0.5 for _, value in known)
    lanes, bottom = top + 22, top + 22 + 14 * len(_LANES)
    parts = [f'<text class="title" x="{_LEFT - 8}" y="{top + 8}">{escape(title)}</text>']
    text = f"best: {best.model} {best_value:.3f}" + (f"; {below} < 0.5" if below else "")
    parts.append(f'<text class="small" x="{_RIGHT + 6}" y="{top + 8}" text-anchor="end">{escape(text)}</text>')
    parts += [
        f'<line class="grid" x1="{_x(v / 10):.1f}" y1="{lanes - 7}" x2="{_x(v / 10):.1f}" y2="{bottom}"/>'
        for v in range(5, 11)
    ]
    if baseline is not None and baseline >= 0.5:
        x = _x(baseline)
        parts.append(f'<line class="line" x1="{x:.1f}" y1="{lanes - 9}" x2="{x:.1f}" y2="{bottom + 2}"/>')
    for detector, value in sorted(known, key=lambda pair: pair[0].model == _HIGHLIGHT):
        y = lanes + _LANES[detector.group]
        mark = " mark" * (detector.model == _HIGHLIGHT)
        name = f"<title>{escape(detector.title)} {value:.3f}</title>"
        if value < 0.5:
            shape = f'<path class="{detector.group}{mark}" d="M{_LEFT - 8} {y}l8 -5v10z">{name}</path>'
        else:
            fade = "" if mark else ' fill-opacity="0.75"'
            shape = f'<circle class="{detector.group}{mark}" cx="{_x(value):.1f}" cy="{y}" r="5"{fade}>{name}</circle>'
        parts.append(shape)
    return "\n".join(parts)
