"""`threecad methods`."""

from __future__ import annotations

from threecad.cli.terminal import table


def methods() -> None:
    """The methods, with their papers."""
    from threecad.methods import METHODS

    papers = {name: METHODS.paper(name) for name in METHODS}
    table(
        ("METHOD", "Group", "Needs", "Venue", "Paper", "Link"),
        [
            (name, paper.group, ", ".join(paper.needs) or "nothing", paper.venue, paper.title, paper.link)
            for name, paper in papers.items()
        ],
    )
