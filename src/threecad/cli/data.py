"""`threecad data`: image sets looked at before anything is learnt from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from threecad.cli.terminal import counting, interruptible, note, progress, result, table

app = typer.Typer(name="data", help="Check, describe and cache image sets.", no_args_is_help=True)

Root = Annotated[
    Path, Argument(metavar="ROOT", help="Data root, category folder, or plain folder.", show_default=False)
]

MaxPixels = Annotated[int | None, Option(metavar="N", min=1, help="As data.max_pixels.", show_default=False)]


@app.command()
def verify(
    root: Root,
    part: Annotated[
        str | None,
        Option(metavar="REGEX", help="Finds a part's name in an image's path; no part may lie on both sides."),
    ] = None,
    evaluation_size: Annotated[
        int | None, Option(metavar="PX", min=1, help="Name the defects that vanish at this size.", show_default=False)
    ] = None,
    bits: Annotated[int, Option(min=9, max=16, help="As data.bits.")] = 16,
    max_pixels: MaxPixels = None,
    exclusions: Annotated[
        Path | None,
        Option("--write-exclusions", metavar="FILE", help="List what is to be left out, for data.exclude."),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Everything that is wrong or odd: errors stop a fit, warnings change what its result means.

    Exits with 2 where there is an error, also an image that cannot be read, since a fit would stop there too.
    """
    from threecad.data.audit import audit
    from threecad.data.findings import Severity, as_content, write_exclusions
    from threecad.data.inspection import Checks
    from threecad.images import MAX_PIXELS

    checks = Checks(part, evaluation_size, bits, max_pixels or MAX_PIXELS)
    with interruptible(lambda: "not all files were looked at"), progress() as shown:
        findings = list(audit(root, counting(shown, "reading"), checks))
    if as_json:
        result(json.dumps(as_content(root, findings), indent=1))
    else:
        for finding in findings:
            result(f"{finding.severity}: {finding.path}: {finding.what}")
    counts = [(severity, sum(finding.severity is severity for finding in findings)) for severity in Severity]
    note(", ".join(f"{count} {severity}{'s' if count != 1 else ''}" for severity, count in counts))
    if exclusions is not None:
        listed = write_exclusions(exclusions, root, findings)
        note(f"{listed} image{'s' if listed != 1 else ''} to leave out, listed in {exclusions}")
    raise typer.Exit(2 if any(finding.severity is Severity.ERROR for finding in findings) else 0)


@app.command()
def stats(
    root: Root,
    figures: Annotated[
        Path | None, Option(metavar="DIR", help="Write both histograms there, as SVG and CSV.", show_default=False)
    ] = None,
    max_pixels: MaxPixels = None,
    as_json: Annotated[bool, Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """The paper's Tables 1 and 2, and the histograms of its third figure."""
    from threecad.data.figures import write_figures
    from threecad.data.readers import read_categories
    from threecad.data.statistics import HEADER, HEADER_2, measure
    from threecad.images import MAX_PIXELS

    statistics = measure(read_categories(root), max_pixels=max_pixels or MAX_PIXELS)
    if as_json:
        result(json.dumps(statistics.content(), indent=1))
    else:
        table(HEADER, statistics.rows())
        result("\nMDI: images with multiple defect instances; MDT: with multiple defect types")
        table(HEADER_2, statistics.rows_2())
        for histogram in (statistics.area_ratio, statistics.aspect_ratio):
            if sum(histogram.counts):
                result(f"\n{histogram.heading}, median {histogram.median:.3g}")
                table(("above", "to", "count", "%"), histogram.rows())
    if figures is not None:
        written = write_figures(figures, statistics)
        note(f"{', '.join(path.name for path in written)} written to {figures}")


@app.command("import")
def import_(
    source: Annotated[
        Path,
        Argument(metavar="SOURCE", help="Folder of labelme files, COCO file or its folder, or a published set."),
    ],
    out: Annotated[Path, Option(metavar="ROOT", help="Data root to make.", show_default=False)],
    category: Annotated[
        str | None, Option(metavar="NAME", help="Of labelled images; without, the name of their folder.")
    ] = None,
    test_share: Annotated[float, Option(min=0, max=1, help="Share of good labelled images to test on.")] = 0.25,
) -> None:
    """Write labelled images, or a published set, as a tree of images and masks.

    An image in which nothing is marked counts as good. The tree is there when all of it is written, or not at all.
    """
    from threecad.data.importing import import_data

    with interruptible(lambda: f"{out} was not made"), progress() as shown:
        imported = import_data(
            source, out, category=category, test_share=test_share, progress=counting(shown, "writing")
        )
    table(
        ("Category", "Split", "Defect", "Images"),
        [(part.category, part.split.value, part.defect, str(part.count)) for part in imported],
    )
    note(f"written to {out}; look at it with `threecad data verify {out}`")


@app.command()
def cache(clear: Annotated[bool, Option("--clear", help="Remove all of it.")] = False) -> None:
    """Decoded images that are kept between runs."""
    from threecad.cache import cache_folder
    from threecad.data.loading import clear_packs, packs

    if clear:
        result(f"{clear_packs() / 1e6:.1f} MB freed in {cache_folder('pixels')}")
        return
    found = packs()
    table(
        ("Category", "Kind", "Count", "Size", "MB"),
        [(p.category, p.kind, str(p.count), f"{p.size[0]}×{p.size[1]}", f"{p.bytes / 1e6:.1f}") for p in found],
    )
    note(f"{sum(pack.bytes for pack in found) / 1e6:.1f} MB in {cache_folder('pixels')}; --clear removes them")
