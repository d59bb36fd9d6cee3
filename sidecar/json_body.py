"""A request's body as a JSON object, read the same way wherever one is taken."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from sidecar.errors import BadRequest

#: Numbers, lists and so on in a body. Long texts and recordings are one each; a list of lists takes twenty times the
#: memory of its JSON, and while JSON is read nothing else runs.
MAX_VALUES = 1_000_000


def json_object(body: bytes) -> dict[str, Any]:
    """
    Raises:
        BadRequest: not JSON (NaN and Infinity are not), not an object, or an object of too many values.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:  # at least as many as there are values, but one
        raise BadRequest(f"the body has more than {MAX_VALUES:,} commas and brackets; send fewer values")
    try:
        parsed = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise BadRequest(f"the body must be a JSON object; it is {in_words(parsed)}")
    return parsed


def in_words(value: Any) -> str:
    """The value as JSON, cut short: what came may be as long as a body."""
    try:
        words = json.dumps(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a very deep list
        words = f"a {type(value).__name__} too large to show"
    return words if len(words) <= 80 else f"{words[:76]} ..."


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")
