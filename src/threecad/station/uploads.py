"""From a request to the bytes of a picture and what is told with it."""

from __future__ import annotations

import asyncio

from fastapi import HTTPException, Request
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile

UPLOAD_S = 30.0
"""Seconds within which a picture must have arrived."""

FORM_BYTES = 2**16
"""Bytes that a multipart form may have beside its picture."""

PRINTABLE = r"^[^\x00-\x1f\x7f]*$"


REQUEST_BODY = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {
                    "image": {"type": "string", "format": "binary"},
                    **{name: {"type": "string", "maxLength": 200} for name in ("part", "recipe", "lot")},
                },
            }
        },
    },
}
"""What the schema says of a picture that is handed in."""


class Asked(BaseModel):
    """What is told with a picture."""

    part: str = Field(default="", max_length=200, pattern=PRINTABLE)
    recipe: str = Field(default="", max_length=200, pattern=PRINTABLE)
    lot: str = Field(default="", max_length=200, pattern=PRINTABLE)
    simulated: bool = False


async def received(request: Request, asked: Asked) -> tuple[bytes, Asked]:
    """The picture, and what is told with it.

    Raises:
        HTTPException: it comes too slowly, is missing, or is told with something else than text.
    """
    is_form = request.headers.get("content-type", "").startswith("multipart/form-data")
    try:
        async with asyncio.timeout(UPLOAD_S):
            if not is_form:
                content = await request.body()
            else:
                async with request.form(max_files=1, max_fields=8) as form:
                    image = form.get("image")
                    if not isinstance(image, UploadFile):
                        raise HTTPException(422, "expected a file in the field 'image'")
                    content = await image.read()
                    told = {name: value for name, value in form.items() if name in Asked.model_fields}
                    asked = Asked.model_validate({**asked.model_dump(), **told})
    except TimeoutError:
        raise HTTPException(408, f"the picture did not arrive within {UPLOAD_S:g} s") from None
    except ValueError as error:  # pydantic's among them
        raise HTTPException(422, f"expected the fields part, recipe, lot as short texts: {_first(error)}") from None
    if not content:
        raise HTTPException(422, "expected a picture, found nothing")
    return content, asked


def _first(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    return str(errors()[0]["msg"]) if errors else type(error).__name__
