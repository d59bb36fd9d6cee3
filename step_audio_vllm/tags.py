"""Tags in text that arrives in portions: how much of its end has to wait. Imports nothing."""

from __future__ import annotations


def may_begin(tag: str, text: str) -> int:
    """How many characters at the end of `text` could be the beginning of `tag`; a whole tag is not looked for."""
    return max(count for count in range(len(tag)) if text.endswith(tag[:count]))
