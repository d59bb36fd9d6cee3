"""What a golden comparison writes into: rows of ours against recorded, and which recorded tensors were used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

#: What stands above the rows.
HEADING = f"    {'tensor':<58} {'error':>10} {'relative':>9}  tolerance"


@dataclass(frozen=True)
class Row:
    """One line of the printed table."""

    name: str
    error: float  # largest absolute difference, or dB for a signal-to-noise row
    relative: float | None
    bound: str
    good: bool

    def __str__(self) -> str:
        relative = "" if self.relative is None else f"{self.relative:.1e}"
        return f"{'ok ' if self.good else 'BAD'} {self.name:<58} {self.error:>10.3g} {relative:>9}  {self.bound}"


class Incomplete(ValueError):
    """A folder lacks a file or a tensor that its kind, or its own list of cases, asks for."""


@dataclass
class Comparison:
    """Collects rows for one golden folder, and remembers which recorded tensors were looked at.

    Read recorded tensors only through `load`: whatever is left unread at the end is a failure, and so is every tensor
    of a file that was never opened, so that a folder with more in it than we compare cannot pass by silence.
    """

    folder: Path
    rows: list[Row] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)
    opened: set[str] = field(default_factory=set)

    def load(self, file: str) -> Recorded:
        """The tensors of one safetensors file of the folder; every one of them has to be read.

        Raises:
            Incomplete: there is no such file.
        """
        tensors = load_file(self._existing(file))
        self.opened.add(file)
        self.unread |= {f"{file}: {name}" for name in tensors}
        return Recorded(self, file, tensors)

    def weights(self, file: str) -> Path:
        """A file of weights for one of our own loaders, which itself refuses tensors too many or too few.

        Raises:
            Incomplete: there is no such file.
        """
        self.opened.add(file)
        return self._existing(file)

    def json(self, file: str) -> Any:
        """The contents of a JSON file.

        Raises:
            Incomplete: there is no such file.
        """
        return json.loads(self._existing(file).read_text(encoding="utf-8"))

    def has(self, file: str) -> bool:
        return (self.folder / file).exists()

    def close(self, name: str, ours: Tensor, recorded: Tensor, tolerance: float) -> None:
        """Largest absolute difference at most `tolerance`; relative error is that over max |recorded|."""
        if tuple(ours.shape) != tuple(recorded.shape):
            self.rows.append(
                Row(f"{name} {tuple(ours.shape)}", float("inf"), None, f"shape {tuple(recorded.shape)}", False)
            )
            return
        if recorded.numel() == 0:
            self.rows.append(Row(name, 0.0, None, "empty in both", True))
            return
        difference = (ours.detach().double() - recorded.double()).abs().max().item()
        scale = recorded.double().abs().max().item()
        self.rows.append(
            Row(
                name,
                difference,
                difference / scale if scale else None,
                f"<= {tolerance:g}",
                difference <= tolerance,
            )
        )

    def snr(self, name: str, ours: Tensor, recorded: Tensor, least_db: float) -> None:
        """Signal-to-noise ratio 10 log10(sum ref^2 / sum (ours - ref)^2) of at least `least_db`."""
        if tuple(ours.shape) != tuple(recorded.shape):
            self.rows.append(
                Row(
                    f"{name} {tuple(ours.shape)}",
                    float("-inf"),
                    None,
                    f"shape {tuple(recorded.shape)}",
                    False,
                )
            )
            return
        reference = recorded.double()
        noise = (ours.detach().double() - reference).pow(2).sum()
        ratio = float("inf") if noise == 0 else (10 * torch.log10(reference.pow(2).sum() / noise)).item()
        self.rows.append(Row(name, ratio, None, f">= {least_db:g} dB", ratio >= least_db))

    def same(self, name: str, ours: object, recorded: object) -> None:
        """Exact equality of anything: ids, lengths, texts."""
        good = bool(ours == recorded)
        bound = "exact" if good else f"exact; ours {str(ours)[:60]!r}, recorded {str(recorded)[:60]!r}"
        self.rows.append(Row(name, 0.0 if good else float("inf"), None, bound, good))

    def finish(self) -> list[Row]:
        """All rows, with one failing row for each recorded tensor that nobody read."""
        for path in self.folder.glob("*.safetensors"):
            if path.name not in self.opened:
                self.load(path.name)
        return self.rows + [
            Row(name, float("nan"), None, "recorded but not compared", False) for name in sorted(self.unread)
        ]

    def _existing(self, file: str) -> Path:
        if not self.has(file):
            raise Incomplete(f"{file} is missing; record the folder anew, or copy all of it")
        return self.folder / file


@dataclass
class Recorded:
    """One file's tensors; reading one by name marks it as compared, and raises Incomplete if it is not there."""

    comparison: Comparison
    file: str
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise Incomplete(f"{self.file} has no tensor {name}; record the folder anew")
        self.comparison.unread.discard(f"{self.file}: {name}")
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self.tensors if name.startswith(prefix))
