"""What a voice may be called: one rule for requests, settings, uploads and files. Imports nothing of the house."""

from __future__ import annotations

import re

#: Stands for the server's default voice, whatever that one is called.
DEFAULT_VOICE = "default"
MAX_CHARACTERS = 64
NAME_IN_WORDS = f"1 to {MAX_CHARACTERS} letters (a to z), digits, - and _"

_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_CHARACTERS}}}")


def is_voice_name(word: str) -> bool:
    """Whether a voice can be called so. No such name is a path, on any system."""
    return _NAME.fullmatch(word) is not None
