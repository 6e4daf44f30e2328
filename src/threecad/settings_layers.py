"""Layers of settings, and what they resolve to: files, `--set` pairs, presets; the later one wins.

A path in a file is relative to that file; any other path is relative to the current folder.
"""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from threecad.errors import SettingsError, did_you_mean
from threecad.settings import TABLES, MethodConfig, Settings, Table


def read_settings(path: Path, config: type[MethodConfig]) -> dict[str, Any]:
    """The settings tables in a TOML file for a method with this `config`; paths start at the file's folder.

    Raises:
        SettingsError: the file is missing or is not TOML; names file and line.
    """
    return starting_at(path.parent, read_toml(path), config)


def starting_at(folder: Path, tables: Mapping[str, Any], config: type[MethodConfig]) -> dict[str, Any]:
    """Settings tables in which every relative path starts at `folder`; names and values are not checked here."""
    models = tables_of(config)

    def placed(table: str, key: str, value: Any) -> Any:
        model = models.get(table)
        field = model.model_fields.get(key) if model is not None else None
        if field is None or not isinstance(value, str) or not _is_path(value, field.annotation):
            return value
        return str(folder / Path(value).expanduser())

    return {
        table: {key: placed(table, key, value) for key, value in values.items()}
        if isinstance(values, Mapping)
        else values
        for table, values in tables.items()
    }


def _is_path(value: str, annotation: Any) -> bool:
    """Whether a setting of this type takes `value` for a path: it may be one, and `value` is none of its words."""
    kinds = typing.get_args(annotation)
    words = [word for kind in kinds for word in typing.get_args(kind)]
    return Path in (annotation, *kinds) and value not in words


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, with or without a byte order mark.

    Raises:
        SettingsError: the file is missing or is not TOML; names file and line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SettingsError(f"expected a settings file at {path}, found none") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} is not a readable TOML file: {error}") from None


def parse_pairs(pairs: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Tables from `table.key=value` pairs; a value is TOML if it parses as such, else a string.

    Raises:
        SettingsError: a pair that has another form.
    """
    tables: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        table, dot, key = name.strip().partition(".")
        if not equals or not dot or not key:
            raise SettingsError(f"expected TABLE.KEY=VALUE, such as training.steps=500, found '{pair}'")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        tables.setdefault(table, {})[key] = value
    return tables


def merge(*layers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Tables in which a later layer's value wins."""
    merged: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for table, values in layer.items():
            if not isinstance(values, Mapping):
                raise SettingsError(f"expected a table [{table}], found the value {values!r}")
            merged.setdefault(table, {}).update(values)
    return merged


def tables_of(config: type[MethodConfig]) -> dict[str, type[Table]]:
    """The model of each settings table, for a method with this `config`."""
    return {**TABLES, "method": config}


def validate(tables: Mapping[str, Mapping[str, Any]], config: type[MethodConfig]) -> Settings:
    """Frozen settings for a method with this `config`.

    Raises:
        SettingsError: an unknown table or key (with the nearest known one), or a value that does not fit.
    """
    known = tables_of(config)
    for table in tables:
        if table not in known:
            raise SettingsError(f"unknown settings table [{table}]{did_you_mean(table, known)}")
    built: dict[str, Any] = {table: _build(table, model, tables.get(table, {})) for table, model in known.items()}
    return Settings(**built)


def _build(table: str, model: type[Table], values: Mapping[str, Any]) -> Table:
    for key in values:
        if key not in model.model_fields:
            raise SettingsError(f"unknown setting '{table}.{key}'{did_you_mean(key, model.model_fields)}")
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([table, *(str(part) for part in first["loc"][:1])])
        message = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"setting '{key}': {message}; found {first['input']!r}") from None
