"""What a file holds that is called .png but is none, told by its first bytes."""

from __future__ import annotations

from pathlib import Path

_SIGNATURES = {  # what else lies in files that are called .png, by their first bytes
    b"GIF8": "a gif",
    b"%PDF": "a pdf",
    b"%!PS": "a PostScript program",
    b"8BPS": "a Photoshop file",
    b"\x00\x00\x00\x0cjP  ": "a jp2",
    b"version https://git-lfs": "a pointer to a file that Git LFS has not fetched",
}
_BRANDS = {b"avif": "an avif", b"heic": "a heic", b"mif1": "a heic"}


def kind_of_file(path: Path) -> str:
    """What a file that is no image of ours holds, as far as its first bytes tell."""
    with path.open("rb") as file:
        start = file.read(32)
    if not start:
        return "an empty file"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "a webp"
    if start[4:8] == b"ftyp":
        return _BRANDS.get(start[8:12], "a film")
    return next((kind for signature, kind in _SIGNATURES.items() if start.startswith(signature)), "something else")
