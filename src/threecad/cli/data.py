"""`threecad data`: image sets looked at before anything is learnt from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from threecad.cli.terminal import counting, interruptible, note, progress, result, table

app = typer.Typer(name="data", help="Check, describe and cache image sets.", no_args_is_help=True)

Root = Annotated[
    Path, Argument(metavar="ROOT", help="Data root, category folder, or plain folder.", show_default=False)
]


@app.command()
def verify(root: Root) -> None:
    """Everything that is wrong or odd: errors stop a fit, warnings change what its result means.

    Exits with 2 where there is an error, also an image that cannot be read, since a fit would stop there too.
    """
    from threecad.data.audit import audit
    from threecad.data.findings import Severity

    with interruptible(lambda: "not all files were looked at"), progress() as shown:
        findings = list(audit(root, counting(shown, "reading")))
    for finding in findings:
        result(f"{finding.severity}: {finding.path}: {finding.what}")
    counts = [(severity, sum(finding.severity is severity for finding in findings)) for severity in Severity]
    note(", ".join(f"{count} {severity}{'s' if count != 1 else ''}" for severity, count in counts))
    raise typer.Exit(2 if any(finding.severity is Severity.ERROR for finding in findings) else 0)


@app.command()
def stats(root: Root) -> None:
    """The paper's Table 1, and the numbers behind its Fig. 3."""
    from threecad.data.readers import read_categories
    from threecad.data.statistics import HEADER, measure

    statistics = measure(read_categories(root))
    table(HEADER, statistics.rows())
    for histogram in (statistics.area_ratio, statistics.aspect_ratio):
        if sum(histogram.counts):
            result(f"\n{histogram.title}, median {histogram.median:.3g}")
            table(("above", "to", "count", "%"), histogram.rows())


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
