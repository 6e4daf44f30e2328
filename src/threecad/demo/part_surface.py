"""The surface of a machined aluminium cover, and how it looks under a lamp.

The drawing (`blueprint`) is fixed, as that of a product is: distance to the nearest edge, height and colour of the
metal at every point. What differs between two good parts is the grain of their finish and the lamp. A defect changes
the surface, never the picture: the same lamp then shows it with the bright and dark sides that it really has.

Lengths are in units of 1/256 of the image's side, whatever its size in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

Array = np.ndarray

SIDE = 256  # units along the image
OVERSAMPLING = 2  # canvas pixels per image pixel, so that edges and fine scratches come out smooth

LENSES = ((-47.0, -39.0, 25.0), (-47.0, 37.0, 25.0), (24.0, -1.0, 25.0))  # centre and radius
APERTURES = ((20.0, -58.0, 10.0), (46.0, -60.0, 3.0), (22.0, 56.0, 12.0))  # flash, microphone, depth sensor
SCREWS = ((84.0, -76.0, 4.2), (84.0, 76.0, 4.2))
RING = 6.0  # width of the turned ring around a lens
COUNTERSINK = 5.0  # width of the cone around a screw hole
CHAMFER = 4.5  # width of the bevel along the outer edge

SILVER = np.array([0.565, 0.575, 0.60], np.float32)  # anodised, a little towards blue
AMBIENT, DIFFUSE, GLOSS = 0.42, 0.62, 0.22


@dataclass(frozen=True, slots=True)
class Surface:
    """What the light meets, on a canvas of (S, S) points."""

    u: Array  # (S, S) units to the right of the part's centre
    v: Array  # (S, S) units below it
    pitch: float  # units between two points
    inside: Array  # (S, S) units to the nearest edge of the metal; negative in holes and beside the part
    height: Array  # (S, S) units above the face
    albedo: Array  # (S, S, 3) share of light sent back, in [0, 1]


@dataclass(frozen=True, slots=True)
class Blueprint:
    """The faultless surface, and which finish it has where."""

    surface: Surface
    blasted: Array  # (S, S) bool: raised deck around two lenses
    milled: Array  # (S, S) bool: floor of the pocket
    turned: Array  # (S, S) bool: rings around the lenses
    radius: Array  # (S, S) units to the nearest lens's centre
    angle: Array  # (S, S) radians around it


@dataclass(frozen=True, slots=True)
class Lamp:
    """Direction towards the light, as a unit vector in the part's own frame."""

    u: float
    v: float
    up: float

    @classmethod
    def at(cls, azimuth: float, elevation: float) -> Lamp:
        """The lamp at these angles, in radians; azimuth from the part's right, clockwise as seen."""
        across = math.cos(elevation)
        return cls(across * math.cos(azimuth), across * math.sin(azimuth), math.sin(elevation))


def _disc(u: Array, v: Array, x: float, y: float, radius: float) -> Array:
    """Depth inside a disc; negative outside."""
    return radius - np.hypot(u - x, v - y)


def _plate(u: Array, v: Array, x: float, y: float, half_width: float, half_height: float, corner: float) -> Array:
    """Depth inside a rectangle with round corners; negative outside."""
    across, down = np.abs(u - x) - half_width + corner, np.abs(v - y) - half_height + corner
    return corner - np.hypot(np.maximum(across, 0), np.maximum(down, 0)) - np.minimum(np.maximum(across, down), 0)


@lru_cache(maxsize=2)
def blueprint(size: int) -> Blueprint:
    """The drawing of the cover for images of `size` × `size` pixels. Shared between parts: not to be written to."""
    points = size * OVERSAMPLING
    pitch = SIDE / points
    axis = ((np.arange(points) + 0.5) * pitch - SIDE / 2).astype(np.float32)
    u, v = np.meshgrid(axis, axis)

    outline = _plate(u, v, 0, 0, 104, 96, 26)
    deck = _plate(u, v, -47, -1, 38, 79, 38)
    pocket = _plate(u, v, 75, 0, 17, 50, 9)
    slot = _plate(u, v, 75, 0, 5.5, 30, 5.5)
    lenses = [_disc(u, v, *lens) for lens in LENSES]
    screws = [_disc(u, v, *screw) for screw in SCREWS]
    apertures = [_disc(u, v, *aperture) for aperture in APERTURES]
    inside = np.minimum.reduce([outline, *(-opening for opening in (slot, *lenses, *screws, *apertures))])

    height = -0.75 * np.clip(CHAMFER - outline, 0, CHAMFER)
    height += 0.9 * np.clip(deck + 3, 0, 3) - 0.8 * np.clip(pocket, 0, 2.5)
    for lens in lenses:
        height += 0.45 * np.clip(lens + RING + 1.5, 0, 1.5) - 0.6 * np.clip(lens + 2.5, 0, 2.5)
    for opening in (slot, *apertures):
        height -= 0.6 * np.clip(opening + 1.5, 0, 1.5)
    for screw in screws:
        height -= 0.8 * np.clip(screw + COUNTERSINK, 0, COUNTERSINK)
    height = ndimage.gaussian_filter(height, 0.4 / pitch)

    turned = np.maximum.reduce(lenses) > -RING
    milled = pocket > 2.5
    blasted = (deck > 0) & ~turned
    tone = 1 - 0.10 * blasted - 0.14 * milled + 0.10 * turned + 0.10 * (outline < CHAMFER)
    for screw in screws:
        tone += 0.12 * (screw > -COUNTERSINK)
    tone = ndimage.gaussian_filter(tone.astype(np.float32), 0.3 / pitch)

    nearest = np.argmax(lenses, axis=0)
    x, y = (np.array([lens[i] for lens in LENSES], np.float32)[nearest] for i in (0, 1))
    surface = Surface(u, v, pitch, inside, height, tone[..., None] * SILVER)
    return Blueprint(surface, blasted, milled, turned, np.hypot(u - x, v - y), np.arctan2(v - y, u - x))


def _white(points: int, rng: np.random.Generator) -> Array:
    return rng.standard_normal((points, points), np.float32)


def _streaks(noise: Array, length: int) -> Array:
    return ndimage.uniform_filter1d(ndimage.uniform_filter1d(noise, length, mode="wrap"), length, mode="wrap")


def _standardised(noise: Array) -> Array:
    return (noise - noise.mean()) / noise.std()


def grain(plan: Blueprint, lamp: Lamp, rng: np.random.Generator) -> Array:
    """(S, S) factor about 1 on the light: the texture of brushed face, blasted deck, milled floor and turned rings."""
    pitch, points = plan.surface.pitch, len(plan.radius)
    white = _white(points, rng)
    long, short = (_standardised(_streaks(white, max(3, round(length / pitch)))) for length in (70, 9))
    brushed = 0.020 * long + 0.012 * short
    # The brush swings on an arm: its lines bend a little, by another amount on every part.
    bend = rng.uniform(-3, 3) / pitch * np.linspace(-1, 1, points) ** 2
    rows = (np.arange(points)[:, None] + np.rint(bend).astype(int)) % points
    brushed = np.take_along_axis(brushed, rows, axis=0)

    grit = 0.030 * _standardised(ndimage.gaussian_filter(_white(points, rng), 0.45 / pitch, truncate=3))
    # The end mill leaves arcs at its feed; the lathe leaves circles that light up in two opposite sectors.
    arcs = np.hypot(plan.surface.u - 75, plan.surface.v - 190 + rng.uniform(-2, 2))[plan.milled]
    feed = 0.045 * np.sin(arcs * (2 * np.pi / 3.6) + rng.uniform(0, 2 * np.pi)).astype(np.float32)
    circles = 0.05 * ndimage.gaussian_filter1d(rng.standard_normal(4 * SIDE), 1.2).astype(np.float32)
    sectors = 0.16 * np.cos(2 * (plan.angle[plan.turned] - math.atan2(lamp.v, lamp.u)))

    factor = 1 + brushed
    factor[plan.blasted] = 1 + grit[plan.blasted]
    factor[plan.milled] = 1 + feed + 0.4 * grit[plan.milled]
    factor[plan.turned] = 1 + sectors + circles[(plan.radius[plan.turned] * 4).astype(int)]
    return factor


def shade(surface: Surface, grain: Array, lamp: Lamp) -> tuple[Array, Array]:
    """The lit metal as (S, S, 3) in about [0, 1], and its coverage (S, S) in [0, 1]."""
    slope_v, slope_u = np.gradient(surface.height, surface.pitch)
    steepness = np.sqrt(1 + slope_u**2 + slope_v**2)
    facing = np.maximum((lamp.up - lamp.u * slope_u - lamp.v * slope_v) / steepness, 0)
    # The viewer is straight above: the mirror direction lies half-way between the lamp and the vertical.
    halfway = math.sqrt(2 + 2 * lamp.up)
    mirror = np.maximum((lamp.up + 1 - lamp.u * slope_u - lamp.v * slope_v) / (steepness * halfway), 0)
    for _ in range(4):  # to the 16th power: the lobe of a fine matt finish
        mirror = mirror * mirror
    light = (AMBIENT + DIFFUSE * facing + GLOSS * mirror) * grain
    return surface.albedo * light[..., None], np.clip(surface.inside / surface.pitch + 0.5, 0, 1)
