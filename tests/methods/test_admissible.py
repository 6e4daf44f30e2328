"""Nonsense in a method's settings is refused by name. Parametrised over the registry: new methods are held to it."""

from __future__ import annotations

import math
import typing
from typing import Any

import pytest
import torch

from threecad.detector import Detector
from threecad.errors import SettingsError
from threecad.methods import METHODS
from threecad.settings import MethodConfig, validate

NONSENSE = (-1, 0, math.nan, math.inf)


def numeric_fields() -> list[tuple[str, str]]:
    """(method, setting) of every setting that is a number or a tuple of numbers."""
    return [(name, key) for name in METHODS for key in METHODS[name].Config.model_fields if _kind(name, key)]


def _kind(name: str, key: str) -> type | None:
    """int, float or tuple, if that is what the setting's default is; its flags and names are none of them."""
    default = METHODS[name].Config.model_fields[key].default
    return next((kind for kind in (int, float, tuple) if type(default) is kind), None)


def build(name: str, **changes: Any) -> Detector:
    config = METHODS[name].Config
    torch.manual_seed(0)
    settings = config.tiny().model_dump(exclude_defaults=True) | changes
    return METHODS[name](typing.cast("MethodConfig", validate({"method": settings}, config).method)).eval()


@pytest.mark.parametrize("value", NONSENSE)
@pytest.mark.parametrize(("name", "key"), numeric_fields())
def test_a_number_without_meaning_is_refused_or_works(name: str, key: str, value: float) -> None:
    """Nothing negative and nothing that is no number has a meaning; a zero may have one, and then a part is judged."""
    config = METHODS[name].Config
    default = getattr(config.tiny(), key)
    given = (value, *default[1:]) if isinstance(default, tuple) else value
    if value != 0:
        with pytest.raises(SettingsError, match=key):
            build(name, **{key: given})
        return
    try:
        detector = build(name, **{key: given})
    except SettingsError as error:
        assert key in str(error)
        return
    with torch.no_grad():
        prediction = detector(torch.rand(2, 3, *detector.config.image_size))
    assert prediction.anomaly_map.isfinite().all() and prediction.score.isfinite().all()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("uniad", {"heads": 7}, r"method\.width that is a multiple of method\.heads, found width 32 and heads 7"),
        ("uniad", {"width": 33, "heads": 3}, r"expected an even method\.width"),
        ("uniad", {"window": 4}, r"expected an odd method\.window, found 4; take 5"),
        ("destseg", {"dilations": ()}, "dilations"),
        ("draem", {"discriminator_widths": (8, 8, 16)}, "discriminator_widths"),
        ("cfrg", {"student": "vgg11", "student_drop_path": 0.1}, r"student_drop_path.* no residual blocks"),
    ],
)
def test_numbers_that_do_not_fit_each_other_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build(name, **changes)


@pytest.mark.parametrize("name", [name for name in METHODS if "sigma_px" in METHODS[name].Config.model_fields])
def test_a_filter_wider_than_the_image_is_refused(name: str) -> None:
    side = min(METHODS[name].Config.tiny().image_size)
    with pytest.raises(SettingsError, match=rf"'method\.sigma_px': expected at most {side / 4:g}"):
        build(name, sigma_px=side / 3)
    with torch.no_grad():
        assert build(name, sigma_px=side / 5)(torch.rand(1, 3, side, side)).anomaly_map.isfinite().all()


def test_the_narrowest_networks_still_work() -> None:
    for name, changes in (("fastflow", {"hidden_ratio": 1e-6}), ("realnet", {"width_ratio": 1e-6})):
        detector = build(name, **changes)
        with torch.no_grad():
            assert detector(torch.rand(1, 3, *detector.config.image_size)).score.isfinite().all()
