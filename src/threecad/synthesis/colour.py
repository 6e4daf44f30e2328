"""Colour spaces in which an image's lightness is one axis: change it, keep hue and chroma, come back to RGB.

All functions take and return RGB (B, 3, H, W) in [0, 1], unclamped. Lightness is (B, 1, H, W) in [0, 1]. Most spaces
need no detour through their coordinates: with the other two axes fixed, RGB is an affine function of lightness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-6

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.950456, 1.0, 1.088754)  # D65
_CIE_EDGE = 6 / 29  # where CIE's cube root gives way to a straight line


@dataclass(frozen=True)
class LightnessAxis:
    """How to read an image's lightness in one colour space, and how to give the image another."""

    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor, Tensor], Tensor]  # RGB, new lightness -> RGB


def luma(rgb: Tensor) -> Tensor:
    """Y of YCrCb and YUV (B, 1, H, W): the grey of an image."""
    red, green, blue = rgb.split(1, dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _with_luma(rgb: Tensor, lightness: Tensor) -> Tensor:
    """YCrCb and YUV: both chroma axes are differences to Y, so every channel moves with Y."""
    return rgb + (lightness - luma(rgb))


def _value(rgb: Tensor) -> Tensor:
    return rgb.amax(dim=1, keepdim=True)


def _with_value(rgb: Tensor, lightness: Tensor) -> Tensor:
    """HSV: hue and saturation are ratios to V; black has saturation 0 and becomes grey."""
    value = _value(rgb)
    return torch.where(value > 0, rgb * (lightness / value.clamp(min=TINY)), lightness)


def _hls_lightness(rgb: Tensor) -> Tensor:
    return (rgb.amax(dim=1, keepdim=True) + rgb.amin(dim=1, keepdim=True)) / 2


def _with_hls_lightness(rgb: Tensor, lightness: Tensor) -> Tensor:
    """HLS: RGB = L + S (1 - |2L - 1|) · a vector of the hue."""
    before = _hls_lightness(rgb)
    room = (1 - (2 * before - 1).abs()).clamp(min=TINY)
    return lightness + (rgb - before) * (1 - (2 * lightness - 1).abs()) / room


def _cie_lightness(rgb: Tensor) -> Tensor:
    """L* / 100 = 1.16 f(Y) - 0.16, shared by Lab and Luv."""
    return 1.16 * _cie_root(_to_xyz(rgb)[:, 1:2]) - 0.16


def _with_lab_lightness(rgb: Tensor, lightness: Tensor) -> Tensor:
    """Lab: a and b are differences between the roots of X, Y and Z, so all three roots move with L."""
    roots = _cie_root(_to_xyz(rgb) / _column(_WHITE, rgb))
    moved = roots + ((lightness + 0.16) / 1.16 - roots[:, 1:2])
    return _from_xyz(_cie_cube(moved) * _column(_WHITE, rgb))


def _with_luv_lightness(rgb: Tensor, lightness: Tensor) -> Tensor:
    """Luv: u = 13 L (u' - u'_white), likewise v, so the distance of (u', v') from white shrinks as L grows."""
    x, y, z = _to_xyz(rgb).split(1, dim=1)
    total = (x + 15 * y + 3 * z).clamp(min=TINY)
    before = 1.16 * _cie_root(y) - 0.16
    white_total = _WHITE[0] + 15 + 3 * _WHITE[2]
    white_u, white_v = 4 * _WHITE[0] / white_total, 9 / white_total
    ratio = before / lightness.clamp(min=TINY)
    u = white_u + ratio * (4 * x / total - white_u)
    v = (white_v + ratio * (9 * y / total - white_v)).clamp(min=TINY)
    y = _cie_cube((lightness + 0.16) / 1.16)
    return _from_xyz(torch.cat([y * 9 * u / (4 * v), y, y * (12 - 3 * u - 20 * v) / (4 * v)], dim=1))


AXES: dict[str, LightnessAxis] = {
    "YCrCb": LightnessAxis(luma, _with_luma),
    "HSV": LightnessAxis(_value, _with_value),
    "HLS": LightnessAxis(_hls_lightness, _with_hls_lightness),
    "Lab": LightnessAxis(_cie_lightness, _with_lab_lightness),
    "Luv": LightnessAxis(_cie_lightness, _with_luv_lightness),
    "YUV": LightnessAxis(luma, _with_luma),
}


def rgb_to_hsv(rgb: Tensor) -> Tensor:
    """Hue in turns [0, 1), saturation and value in [0, 1], as (B, 3, H, W)."""
    red, green, blue = rgb.split(1, dim=1)
    value = _value(rgb)
    chroma = value - rgb.amin(dim=1, keepdim=True)
    some = chroma.clamp(min=TINY)
    hue = torch.where(
        value == red,
        (green - blue) / some % 6,
        torch.where(value == green, (blue - red) / some + 2, (red - green) / some + 4),
    )
    return torch.cat([hue / 6, chroma / value.clamp(min=TINY), value], dim=1)


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    """The inverse of `rgb_to_hsv`; hues are taken modulo 1."""
    hue, saturation, value = hsv.split(1, dim=1)
    place = (_column((5, 3, 1), hsv) + 6 * hue) % 6
    return value - value * saturation * torch.minimum(place, 4 - place).clamp(0, 1)


def _to_xyz(rgb: Tensor) -> Tensor:
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    return _mix(torch.tensor(_RGB_TO_XYZ, dtype=torch.float64), linear)


def _from_xyz(xyz: Tensor) -> Tensor:
    linear = _mix(torch.linalg.inv(torch.tensor(_RGB_TO_XYZ, dtype=torch.float64)), xyz)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=TINY) ** (1 / 2.4) - 0.055, 12.92 * linear)


def _mix(matrix: Tensor, channels: Tensor) -> Tensor:
    return torch.einsum("ij,bjhw->bihw", matrix.to(channels), channels)


def _cie_root(t: Tensor) -> Tensor:
    return torch.where(t > _CIE_EDGE**3, t.clamp(min=TINY) ** (1 / 3), t / (3 * _CIE_EDGE**2) + 4 / 29)


def _cie_cube(t: Tensor) -> Tensor:
    return torch.where(t > _CIE_EDGE, t**3, 3 * _CIE_EDGE**2 * (t - 4 / 29))


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
