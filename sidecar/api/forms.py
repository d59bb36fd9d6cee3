"""Multipart forms, of which nothing is read that could hold up the event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request

from sidecar.errors import BadRequest

#: Any codec of Python would be taken, and a megabyte of `punycode` takes 15 s to decode, while nothing else goes on.
_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "latin1")
_SHOWN_CHARACTERS = 50


@asynccontextmanager
async def multipart_form(request: Request) -> AsyncIterator[FormData]:
    """The form in the request's body; its files are closed at the end.

    Raises:
        BadRequest: the body is no form, or in a character set that is not taken.
    """
    _, words = parse_options_header(request.headers.get("content-type", ""))
    charset = words.get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in _CHARSETS:
        raise BadRequest(f"the form's charset is {charset[:_SHOWN_CHARACTERS]!r}; send UTF-8")
    try:
        form = await request.form()
    except HTTPException as error:
        raise BadRequest(f"the form cannot be read: {error.detail}") from error
    try:
        yield form
    finally:
        await form.close()
