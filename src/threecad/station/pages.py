"""The pages of a station."""

from __future__ import annotations

from fastapi import FastAPI


def add_pages(app: FastAPI) -> None:
    """Review, health and the rest, for browsers."""
