"""Defects of a machined cover, each as a change of its surface.

A defect takes the surface, how large it is to be (`extent`, 0 the smallest of its kind to 1 the largest) and a random
generator, and gives the surface with the defect. Lengths are in units of 1/256 of the image's side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import ndimage

from threecad.demo.part_surface import Array, Surface

Defect = Callable[[Surface, float, np.random.Generator], Surface]


def _between(smallest: float, largest: float, extent: float) -> float:
    """A size at `extent` of the range, in even ratios."""
    return smallest * (largest / smallest) ** extent


def _spot(surface: Surface, eligible: Array, rng: np.random.Generator) -> tuple[float, float]:
    """A random eligible point (S, S) of the surface, as u and v."""
    chosen = rng.choice(np.flatnonzero(eligible))
    return float(surface.u.flat[chosen]), float(surface.v.flat[chosen])


def _away(surface: Surface, spot: tuple[float, float]) -> tuple[Array, Array]:
    """u and v from the spot."""
    return surface.u - np.float32(spot[0]), surface.v - np.float32(spot[1])


def _tinted(albedo: Array, amount: Array, colour: tuple[float, float, float]) -> Array:
    """The albedo changed by `amount` (S, S) times a change per channel."""
    return albedo * (1 + amount[..., None] * np.array(colour, np.float32))


def scratch(surface: Surface, extent: float, rng: np.random.Generator) -> Surface:
    """A thin curved groove with thrown-up sides, burnished at its bottom."""
    length = _between(7, 120, extent)
    u, v = _spot(surface, surface.inside > 4, rng)
    heading, turn = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.35)
    steps = max(8, round(4 * length / surface.pitch))
    along = np.linspace(-0.5, 0.5, steps)
    directions = heading + turn * along
    u_line = u + np.cumsum(np.cos(directions)) * length / steps
    v_line = v + np.cumsum(np.sin(directions)) * length / steps
    # The tool touches down and lifts off, and its pressure wavers on the way.
    pressure = np.clip(4 * (0.5 - np.abs(along)) * max(1, length / 24), 0, 1) * (1 + 0.25 * np.sin(9 * along + heading))
    rows, columns = (
        (line - axis[0]) / surface.pitch for line, axis in ((v_line, surface.v[:, 0]), (u_line, surface.u[0]))
    )
    edge = len(surface.u) - 1
    seen = (rows > 0) & (rows < edge) & (columns > 0) & (columns < edge)
    line = np.zeros_like(surface.height)
    np.add.at(
        line, (np.rint(rows[seen]).astype(int), np.rint(columns[seen]).astype(int)), pressure[seen].astype(np.float32)
    )
    width = rng.uniform(0.65, 1.0)
    groove = ndimage.gaussian_filter(line, width / surface.pitch)
    groove /= max(float(groove.max()), 1e-6)
    wall = ndimage.gaussian_filter(line, 2 * width / surface.pitch)
    wall /= max(float(wall.max()), 1e-6)
    burnish = rng.uniform(0.16, 0.30)
    return replace(
        surface,
        height=surface.height - rng.uniform(0.55, 0.9) * (groove - 0.5 * wall),
        albedo=_tinted(surface.albedo, groove, (burnish, burnish, burnish)),
    )


def dent(surface: Surface, extent: float, rng: np.random.Generator) -> Surface:
    """A smooth hollow, bright on the side that faces the lamp."""
    radius = _between(4.5, 20, extent)
    u, v = _away(surface, _spot(surface, surface.inside > min(0.6 * radius, 9), rng))
    tilt, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.35)
    along, across = u * math.cos(tilt) + v * math.sin(tilt), v * math.cos(tilt) - u * math.sin(tilt)
    hollow = np.exp(-2 * ((along / (radius * stretch)) ** 2 + (across / radius) ** 2))
    return replace(surface, height=surface.height - rng.uniform(0.34, 0.48) * radius * hollow)


def pinhole(surface: Surface, extent: float, rng: np.random.Generator) -> Surface:
    """A pore 3 to 6 units wide, dark at its bottom."""
    radius = _between(1.5, 3.0, extent)
    u, v = _away(surface, _spot(surface, surface.inside > 3, rng))
    distance = np.hypot(u, v * rng.uniform(0.85, 1.15))
    pit = np.clip((radius - distance) / 0.8 + 0.5, 0, 1)
    dark = -rng.uniform(0.55, 0.8)
    return replace(surface, height=surface.height - 0.5 * pit, albedo=_tinted(surface.albedo, pit, (dark, dark, dark)))


def stain(surface: Surface, extent: float, rng: np.random.Generator) -> Surface:
    """An irregular discolouration with a soft border that is a little darker, as a dried drop leaves it."""
    radius = _between(6, 36, extent)
    u, v = _away(surface, _spot(surface, surface.inside > 4, rng))
    angle = np.arctan2(v, u)
    waves = sum(rng.normal(0, 0.22 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 7))
    depth = radius * (1 + waves) - np.hypot(u, v)
    soft = min(0.3 * radius, 4.0)
    amount = np.clip(depth / soft, 0, 1)
    amount = amount * amount * (3 - 2 * amount)
    rim = np.exp(-(((depth - 1.2 * soft) / (0.8 * soft)) ** 2))
    strength = rng.uniform(0.11, 0.17)
    colours = ((-0.75, -1.0, -1.35), (-1.25, -1.0, -0.7), (-1.0, -1.05, -1.0))  # rust or oil, cleaning agent, water
    colour = colours[rng.integers(len(colours))]
    return replace(surface, albedo=_tinted(surface.albedo, strength * amount * (1 + 0.35 * rim), colour))


def burr(surface: Surface, extent: float, rng: np.random.Generator) -> Surface:
    """Torn metal that stands out over an edge: jagged, raised and bright."""
    reach, width = _between(2.6, 7, extent), _between(5, 20, extent)
    u, v = _away(surface, _spot(surface, np.abs(surface.inside) < surface.pitch / 2, rng))
    slope_v, slope_u = np.gradient(surface.inside, surface.pitch)
    at = np.unravel_index(np.argmin(np.hypot(u, v)), u.shape)
    steepness = max(float(np.hypot(slope_u[at], slope_v[at])), 1e-6)
    along, across = ((u * a + v * b) / steepness for a, b in ((slope_v[at], -slope_u[at]), (slope_u[at], slope_v[at])))
    nearness = np.clip(1 - np.hypot(along, 1.6 * across) / width, 0, 1)
    # Teeth run across the edge: the same noise for all points along a direction out of the edge.
    knots = np.arange(-2 * width, 2 * width + 1, 1.3)
    teeth = np.interp(along, knots, rng.uniform(0.35, 1.0, len(knots))).astype(np.float32)
    torn = reach * teeth * np.sqrt(nearness)
    lip = np.exp(-(((surface.inside + 0.5 * torn) / (0.6 + 0.5 * reach)) ** 2)) * np.minimum(2 * nearness, 1)
    gleam = rng.uniform(0.15, 0.35)
    return replace(
        surface,
        inside=np.where(nearness > 0, surface.inside + torn, surface.inside),
        height=surface.height + 1.3 * lip * teeth,
        albedo=_tinted(surface.albedo, lip * teeth, (gleam, gleam, gleam)),
    )


DEFECTS: dict[str, Defect] = {"scratch": scratch, "dent": dent, "pinhole": pinhole, "stain": stain, "burr": burr}
