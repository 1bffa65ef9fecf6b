"""The phantom `head`: an axial, FLAIR-like brain slice with skull, folds and ventricles."""

import math
from typing import NamedTuple

import numpy as np

from bigan_jax.data.phantom.canvas import Canvas, Defect, Field, Paint
from bigan_jax.data.phantom.fields import blob, fill, gaussian, noise, radial_noise, segment_distance, smoothstep

NOISE = 0.006


class Head(NamedTuple):
    """The geometry of a slice, for its defects."""

    depth: Field  # distance from the cortex inwards, negative outside the brain
    u: Field  # coordinates across and along the brain, about -1 to 1 inside
    v: Field
    to_canvas: tuple  # center x, center y, half width, half height, cosine, sine
    light: Field


def scene(rng: np.random.Generator, c: Canvas) -> tuple[Paint, Head]:
    """Draws a slice with random pose, proportions, folds, contrast and coil shading."""
    size = len(c.x)
    atlas = np.random.default_rng(7)  # shared by all heads
    rotation = rng.normal(0, 0.05)
    cx, cy = rng.normal(0, 0.02, 2).tolist()
    a, b = rng.normal(0.61, 0.02), rng.normal(0.76, 0.022)
    cos, sin = math.cos(rotation), math.sin(rotation)
    x, y = c.x - cx, c.y - cy
    u, v = (x * cos + y * sin) / a, (y * cos - x * sin) / b
    u = u * (1 + 0.06 * (v - 0.25) ** 2)  # narrower at both ends
    radius = np.hypot(u, v)
    outer = 1 + radial_noise(rng, u, v, 3, 0.008)
    scale = (a + b) / 2
    depth = (outer - radius) * scale

    # Layers from the outside to the inside.
    fat = rng.normal(0.085, 0.012)
    bone = rng.normal(0.045, 0.006)
    fat_light, bone_light = rng.normal(0.62, 0.07), rng.normal(0.09, 0.015)
    brain_depth = depth - 0.02
    gray, white = rng.normal(0.50, 0.025), rng.normal(0.35, 0.02)
    fluid = rng.normal(0.10, 0.015)

    # Folds: bent sulci of uneven depth run inwards from the cortex, lined by gray matter.
    bend = 1.5 * noise(atlas, size, 5, 2) + 0.9 * noise(rng, size, 7, 2)
    fold = np.sin(12 * np.arctan2(v, u) + bend) * radius * (scale / 12)  # approximately a distance
    reach = 0.17 + 0.05 * noise(atlas, size, 7) + 0.03 * noise(rng, size, 7)
    near_cortex = smoothstep(0.07, -0.02, brain_depth - reach)
    ribbon = gaussian(fold, 0.038) * near_cortex
    sulcus = gaussian(fold, 0.012) * smoothstep(0.02, -0.05, brain_depth - reach)
    rim = smoothstep(0.075, 0.03, brain_depth)
    tissue = white + (gray - white) * np.maximum(ribbon, rim)
    tissue = tissue + (fluid - tissue) * 0.85 * sulcus

    # Deep gray matter, the fissure and the ventricles, which are nearly symmetric.
    mirrored = np.abs(u + 0.02 * noise(rng, size, 3) * 0.3)
    nuclei = np.hypot((mirrored - 0.27) / 0.13, (v - 0.03) / 0.22)
    tissue = tissue + 0.7 * (gray - tissue) * smoothstep(1.15, 0.75, nuclei)
    fissure = gaussian(mirrored, 0.022) * smoothstep(0.24, 0.40, np.abs(v + 0.02))
    tissue = tissue + (fluid - tissue) * 0.85 * fissure
    swell, length = rng.normal(1, 0.16), rng.normal(1, 0.08)
    front = segment_distance(mirrored, v, (0.085, -0.08), (0.16, -0.30 * length))
    back = segment_distance(mirrored, v, (0.10, 0.10), (0.25, 0.36 * length))
    middle = segment_distance(mirrored, v, (0.085, -0.08), (0.10, 0.10))
    horns = np.minimum(front - 0.060 * swell, back - 0.040 * swell)
    horns = np.minimum(horns, middle - 0.036 * swell)
    tissue = tissue + (fluid - tissue) * fill(horns, 0.035)
    third = np.hypot(mirrored / 0.022, (v - 0.16) / 0.09) - 1
    tissue = tissue + (fluid - tissue) * 0.8 * fill(third, 0.6)

    light = tissue
    light = bone_light + (light - bone_light) * fill(-brain_depth, 0.025)
    light = fat_light + (light - fat_light) * fill(-(depth + bone), 0.025)
    light = light * fill(-(depth + bone + fat * (0.75 + 0.35 * smoothstep(0.2, 0.9, np.abs(v)))), 0.03)
    shading = 1 + 0.05 * noise(rng, size, 1) + rng.normal(0, 0.05) * u
    light = light * shading * rng.normal(1, 0.07) + 0.012
    light = light + 0.006 * noise(rng, size, 28) * (depth > -0.1)
    paint = np.repeat(light[..., None], 3, axis=-1).astype(np.float32)
    return paint, Head(brain_depth, u, v, (cx, cy, a, b, cos, sin), light)


def _place(rng: np.random.Generator, head: Head, reach: float) -> tuple[float, float]:
    """A random point on the canvas, in the brain and off the midline."""
    cx, cy, a, b, cos, sin = head.to_canvas
    angle = rng.uniform(0.25, math.pi - 0.25) - math.pi / 2 + math.pi * rng.integers(2)
    radius = rng.uniform(0.35, reach)
    u, v = radius * math.cos(angle) * a, radius * math.sin(angle) * b
    return cx + u * cos - v * sin, cy + u * sin + v * cos


def _inside(cover: Field, head: Head) -> Field:
    return cover * smoothstep(-0.01, 0.03, head.depth)


def _gray(light) -> np.ndarray:
    return np.repeat(np.asarray(light, np.float32)[..., None], 3, axis=-1)


def lesion(rng: np.random.Generator, c: Canvas, head: Head, paint: Paint) -> Defect:
    """A bright lesion with an irregular outline and a mottled inside."""
    distance = blob(rng, c, _place(rng, head, 0.75), rng.uniform(0.08, 0.20), 0.10)
    distance = distance + 0.012 * noise(rng, len(c.x), 16)
    mottle = 0.05 * noise(rng, len(c.x), 18, 2)
    bright = rng.uniform(0.64, 0.86)
    return Defect(_inside(fill(distance, 0.04), head), _gray(bright + mottle))


def edema(rng: np.random.Generator, c: Canvas, head: Head, paint: Paint) -> Defect:
    """A large, faintly bright region without an edge, through which folds remain visible."""
    distance = blob(rng, c, _place(rng, head, 0.65), rng.uniform(0.16, 0.30), 0.12)
    lift = rng.uniform(0.09, 0.17)
    return Defect(_inside(fill(distance, 0.16), head), _gray(head.light * 0.85 + 0.05 + lift))


def cyst(rng: np.random.Generator, c: Canvas, head: Head, paint: Paint) -> Defect:
    """A dark, smooth region with a faint bright margin."""
    radius = rng.uniform(0.07, 0.15)
    distance = blob(rng, c, _place(rng, head, 0.72), radius, 0.05)
    light = rng.uniform(0.06, 0.14) + 0.5 * gaussian(distance, 0.022) * rng.uniform(0.4, 1)
    return Defect(_inside(fill(distance - 0.02, 0.025), head), _gray(light))


def ring(rng: np.random.Generator, c: Canvas, head: Head, paint: Paint) -> Defect:
    """A bright ring around a dark core, surrounded by swelling."""
    radius = rng.uniform(0.08, 0.15)
    distance = blob(rng, c, _place(rng, head, 0.68), radius, 0.09)
    halo = head.light * 0.8 + 0.17
    core = 0.20 + 0.05 * noise(rng, len(c.x), 14)
    light = np.where(distance < 0, core, halo) + 0.5 * gaussian(distance, 0.03)
    return Defect(_inside(fill(distance - 0.07, 0.07), head), _gray(light))


DEFECTS = {"lesion": lesion, "edema": edema, "cyst": cyst, "ring": ring}
