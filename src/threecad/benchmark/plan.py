"""What a benchmark runs: a TOML file, read and checked before anything starts.

data = "../parts"                      # data root, relative to the plan; or [parts], which are drawn
data_set = "our parts"                 # its name in tables
methods = ["padim", "cfrg"]
categories = ["magnetic_tile"]         # all of them without this line
seeds = [0, 1, 2]
backbone = "embedded"                  # for the methods that look through one
selection = "last"                     # or "best_on_test": the epoch is chosen on the test images
budget = { steps = 500 }               # or { minutes = 5 }: the same for every method

[settings.training]                    # for every method
preset = "quick"

[override.cfrg.method]                 # for one of them
calibrated = false

[variants.WRC.method]                  # every method is also run in every variant: ablations
recovery = false
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from threecad.data.readers import list_categories
from threecad.errors import DataError, SettingsError, did_you_mean
from threecad.methods import METHODS
from threecad.settings import Frozen, MethodConfig
from threecad.settings_layers import merge, read_toml, starting_at

Tables = dict[str, dict[str, Any]]


class Parts(Frozen):
    """Procedural parts that a plan draws for itself, as `threecad demo` does."""

    train: int = Field(default=160, ge=2)
    """Good parts to learn from."""

    good: int = Field(default=40, ge=1)
    """Good parts to test on."""

    defects: int = Field(default=10, ge=1)
    """Defective parts of each kind."""

    size: int = Field(default=256, ge=64)
    """Height and width in pixels."""


class Budget(Frozen):
    """What every method may spend on one fit."""

    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps."""

    minutes: float | None = Field(default=None, gt=0)
    """Minutes of training, measured on the first steps of each fit and then turned into steps."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("expected either steps or minutes")
        return self


class Job(Frozen):
    """One fit and its evaluation."""

    method: str
    categories: tuple[str, ...]  # one, or all for a method of scope "dataset"
    seed: int
    variant: str
    selection: str
    settings: Tables
    key: dict[str, Any] = Field(default_factory=dict)  # of everything that makes its numbers, see keys.py

    @property
    def line(self) -> str:
        """What all its seeds and categories have in common: `cfrg`, `cfrg+WRC` or `cfrg+best_on_test`."""
        return "+".join(filter(None, (self.method, self.variant, self.selection if self.selection != "last" else "")))

    @property
    def name(self) -> str:
        """Folder and row of the job: `cfrg/magnetic_tile/0`; a method of scope "dataset" has `all` in the middle."""
        middle = self.categories[0] if METHODS[self.method].scope == "category" else "all"
        return f"{self.line}/{middle}/{self.seed}"


class Plan(Frozen):
    """A grid of jobs."""

    data: Path | None = None
    """Data root, relative to the plan's file."""

    parts: Parts | None = None
    """Parts to draw where there is no data."""

    data_set: str = ""
    """Name of the data in tables; that of its folder without one."""

    methods: tuple[str, ...] = Field(min_length=1)
    """Keys of the registry."""

    categories: tuple[str, ...] = ()
    """Names of categories; all at the data root without any."""

    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds; tables show mean and spread over several."""

    backbone: str | None = None
    """Backbone of every method that looks through one; their own without this."""

    selection: Literal["last", "best_on_test"] = "last"
    """Which state of a fit is scored: the last, or the best on the test images, as some papers do."""

    budget: Budget | None = None
    """What every method may spend; its own schedule without this."""

    settings: Tables = Field(default_factory=dict)
    """Settings tables of every method."""

    override: dict[str, Tables] = Field(default_factory=dict)
    """Settings tables of one method, by its name."""

    variants: dict[str, Tables] = Field(default_factory=dict)
    """Settings tables by the name of the variant; the paper's Table 6 compares them with the one called `full`."""

    @field_validator("variants")
    @classmethod
    def _plain_names(cls, variants: dict[str, Tables]) -> dict[str, Tables]:
        for name in variants:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"expected letters, digits, - and _ in the name of a variant, found '{name}'")
        return variants

    def jobs(self) -> Iterator[Job]:
        """Every job, cheapest question first: all methods on a category before the next category."""
        for seed in self.seeds:
            for method in self._of_scope("dataset"):
                yield from self._in_variants(method, self.categories, seed)
            for category in self.categories:
                for method in self._of_scope("category"):
                    yield from self._in_variants(method, (category,), seed)

    def _of_scope(self, scope: str) -> list[str]:
        return [method for method in self.methods if METHODS[method].scope == scope]

    def _in_variants(self, method: str, categories: tuple[str, ...], seed: int) -> Iterator[Job]:
        looks = self.backbone is not None and "backbone" in METHODS[method].Config.model_fields
        backbone: Tables = {"method": {"backbone": self.backbone}} if looks else {}
        steps: Tables = {"training": {"steps": self.budget.steps}} if self.budget and self.budget.steps else {}
        own = self.override.get(method, {})
        for variant, tables in (self.variants or {"": {}}).items():
            settings = merge(backbone, self.settings, own, steps, tables, {"training": {"seed": seed}})
            yield Job(
                method=method,
                categories=categories,
                seed=seed,
                variant=variant,
                selection=self.selection,
                settings=settings,
            )


def packaged_plans() -> list[str]:
    """Names of the plans that come with the package: `demo`, `paper-3cad`, …"""
    return sorted(
        file.name.removesuffix(".toml")
        for file in files("threecad.benchmark").joinpath("plans").iterdir()
        if file.name.endswith(".toml")
    )


def read_plan(plan: Path | str, *, settings: Mapping[str, Mapping[str, Any]] | None = None, **changes: Any) -> Plan:
    """The plan in a TOML file or of a packaged name, with every name in it known and every setting valid.

    Args:
        settings: tables over those of every method.
        changes: keys of the plan that are given instead, such as `data`; None and an empty tuple change nothing.

    Raises:
        SettingsError: an unknown key, method, category or setting, with the nearest name; a value that does not fit.
        DataError: no data at the plan's data root.
    """
    file = _file_of(plan)
    content = read_toml(file)
    for key in content:
        if key not in Plan.model_fields:
            raise SettingsError(f"{file}: unknown key '{key}'{did_you_mean(key, Plan.model_fields)}")
    given = {key: value for key, value in changes.items() if value not in (None, (), [])}
    if "data" in given:
        given["data"] = Path(given["data"]).resolve()
        content.pop("parts", None)
    content |= given
    try:
        asked = Plan(**content)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{file}: '{'.'.join(map(str, first['loc']))}': {message}") from None
    for method in (*asked.methods, *asked.override):
        if method not in METHODS:
            raise SettingsError(f"{file}: unknown method '{method}'{did_you_mean(method, METHODS)}")
    folder = file.resolve().parent
    asked = asked.model_copy(
        update={
            "settings": merge(starting_at(folder, asked.settings, MethodConfig), settings or {}),
            "override": {name: starting_at(folder, tables, MethodConfig) for name, tables in asked.override.items()},
            "variants": {name: starting_at(folder, tables, MethodConfig) for name, tables in asked.variants.items()},
        }
    )
    asked = asked.model_copy(update=_data_of(file, asked))
    _refuse_invalid_settings(file, asked)
    return asked


def _file_of(plan: Path | str) -> Path:
    """The file of a plan, or of a packaged one by its name."""
    names = packaged_plans()
    if str(plan) in names and not Path(plan).exists():
        return Path(str(files("threecad.benchmark").joinpath("plans", f"{plan}.toml")))
    if not Path(plan).exists():
        raise SettingsError(
            f"expected the file of a plan or the name of a packaged one, found '{plan}'{did_you_mean(str(plan), names)}"
        )
    return Path(plan)


def _data_of(file: Path, plan: Plan) -> dict[str, Any]:
    """Data root, its name, and the categories that are run."""
    if plan.parts is not None and plan.data is None:
        from threecad.demo.parts import CATEGORY

        root, present = None, [CATEGORY]
    elif plan.data is not None and plan.parts is None:
        root = (file.parent / plan.data).resolve()
        try:
            present = list_categories(root)
        except DataError as error:
            raise DataError(f"{file}: {error}") from None
    else:
        raise SettingsError(f'{file}: expected a data root, as data = "ROOT" in the plan or --data ROOT')
    for name in plan.categories:
        if name not in present:
            raise DataError(f"{file}: no category '{name}' in {root or 'the parts'}{did_you_mean(name, present)}")
    name = plan.data_set or (root.name if root else "drawn parts")
    return {"data": root, "data_set": name, "categories": plan.categories or tuple(present)}


def _refuse_invalid_settings(file: Path, plan: Plan) -> None:
    from threecad.presets import resolve_settings

    one_of_each = {job.line: job for job in plan.jobs()}
    for job in one_of_each.values():
        try:
            resolve_settings(job.method, job.settings)
        except SettingsError as error:
            raise SettingsError(f"{file}: {job.line}: {error}") from None
