"""Which images belong to one part, and which parts to one lot; groups are never divided.

A part seen under four lamps gives four images and one verdict. Were some of its images learnt from and others kept
aside, the scores of the latter would say nothing about parts that were never seen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from threecad.errors import DataError, SettingsError


def group_of(path: str, pattern: re.Pattern[str], name: str) -> str | None:
    """The group that a path belongs to, None where the pattern is not found in it.

    It is what the pattern's group called `name` matched, else its first group, else the whole match.

    Args:
        path: relative, with forward slashes.
    """
    found = pattern.search(path)
    if found is None:
        return None
    if name in pattern.groupindex:
        return found[name]
    return found[1 if pattern.groups else 0]


def path_for_patterns(path: Path) -> str:
    """Folder and name of an image that lies in no data root, as patterns see it."""
    return f"{path.parent.name}/{path.name}"


def compile_pattern(text: str, name: str) -> re.Pattern[str]:
    """The regular expression of the setting `data.NAME`.

    Raises:
        SettingsError: it is none.
    """
    try:
        return re.compile(text)
    except re.error as error:
        raise SettingsError(f"setting 'data.{name}': expected a regular expression, found {text!r}: {error}") from None


def groups(paths: Sequence[str], pattern: str | None, name: str) -> list[str]:
    """The group of each path; without a pattern each path is its own.

    Args:
        paths: relative, with forward slashes.
        name: `part` or `lot`: the setting that the pattern came from.

    Raises:
        SettingsError: the pattern is no regular expression.
        DataError: it does not say of each path to which group it belongs.
    """
    if pattern is None:
        return list(paths)
    compiled = compile_pattern(pattern, name)
    found = [group_of(path, compiled, name) for path in paths]
    lost = [path for path, group in zip(paths, found, strict=True) if not group]
    if lost:
        matched = len(paths) - len(lost)
        raise DataError(
            f"data.{name} = {pattern!r} finds a {name} in {matched} of {len(paths)} image paths, in none such as "
            f"'{lost[0]}'; every image has to belong to one"
        )
    return [str(group) for group in found]


def hold_out(parts: Sequence[str], share: float, seed: int) -> np.ndarray:
    """(N,) bool: the images of a random `share` of the parts; at least two parts are not among them.

    Args:
        parts: of each of the N images.
    """
    names = sorted(set(parts))
    count = min(round(share * len(names)), max(len(names) - 2, 0))
    return np.isin(parts, _shuffled(names, seed)[:count])


def folds(parts: Sequence[str], count: int, seed: int) -> np.ndarray:
    """(N,) int: which of `count` folds each image is in; all images of a part in one, parts evenly.

    Raises:
        DataError: fewer parts than folds.
        SettingsError: fewer than two folds.
    """
    if count < 2:
        raise SettingsError(f"expected at least 2 folds, found {count}; a hold-out needs data.holdout instead")
    names = sorted(set(parts))
    if len(names) < count:
        raise DataError(f"{count} folds need at least {count} good parts, found {len(names)}")
    fold = {name: index % count for index, name in enumerate(_shuffled(names, seed))}
    return np.array([fold[part] for part in parts])


def _shuffled(names: Sequence[str], seed: int) -> list[str]:
    return [names[index] for index in np.random.default_rng([seed, len(names)]).permutation(len(names))]
