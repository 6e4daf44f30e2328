"""One image and its masks looked at: what is wrong with them, and what is kept to compare them with others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from threecad.data.category import check_sizes
from threecad.data.duplicates import Look, look_of
from threecad.data.findings import Finding, Severity
from threecad.errors import DataError
from threecad.files import file_sha256
from threecad.images import MAX_PIXELS, brightest_level, mask_levels, read_image, read_mask
from threecad.records import Sample

SMALLEST_PX = 32  # below the smallest input of any method, an image is blown up before it is looked at


@dataclass(frozen=True, slots=True)
class Checks:
    """What an audit looks at beyond what it always does, and how images are read."""

    part: str | None = None  # regular expression that finds the part's name in an image's path (`data.part`)
    evaluation_size: int | None = None  # px at which masks are asked whether their defect is still there
    bits: int = 16  # as `data.bits`
    max_pixels: int = MAX_PIXELS  # as `data.max_pixels`


@dataclass(frozen=True, slots=True)
class Seen:
    """What is kept of an image that was looked at."""

    sample: Sample
    sha256: str = ""  # empty where the image cannot be read
    look: Look | None = None
    size: tuple[int, int] = (0, 0)
    brightest: int | None = None  # of more than 8 bits
    odd_levels: frozenset[int] = frozenset()  # of its masks, other than 0 and 255
    findings: list[Finding] = field(default_factory=list)


def inspect(sample: Sample, checks: Checks) -> Seen:
    """An image and its masks, decoded; whatever is wrong with them is among the findings."""
    findings: list[Finding] = []
    digest, look, size, brightest = "", None, (0, 0), None
    levels: set[int] = set()
    try:
        pixels = read_image(sample.image, bits=checks.bits, max_pixels=checks.max_pixels)
        brightest = brightest_level(sample.image, max_pixels=checks.max_pixels)
        digest = file_sha256(sample.image)
        look, size = look_of(pixels), (pixels.shape[0], pixels.shape[1])
        if min(size) < SMALLEST_PX:
            what = f"expected at least {SMALLEST_PX} px a side, found {size[0]}×{size[1]}"
            findings.append(Finding(Severity.WARNING, sample.image, what))
    except (DataError, OSError) as error:
        findings.append(_failure(sample.image, error, leave_out=(sample.image,)))
    for path in sample.masks:
        try:
            findings += _inspect_mask(path, checks)
            levels |= mask_levels(path, max_pixels=checks.max_pixels)
        except DataError as error:
            findings.append(_failure(path, error))
    if sample.masks and digest:
        try:
            check_sizes(sample, max_pixels=checks.max_pixels)
            findings += _vanished(sample, checks)
        except DataError as error:
            findings.append(_failure(sample.masks[0], error))
    return Seen(sample, digest, look, size, brightest, frozenset(levels - {0, 255}), findings)


def _inspect_mask(path: Path, checks: Checks) -> Iterator[Finding]:
    mask = read_mask(path, max_pixels=checks.max_pixels)
    if not mask.any():
        yield Finding(Severity.WARNING, path, "expected a marked defect, found an empty mask")
        return
    if mask.all():
        yield Finding(Severity.WARNING, path, "expected a part of the image marked, found all of it")


def _vanished(sample: Sample, checks: Checks) -> Iterator[Finding]:
    if checks.evaluation_size is None or sample.mask is None:
        return
    size = (checks.evaluation_size, checks.evaluation_size)
    whole, shrunk = (
        read_mask(sample.mask, at_size, more=sample.more_masks, max_pixels=checks.max_pixels)
        for at_size in (None, size)
    )
    if whole.any() and not shrunk.any():
        what = f"expected a defect that is still there at {size[0]}×{size[1]}, found none left; pixel metrics miss it"
        yield Finding(Severity.WARNING, sample.mask, what)


def _failure(path: Path, error: Exception, leave_out: tuple[Path, ...] = ()) -> Finding:
    return Finding(Severity.ERROR, path, str(error).removeprefix(f"{path}").lstrip(": "), leave_out)
