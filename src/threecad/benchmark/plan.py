"""What a benchmark runs: a TOML file, read and checked before anything starts.

data = "../parts"                      # data root, relative to the plan
methods = ["padim", "cfrg"]
categories = ["magnetic_tile"]         # all of them without this line
seeds = [0]
backbone = "embedded"                  # for the methods that look through one

[settings.training]                    # for every method
preset = "quick"

[override.cfrg.method]                 # for one of them
calibrated = false
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from threecad.data.readers import list_categories
from threecad.errors import DataError, SettingsError, did_you_mean
from threecad.methods import METHODS
from threecad.presets import resolve_settings
from threecad.settings import BackboneConfig, Frozen, merge, read_toml

Tables = dict[str, dict[str, Any]]


class Job(Frozen):
    """One fit and its evaluation."""

    method: str
    categories: tuple[str, ...]  # one, or all for a method of scope "dataset"
    seed: int
    settings: Tables

    @property
    def name(self) -> str:
        """Folder and row of the job: `cfrg/magnetic_tile/0`; a method of scope "dataset" has `all` in the middle."""
        middle = self.categories[0] if METHODS[self.method].scope == "category" else "all"
        return f"{self.method}/{middle}/{self.seed}"


class Plan(Frozen):
    """A grid of jobs."""

    data: Path
    """Data root, relative to the plan's file."""

    methods: tuple[str, ...] = Field(min_length=1)
    """Keys of the registry."""

    categories: tuple[str, ...] = ()
    """Names of categories; all at the data root without any."""

    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds; tables show mean and spread over several."""

    backbone: str | None = None
    """Backbone of every method that looks through one; their own without this."""

    settings: Tables = Field(default_factory=dict)
    """Settings tables of every method."""

    override: dict[str, Tables] = Field(default_factory=dict)
    """Settings tables of one method, by its name."""

    def jobs(self) -> Iterator[Job]:
        """Every job, cheapest question first: all methods on a category before the next category."""
        for seed in self.seeds:
            for method in self.methods:
                if METHODS[method].scope == "dataset":
                    yield Job(method=method, categories=self.categories, seed=seed, settings=self._tables(method, seed))
            for category in self.categories:
                for method in self.methods:
                    if METHODS[method].scope == "category":
                        yield Job(method=method, categories=(category,), seed=seed, settings=self._tables(method, seed))

    def _tables(self, method: str, seed: int) -> Tables:
        looks = self.backbone is not None and issubclass(METHODS[method].Config, BackboneConfig)
        backbone: Tables = {"method": {"backbone": self.backbone}} if looks else {}
        return merge(backbone, self.settings, self.override.get(method, {}), {"training": {"seed": seed}})


def read_plan(file: Path) -> Plan:
    """The plan in a TOML file, with every name in it known and every setting valid.

    Raises:
        SettingsError: an unknown key, method, category or setting, with the nearest name; a value that does not fit.
        DataError: no data at the plan's data root.
    """
    content = read_toml(file)
    for key in content:
        if key not in Plan.model_fields:
            raise SettingsError(f"{file}: unknown key '{key}'{did_you_mean(key, Plan.model_fields)}")
    try:
        plan = Plan(**content)
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(f"{file}: '{'.'.join(map(str, first['loc']))}': {first['msg']}") from None
    for method in (*plan.methods, *plan.override):
        METHODS.paper(method)
    root = (file.parent / plan.data).resolve()
    present = list_categories(root)
    for name in plan.categories:
        if name not in present:
            raise DataError(f"{file}: no category '{name}' in {root}{did_you_mean(name, present)}")
    plan = plan.model_copy(update={"data": root, "categories": plan.categories or tuple(present)})
    for job in plan.jobs():
        resolve_settings(job.method, job.settings)
    return plan
