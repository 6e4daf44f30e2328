"""Everything that is wrong or odd in an image set, found in one pass over all its files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from threecad.data.catalog import DATASETS, KnownDataset, recognise
from threecad.data.duplicates import groups_alike
from threecad.data.findings import Finding, Severity
from threecad.data.folders import Problem, enumerate_names, folders_in
from threecad.data.inspection import Checks, Seen, inspect
from threecad.data.readers import Category, list_categories, scan_category
from threecad.errors import DataError
from threecad.records import Sample, Split
from threecad.threads import ordered

THREADS = 2
MOST_OBLONG = 5.0  # long side by short side, above which resizing to a square leaves little of the long one
FEWEST_GOOD = 10  # of fewer, the spread among good parts is a guess


def audit(
    root: Path, progress: Callable[[int, int], None] | None = None, checks: Checks | None = None
) -> Iterator[Finding]:
    """Findings in all categories at `root`, as they turn up, category by category; none in a set without fault.

    Every image and mask is decoded, every image hashed; 8 kB an image of one category are kept. `progress(done,
    total)` is called after each image of a category.

    Raises:
        DataError: there are no categories at `root`, or `part` is no regular expression.
    """
    checks = checks or Checks()
    rule = _compiled(checks.part)
    names = list_categories(root)
    dataset = recognise(names)
    yield from _other_folders(root, names)
    if dataset and names != [root.resolve().name]:  # else `root` is one category, asked for by itself
        yield from _absent(root, names, DATASETS[dataset])
    for name in names:
        try:
            category, problems = scan_category(root, name)
        except DataError as error:
            yield Finding(Severity.ERROR, root / name, str(error))
            continue
        for problem in problems:
            yield Finding(Severity.ERROR if problem.stops else Severity.WARNING, problem.path, problem.what)
        seen: list[Seen] = []
        for one in ordered(lambda sample: inspect(sample, checks), category.samples, threads=THREADS):
            yield from one.findings
            seen.append(one)
            if progress:
                progress(len(seen), len(category.samples))
        yield from _copies(category, seen)
        yield from _part_leaks(category, rule)
        yield from _shapes(category, seen)
        yield from _unused_bits(category, seen, checks.bits)
        yield from _odd_levels(seen)
        yield from _omissions(category, problems)
        if dataset:
            yield from _differences(category, dataset)


def _copies(category: Category, seen: Sequence[Seen]) -> Iterator[Finding]:
    """Files of equal bytes, then groups of pictures that look the same; of equal files one takes part in the groups."""
    files: dict[str, list[Seen]] = {}
    for one in seen:
        if one.sha256:
            files.setdefault(one.sha256, []).append(one)
    for equal in files.values():
        yield from _equal_files(category, [one.sample for one in equal])
    different = [equal[0] for equal in files.values()]
    for group in groups_alike([one.look for one in different if one.look is not None]):
        yield _alike(category, [different[index].sample for index in group])


def _equal_files(category: Category, samples: Sequence[Sample]) -> Iterator[Finding]:
    """One finding for every file too many, at the training image where the other lies in test."""
    learnt = [sample for sample in samples if sample.split is not Split.TEST]
    test = [sample for sample in samples if sample.split is Split.TEST]
    if test:
        found = f"found the bytes of {category.path_in_root(test[0].image)}"
        for sample in learnt:
            what = f"expected no test image among the training images, {found}"
            yield Finding(Severity.WARNING, sample.image, what, (sample.image,))
    for first, *others in filter(None, (learnt, test)):
        what = f"expected different images, found the bytes of {category.path_in_root(first.image)}"
        yield from (Finding(Severity.WARNING, sample.image, what, (sample.image,)) for sample in others)


def _alike(category: Category, samples: Sequence[Sample]) -> Finding:
    """A finding about pictures that look the same, all named where they are few."""
    learnt = [sample for sample in samples if sample.split is not Split.TEST]
    test = [sample for sample in samples if sample.split is Split.TEST]
    first, *others = [*learnt, *test]
    nearest = category.path_in_root((test if learnt and test else others)[0].image)
    many = f" ({len(samples)} in all)" if len(samples) > 2 else ""
    if learnt and test:
        what = f"expected no near copy of a test image among the training images, looks the same as {nearest}{many}"
        return Finding(Severity.WARNING, first.image, what, tuple(sample.image for sample in learnt))
    return Finding(Severity.NOTE, first.image, f"looks the same as {nearest}{many}; one part or photograph twice?")


def part_of(category: Category, sample: Sample, rule: re.Pattern[str] | None) -> str | None:
    """The name of the part in an image: the first group of `rule` in its path; without a rule, what the set tells."""
    match = rule.search(category.path_in_root(sample.image)) if rule else None
    return next(filter(None, [*match.groups(), match.group()]), None) if match else sample.part if not rule else None


def _part_leaks(category: Category, rule: re.Pattern[str] | None) -> Iterator[Finding]:
    """One finding for every part that lies on both sides."""
    parts: dict[str, list[Sample]] = {}
    for sample in category.samples:
        part = part_of(category, sample, rule)
        if part is not None:
            parts.setdefault(part, []).append(sample)
    if rule and category.samples and not parts:
        what = f"expected a part's name by '{rule.pattern}' in the paths of '{category.name}', found none"
        yield Finding(Severity.WARNING, category.folder, what)
    for part, samples in parts.items():
        learnt = tuple(sample.image for sample in samples if sample.split is not Split.TEST)
        if 0 < len(learnt) < len(samples):
            sides = f"{len(learnt)} of its images among training, {len(samples) - len(learnt)} among test images"
            what = f"expected part '{part}' on one side, found {sides}"
            yield Finding(Severity.WARNING, learnt[0], what, learnt)


def _compiled(part: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(part) if part is not None else None
    except re.error as error:
        raise DataError(f"expected a regular expression that finds a part's name, found '{part}': {error}") from None


def _shapes(category: Category, seen: Sequence[Seen]) -> Iterator[Finding]:
    """One finding about images that a square leaves little of."""
    oblong = [one for one in seen if min(one.size) and max(one.size) / min(one.size) > MOST_OBLONG]
    if oblong:
        worst = max(oblong, key=lambda one: max(one.size) / min(one.size))
        more = f" and {len(oblong) - 1} more" if len(oblong) > 1 else ""
        found = f"{worst.size[0]}×{worst.size[1]}{more}"
        what = f"expected sides of at most {MOST_OBLONG:g}:1, found {found}; a square image_size squeezes them"
        yield Finding(Severity.WARNING, worst.sample.image, what)


def _unused_bits(category: Category, seen: Sequence[Seen], bits: int) -> Iterator[Finding]:
    """One finding about a camera of fewer bits than its files have."""
    brightest = max((one.brightest for one in seen if one.brightest is not None), default=None)
    if brightest is not None and 0 < brightest < 2**bits / 4:
        filled = max(9, brightest.bit_length())
        what = f"expected {bits}-bit images with levels up to {2**bits - 1}, found none above {brightest}"
        advice = f"a camera of {filled} bits? --set data.bits={filled} gives its levels the whole range"
        yield Finding(Severity.WARNING, category.folder, f"{what}; {advice}")


def _odd_levels(seen: Sequence[Seen]) -> Iterator[Finding]:
    """One finding about masks that are not black and white."""
    odd = [one for one in seen if one.odd_levels]
    if odd:
        levels = sorted(frozenset().union(*(one.odd_levels for one in odd)))
        found = f"{levels[0]}" if len(levels) == 1 else f"{len(levels)} levels from {levels[0]} to {levels[-1]}"
        masks = f" in {len(odd)} masks" if len(odd) > 1 else ""
        what = f"expected 0 and 255, found {found} too{masks}; all above 0 counts as defect"
        yield Finding(Severity.WARNING, odd[0].sample.masks[0], what)


def _omissions(category: Category, problems: Sequence[Problem]) -> Iterator[Finding]:
    """What a category lacks to be learnt or evaluated."""
    defective = sum(sample.is_defect for sample in category.test)
    if category.is_plain:
        yield Finding(Severity.NOTE, category.root, "a plain folder: all images count as good, for training")
    elif not category.test:
        yield Finding(Severity.NOTE, category.folder, f"'{category.name}' has no test images: nothing to evaluate")
    elif defective in (0, len(category.test)):
        found = f"{len(category.test) - defective} good and {defective} defective"
        what = f"expected good and defective test images, which `evaluate` compares, found {found}"
        has_pixels = defective and category.has_masks  # pixel metrics need no good image
        yield Finding(Severity.WARNING if has_pixels else Severity.ERROR, category.folder, what)
    elif not category.has_masks and not problems:
        yield Finding(Severity.NOTE, category.folder, f"'{category.name}' has no ground_truth: image metrics only")
    if not category.train:
        yield Finding(Severity.NOTE, category.folder, f"'{category.name}' has no training images: nothing to fit")
    elif len(category.train) < FEWEST_GOOD:
        what = f"expected at least {FEWEST_GOOD} good images to learn how much good parts differ"
        yield Finding(Severity.WARNING, category.train[0].image.parent, f"{what}, found {len(category.train)}")


def _other_folders(root: Path, names: Sequence[str]) -> Iterator[Finding]:
    """Folders beside the categories that look as if they should be some."""
    for name, folder in folders_in(root).items():
        inside = folders_in(folder).keys() & {"train", "test"} if names != [root.resolve().name] else set()
        if name not in names and inside:
            what = f"expected the layout of '{names[0]}', found {', '.join(sorted(inside))} laid out otherwise"
            yield Finding(Severity.WARNING, folder, what)


def _absent(root: Path, names: Sequence[str], dataset: KnownDataset) -> Iterator[Finding]:
    """One finding about a part of a published set: a mean over its categories is not the one in papers."""
    absent = [known.name for known in dataset.categories if not {known.name, known.abbreviation} & set(names)]
    if absent:
        what = f"expected {len(dataset.categories)} categories as in {dataset.title}, found {len(names)}"
        yield Finding(Severity.NOTE, root, f"{what}; not here: {enumerate_names(absent)}")


def _differences(category: Category, dataset: str) -> Iterator[Finding]:
    """Where the counts are not those of the published set."""
    known = DATASETS[dataset].find(category.name)
    if known is None:
        return
    defective = sum(sample.is_defect for sample in category.test)
    counts = {
        "training images": (known.train, len(category.train)),
        "good test images": (known.good, len(category.test) - defective),
        "defective test images": (known.defect, defective),
        "defect types": (known.types, len(category.defects)),
    }
    for what, (expected, found) in counts.items():
        if expected is not None and expected != found:
            text = f"expected {expected} {what} as in {DATASETS[dataset].title}, found {found}"
            yield Finding(Severity.WARNING, category.folder, text)
