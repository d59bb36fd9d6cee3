"""Hold this project's modules to recordings of the reference.

    python tests/golden/compare.py FOLDER...

A folder holds recorded inputs, weights and outputs (see the READMEs in tests/golden/data). Its kind is
recognised by the files in it, so a new recording with other sizes or seeds needs no change here. For each
recorded tensor one line is printed: largest absolute error, error relative to the largest recorded value, and
the tolerance. Exit status 1 if any is over, or if a recorded tensor was not compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import compare_audio_encoder
import compare_flow
import compare_frontend
import compare_hift
import compare_llm
import compare_pipeline
import compare_ta4
import compare_voice
from comparison import HEADING, Comparison, Row


@dataclass(frozen=True)
class Kind:
    name: str
    recognises: Callable[[Path], bool]
    compare: Callable[[Comparison], None]


KINDS = [
    Kind(module.__name__.removeprefix("compare_"), module.recognises, module.compare)
    for module in (
        compare_frontend,
        compare_audio_encoder,
        compare_llm,
        compare_ta4,
        compare_pipeline,
        compare_flow,
        compare_hift,
        compare_voice,
    )
]


def compare_folder(folder: Path) -> tuple[str, list[Row]]:
    """The kind of a folder and all its rows.

    Raises:
        ValueError: there is no such folder; no kind, or more than one, recognises it; or it lacks something.
    """
    if not folder.is_dir():
        raise ValueError("there is no such folder")
    kinds = [kind for kind in KINDS if kind.recognises(folder)]
    if len(kinds) != 1:
        names = ", ".join(kind.name for kind in kinds) or "none"
        known = ", ".join(kind.name for kind in KINDS)
        raise ValueError(f"this should look like exactly one of {known}; it looks like: {names}")
    comparison = Comparison(folder)
    kinds[0].compare(comparison)
    return kinds[0].name, comparison.finish()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="+", type=Path)
    parser.add_argument("--quiet", action="store_true", help="print the rows that fail and a summary, not every row")
    arguments = parser.parse_args()
    failed = 0
    for folder in arguments.folder:
        try:
            kind, rows = compare_folder(folder)
        except Exception as error:  # one folder that cannot be read must not keep the others from being compared
            print(f"BAD {folder}: {'' if isinstance(error, ValueError) else type(error).__name__ + ': '}{error}")
            failed += 1
            continue
        bad = [row for row in rows if not row.good]
        print(f"\n{folder} ({kind}): {len(rows)} compared, {len(bad)} over")
        shown = bad if arguments.quiet else rows
        if shown:
            print(HEADING, *shown, sep="\n")
        failed += len(bad) + (not rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
