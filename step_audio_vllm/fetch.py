"""Finds a model's folder, downloading it first where needed: `python -m step_audio_vllm.fetch REPO_OR_DIR`.

Prints the folder on stdout and nothing else there; progress goes to stderr. HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean
what they mean to huggingface_hub. Python files are never downloaded: no code of a checkpoint is run.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

logger = logging.getLogger(__name__)

#: What marks an argument as a folder even if there is none.
_FOLDER_MARKS = ("/", "./", "../", "~")


class ModelNotFound(Exception):
    """There is no such model here or on the hub, or it cannot be had now; says what to do."""


def fetch(model: str) -> Path:
    """The folder of a model.

    Args:
        model: a folder, or the id of a repository on the Hugging Face hub.

    Raises:
        ModelNotFound: neither; or the hub cannot be reached and the model is not in the cache.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if model.startswith(_FOLDER_MARKS) or folder.exists():
            raise ModelNotFound(
                f"{model} is no folder; give a checkpoint's folder or a hub id such as stepfun-ai/Step-Audio-2-mini"
            )
        folder = _download(model)
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"{folder} has no config.json, so it is no checkpoint; name the folder that has one")
    return folder.resolve()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m step_audio_vllm.fetch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="REPO_OR_DIR", help="a hub id, or a folder, which is only checked")
    wanted = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        folder = fetch(wanted.model)
    except ModelNotFound as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(f"{folder}\n")
    return 0


def _download(repository: str) -> Path:
    try:
        return Path(snapshot_download(repository, ignore_patterns=["*.py"]))
    except Exception as error:  # the library lets through what its network, cache and disk layers raise
        raise ModelNotFound(_reason(repository, error)) from error


def _reason(repository: str, error: Exception) -> str:
    """What went wrong and what to do, in one sentence."""
    match error:
        case HFValidationError():
            return (
                f"{repository} is neither a folder nor a hub id; give a folder, or an id such as "
                "stepfun-ai/Step-Audio-2-mini"
            )
        case GatedRepoError():
            return f"{repository} is gated; accept its terms on its hub page, then set HF_TOKEN to your token"
        case RepositoryNotFoundError():
            return f"the hub has no {repository} that you may read; check its name, and set HF_TOKEN if it is private"
        case LocalEntryNotFoundError() | OfflineModeIsEnabled() if constants.HF_HUB_OFFLINE:
            return (
                f"{repository} is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids downloading it; "
                "unset it once, or give a folder"
            )
        case LocalEntryNotFoundError():
            return (
                f"{repository} is not in {constants.HF_HUB_CACHE}, and the hub cannot be reached; check the "
                "network, or give a folder"
            )
        case _:
            first_line = (str(error).splitlines() or [""])[0]
            return (
                f"{repository} cannot be downloaded ({type(error).__name__}: {first_line}); try again, what has "
                "arrived is kept"
            )


if __name__ == "__main__":
    sys.exit(main())
