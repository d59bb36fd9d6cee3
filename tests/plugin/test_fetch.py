"""A model is found in a folder or downloaded; what cannot be had is said in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from step_audio_vllm import fetch as module

HUB_ID = "stepfun-ai/Step-Audio-2-mini"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_a_folder_is_printed_as_it_is(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main([str(checkpoint)]) == 0
    assert capsys.readouterr().out == f"{checkpoint.resolve()}\n"


def test_a_hub_id_is_downloaded_without_its_code(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(checkpoint)

    monkeypatch.setattr(module, "snapshot_download", download)
    assert module.main([HUB_ID]) == 0
    assert asked == {"repository": HUB_ID, "ignore_patterns": ["*.py"]}
    assert capsys.readouterr().out == f"{checkpoint.resolve()}\n"


def test_a_folder_that_is_missing_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub for a folder"))
    with pytest.raises(module.ModelNotFound, match="is no folder"):
        module.fetch(str(tmp_path / "nowhere"))


def test_a_folder_without_a_configuration_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(module.ModelNotFound, match=r"no config\.json"):
        module.fetch(str(tmp_path))


def test_a_name_that_cannot_be_a_hub_id_is_refused() -> None:
    with pytest.raises(module.ModelNotFound, match="neither a folder nor a hub id"):
        module.fetch("no such/model at all/")


@pytest.mark.parametrize(("offline", "what_to_do"), [(True, "HF_HUB_OFFLINE forbids"), (False, "check the network")])
def test_a_hub_out_of_reach_is_told_from_one_that_is_forbidden(
    offline: bool, what_to_do: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("several\nlines")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(module, "snapshot_download", unreachable)
    with pytest.raises(module.ModelNotFound, match=what_to_do):
        module.fetch(HUB_ID)


def test_a_download_that_breaks_off_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(*_: object, **__: object) -> str:
        raise OSError("No space left on device\nand more")

    monkeypatch.setattr(module, "snapshot_download", breaks)
    assert module.main([HUB_ID]) == 1
    (record,) = caplog.records
    assert "No space left on device" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert capsys.readouterr().out == ""


def test_the_command_offline_says_one_sentence_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "step_audio_vllm.fetch", HUB_ID],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert HUB_ID in done.stderr
