"""`verdict.toml`: how many good parts may be rejected or set aside. Changing it needs no fit."""

from __future__ import annotations

import tomllib
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from threecad.errors import RunError, SettingsError, did_you_mean
from threecad.verdicts.bounds import Budget, Rule

FORMAT = 1
"""Version of `verdict.toml`; a reader refuses a newer one."""

_HEAD = """\
# From scores to verdicts. Of good parts, at most `reject_at` may be rejected (NG), at most `review_at` rejected or set
# aside (REVIEW), and at most `region_at` may have any region of `least_area_px` pixels: each with `confidence`
# (rule = "bound"), or on average only (rule = "average"). Change these lines as you like.
"""
_LIMITS = """
# What follows is worked out from the lines above and the good parts' scores. It is written for readers: changing it
# changes nothing.
"""


class VerdictSettings(BaseModel):
    """Budgets of good parts, in shares of all."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    review_at: float = Field(default=0.05, gt=0.0, lt=1.0)
    """Share of good parts that may be set aside or rejected."""

    reject_at: float = Field(default=0.01, gt=0.0, lt=1.0)
    """Share of good parts that may be rejected."""

    region_at: float = Field(default=0.05, gt=0.0, lt=1.0)
    """Share of good parts that may have any region."""

    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    """With which the rule `bound` keeps each budget."""

    rule: Rule = "bound"
    """`bound`: the share stays below its budget with this confidence; `average`: it does so on average only."""

    least_area_px: int = Field(default=1, ge=1)
    """Smallest region that is reported, in pixels of the image."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.review_at < self.reject_at:
            raise ValueError(
                f"expected review_at to be at least reject_at ({self.reject_at}): what is rejected is unusual enough "
                "to be reviewed"
            )
        return self

    @classmethod
    def of(cls, values: dict[str, Any], where: str = "verdict") -> Self:
        """Validated settings.

        Raises:
            SettingsError: an unknown name (with the nearest known one), or a value that does not fit.
        """
        for name in values:
            if name not in cls.model_fields:
                raise SettingsError(f"unknown setting '{where}.{name}'{did_you_mean(name, cls.model_fields)}")
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "review_at"
            message = first["msg"].removeprefix("Value error, ")
            raise SettingsError(f"setting '{where}.{name}': {message}; found {values.get(name)!r}") from None

    def changed(self, **values: Any) -> Self:
        """With other values; None leaves one as it is.

        Raises:
            SettingsError: a value that does not fit.
        """
        asked = {name: value for name, value in values.items() if value is not None}
        return type(self).of({**self.model_dump(), **asked})

    @property
    def review(self) -> Budget:
        """Of parts that are set aside or rejected."""
        return Budget(self.review_at, self.confidence, self.rule)

    @property
    def reject(self) -> Budget:
        """Of parts that are rejected."""
        return Budget(self.reject_at, self.confidence, self.rule)

    @property
    def region(self) -> Budget:
        """Of parts with any region."""
        return Budget(self.region_at, self.confidence, self.rule)


def write_verdict(settings: VerdictSettings, stamp: str, limits: dict[str, Any]) -> str:
    """The text of a `verdict.toml`.

    Args:
        stamp: of the run's good parts, `GoodScores.stamp`.
        limits: thresholds and their promises by category, for readers only.
    """
    import tomli_w  # only where something is written

    asked = tomli_w.dumps({"format": FORMAT, **settings.model_dump(), "run": stamp})
    return _HEAD + asked + (_LIMITS + tomli_w.dumps({"limits": limits}) if limits else "")


def read_verdict(text: str, stamp: str, where: str = "verdict.toml") -> VerdictSettings:
    """The settings of a `verdict.toml`.

    Raises:
        SettingsError: not TOML, an unknown name, or a value that does not fit.
        RunError: the file of another run, or of a newer version.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{where} is not a readable TOML file: {error}") from None
    values.pop("limits", None)
    version, run = values.pop("format", FORMAT), values.pop("run", None)
    if version != FORMAT:
        raise RunError(f"{where} is of format {version!r}, this version of ThreeCAD reads {FORMAT}")
    if run is not None and run != stamp:
        raise RunError(f"{where} is of another run, {run}; this one is {stamp}. Remove it, or take this run's own")
    return VerdictSettings.of(values, where.removesuffix(".toml"))
