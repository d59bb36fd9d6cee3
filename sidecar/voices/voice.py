"""What a listing tells of a voice."""

from __future__ import annotations

from dataclasses import dataclass

_ID_DIGITS = 16


@dataclass(frozen=True)
class Voice:
    """One name and the recording it stands for."""

    name: str
    sha256: str  # of the recording's bytes
    seconds: float
    built_in: bool  # comes with the checkpoint or from its authors, or is the server's own: cannot be deleted

    @property
    def id(self) -> str:
        """Equal for equal recordings, whatever they are called and wherever they are served."""
        return f"voice_{self.sha256[:_ID_DIGITS]}"
