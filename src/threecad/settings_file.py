"""Every setting of a method as a TOML file that a person can read, edit and give back with `--config`."""

from __future__ import annotations

import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic.fields import FieldInfo

from threecad.methods import METHODS
from threecad.presets import resolve_settings
from threecad.settings import Table, tables_of, validate

WIDTH = 100
"""Columns of the comments."""

_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def settings_file(method: str, preset: str = "paper") -> str:
    """TOML text that gives the settings of `method` under `preset`; unset ones are commented out.

    Raises:
        SettingsError: an unknown method or preset.
    """
    found = resolve_settings(method, {"training": {"preset": preset}}).as_tables()
    config = METHODS[method].Config
    defaults = validate({}, config).as_tables()
    lines = [
        *_comment(
            f"Every setting of {method} under the preset `{preset}`; what is commented out is unset. Edit it, and fit "
            f"with `threecad fit {method} --config FILE.toml`. Paths start at the file's folder. Every value is said "
            "here, so a --preset beside this file changes only the name: print the file of that preset instead."
        ),
    ]
    for table, model in tables_of(config).items():
        lines += ["", f"[{table}]", *_lines(model, found[table], defaults[table], preset)]
    return "\n".join(lines) + "\n"


def _lines(model: type[Table], found: dict[str, Any], defaults: dict[str, Any], preset: str) -> Iterator[str]:
    """The lines of one table: help, default and limits as comments above each setting."""
    for key, field in model.model_fields.items():
        default = f"default {_toml(defaults[key])}" if key in defaults else "unset by default"
        changed = [f"`{preset}` sets {_toml(found[key])}"] if found.get(key) != defaults.get(key) else []
        yield ""
        yield from _comment(field.description or "")
        yield from _comment("; ".join([default, *changed, *_limits(field)]))
        yield f"{key} = {_toml(found[key])}" if key in found else f"# {key} ="


def _limits(field: FieldInfo) -> Iterator[str]:
    """What a value may be, as far as the setting's type says it."""
    kinds = (field.annotation, *typing.get_args(field.annotation))
    words = [word for kind in kinds if typing.get_origin(kind) is Literal for word in typing.get_args(kind)]
    if words:
        yield "one of " + ", ".join(map(_toml, words)) + (", or a path" if _takes_a_path(field) else "")
    for limit in field.metadata:
        for name, phrase in _LIMITS.items():
            if (bound := getattr(limit, name, None)) is not None:
                yield f"{phrase} {bound}"


def _takes_a_path(field: FieldInfo) -> bool:
    return Path in typing.get_args(field.annotation)


def _toml(value: Any) -> str:
    """A value as TOML, on one line."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")


def _comment(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent="# ", subsequent_indent="# ")
