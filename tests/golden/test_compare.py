"""The command that holds our modules to a recording: what it recognises, what it says, and when it fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import compare
import compare_llm
import pytest
import torch
from golden_folders import DATA
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from step_audio_vllm.config import StepAudio2EncoderConfig
from step_audio_vllm.encoder import Adapter, AudioEncoder, embed_chunks

COMMAND = Path(compare.__file__)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A copy of a recorded folder under a name that says nothing."""
    return Path(shutil.copytree(DATA / "audio_encoder", tmp_path / "copy"))


def change(file: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["compare.py", *arguments])
    return compare.main()


def failures(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("BAD")]


def test_as_a_plain_command_it_prints_a_line_for_each_tensor_and_exits_0(recording: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(COMMAND), str(recording)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    title, heading, *rows = done.stdout.strip().splitlines()
    assert title.startswith(f"{recording} (audio_encoder): {len(rows)} compared, 0 over")
    assert heading.split() == ["tensor", "error", "relative", "tolerance"]
    recorded = load_file(recording / "expected.safetensors")
    assert all(any(name in row for row in rows) for name in recorded)


def test_a_tensor_that_is_off_fails_and_is_named(
    recording: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(recording / "expected.safetensors", lambda tensors: tensors["single.100.encoder"].add_(1e-3))
    assert run(str(recording), monkeypatch=monkeypatch) == 1
    (line,) = failures(capsys.readouterr().out)
    assert "single.100.encoder" in line


@pytest.mark.parametrize(
    "file", ["expected.safetensors", "inputs.safetensors", "weights.safetensors", "new.safetensors"]
)
def test_a_tensor_that_nobody_compares_fails_in_whichever_file(
    file: str, recording: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "mel.40" if file == "inputs.safetensors" else "encoder.more"
    if not (recording / file).exists():
        save_file({}, recording / file)
    change(recording / file, lambda tensors: tensors.update({name: torch.ones(128, 40)}))
    assert run(str(recording), monkeypatch=monkeypatch) == 1
    assert failures(capsys.readouterr().out)


def without_a_tensor(folder: Path) -> None:
    change(folder / "expected.safetensors", lambda tensors: tensors.pop("single.100.adapter"))


def without_a_weight(folder: Path) -> None:
    change(folder / "weights.safetensors", lambda tensors: tensors.pop("adapter.linear1.bias"))


def without_its_cases(folder: Path) -> None:
    (folder / "cases.json").unlink()


def without_what_tells_its_kind(folder: Path) -> None:
    (folder / "config.json").unlink()


def with_a_damaged_file(folder: Path) -> None:
    (folder / "inputs.safetensors").write_bytes(b"no tensors")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_a_tensor, "expected.safetensors has no tensor single.100.adapter"),
        (without_a_weight, "weights.safetensors has no tensor adapter.linear1.bias"),
        (without_its_cases, "cases.json is missing"),
        (without_what_tells_its_kind, "exactly one of frontend, audio_encoder"),
        (with_a_damaged_file, "SafetensorError"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_a_folder_that_cannot_be_compared_is_one_line_and_the_next_is_compared(
    spoil: Callable[[Path], None],
    said: str,
    recording: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(recording)
    assert run(str(recording), str(DATA / "audio_encoder"), "--quiet", monkeypatch=monkeypatch) == 1
    printed = capsys.readouterr().out
    (line,) = failures(printed)
    assert str(recording) in line and said in line
    assert "compared, 0 over" in printed


@torch.inference_mode()
def record_an_encoder(folder: Path, config: StepAudio2EncoderConfig, frames: list[int]) -> None:
    """A folder in the format of audio_encoder, from our own modules."""
    parts = nn.ModuleDict({"encoder": AudioEncoder(config), "adapter": Adapter(config)})
    encoder, adapter = parts["encoder"], parts["adapter"]
    mels = {f"mel.{count}": torch.randn(config.n_mels, count) for count in frames}
    rows = embed_chunks(encoder, adapter, [mel.T for mel in mels.values()])
    files = {
        "weights": dict(parts.state_dict()),
        "inputs": mels,
        "expected": {f"single.{count}.adapter": row.clone() for count, row in zip(frames, rows, strict=True)},
    }
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_diff_dict()))
    (folder / "cases.json").write_text('{"batch": {}}')


def test_a_recording_of_other_sizes_needs_no_change_here(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = StepAudio2EncoderConfig(
        n_mels=16, n_audio_ctx=50, n_audio_state=24, n_audio_head=3, n_audio_layer=1, llm_dim=40
    )
    record_an_encoder(tmp_path, config, [7, 30, 100])
    kind, rows = compare.compare_folder(tmp_path)
    assert kind == "audio_encoder"
    assert len(rows) == 6 and all(row.good for row in rows)


@pytest.mark.parametrize("kind", [folder.name for folder in sorted(DATA.iterdir()) if folder.is_dir()])
def test_each_kind_is_told_by_its_files_and_taken_for_no_other(kind: str, tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / kind, tmp_path / "copy")
    assert [known.name for known in compare.KINDS if known.recognises(Path(folder))] == [kind]


def test_of_all_that_a_failing_vllm_writes_the_first_error_is_passed_on() -> None:
    output = (
        "INFO starting\n(Core pid=7) ERROR [core.py:9] ValueError: no tensor x\nRuntimeError: see root cause above\n"
    )
    assert compare_llm.first_error(output) == "ValueError: no tensor x"
    assert "Killed" in compare_llm.first_error("INFO starting\nKilled")
