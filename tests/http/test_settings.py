"""Settings refuse nonsense at the door, and --help tells the defaults that are used."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.audio.decode import MAX_VALUES
from sidecar.engine.audio_items import longest_recording_s
from sidecar.errors import SettingsError
from sidecar.settings import CPU_SLOTS, GPU_SLOTS, SYSTEM_PROMPT, LimitSettings, Settings, add_flags


def settings(*flags: str, **environment: str) -> Settings:
    return Settings.from_flags(["--model", "somewhere", *flags], environment)


def test_the_defaults_are_those_of_the_models_authors() -> None:
    sampling = settings().sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.7, 0.9, -1, 0.0)
    assert (sampling.repetition_penalty, sampling.max_tokens) == (1.05, 4096)
    assert settings().host == "127.0.0.1"


@pytest.mark.parametrize(
    ("flags", "precision", "slots"),
    [
        ((), "float32", 16),
        (("--device", "cuda"), "float16", 64),
        (("--device", "cuda:1", "--dtype", "bfloat16"), "bfloat16", 64),
        (("--device", "cuda:1", "--max-batch-size", "3"), "float16", 3),
        (("--dtype", "float16", "--max-batch-size", "128"), "float16", 128),
    ],
)
def test_precision_and_streams_at_once_go_by_the_device_unless_they_are_given(
    flags: tuple[str, ...], precision: str, slots: int
) -> None:
    assert (settings(*flags).precision, settings(*flags).slots) == (precision, slots)


@pytest.mark.parametrize("flag", ["--top-p", "--top_p"])
def test_dashes_and_underscores_are_the_same(flag: str) -> None:
    assert settings(flag, "0.5").sampling.top_p == 0.5


def test_a_flag_goes_before_the_environment_and_that_before_the_default() -> None:
    assert settings(STEP_AUDIO_TOP_K="5").sampling.top_k == 5
    assert settings("--top-k", "7", STEP_AUDIO_TOP_K="5").sampling.top_k == 7
    assert settings(STEP_AUDIO_TOP_K="").sampling.top_k == -1
    assert settings(STEP_AUDIO_GREEDY="1").sampling.greedy


def test_the_engines_key_comes_from_the_environment_alone_and_is_never_shown() -> None:
    with_key = settings(STEP_AUDIO_ENGINE_KEY="secret")
    assert with_key.engine.engine_key == "secret"
    assert "secret" not in repr(with_key)
    with pytest.raises(SystemExit):
        settings("--engine-key", "secret")


def test_allowed_audio_path_may_be_given_several_times(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    given = settings("--allowed-audio-path", str(tmp_path), "--allowed_audio_path", str(other))
    assert given.limits.allowed_audio_path == (tmp_path, other)
    assert settings(STEP_AUDIO_ALLOWED_AUDIO_PATH=f"{tmp_path}:{other}").limits == given.limits


def test_a_voice_is_a_name_or_a_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "anna").write_bytes(b"RIFF")
    monkeypatch.chdir(tmp_path)
    for word in ("anna", "./anna", str(tmp_path / "anna"), "a-name_with-0"):
        assert settings("--voice", word).voice == word
    assert settings(STEP_AUDIO_VOICE="anna", STEP_AUDIO_VOICE_DIR="here").voice_dir == Path("here")


def test_a_home_folder_that_no_shell_has_seen_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "anna.wav").write_bytes(b"RIFF")
    monkeypatch.setenv("HOME", str(tmp_path))
    given = settings("--voice=~/anna.wav", "--voice-dir=~/voices")
    assert (given.voice, given.voice_dir) == (str(tmp_path / "anna.wav"), tmp_path / "voices")
    with pytest.raises(SettingsError, match="there is no such file"):
        settings("--voice=~nobody_here/anna.wav")


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--temperature", "-1"), "--temperature"),
        (("--temperature", "nan"), "--temperature"),
        (("--top-p", "0"), "--top-p"),
        (("--max-tokens", "0"), "--max-tokens"),
        (("--max-batch-size", "0"), "--max-batch-size"),
        (("--first-chunk-tokens", "0"), "--first-chunk-tokens"),
        (("--first-chunk-tokens", "30"), "--chunk-tokens"),
        (("--port", "65536"), "--port"),
        (("--max-body-mb", "inf"), "--max-body-mb"),
        (("--allowed-audio-path", "/not/there"), "/not/there"),
        (("--engine-socket", "/a", "--engine-url", "http://a"), "one of them"),
        (("--engine-url", "localhost:8000"), "http://"),
        (("--seed", "-1"), "--seed"),
        (("--voice", "./gone.wav"), "--voice is './gone.wav', and there is no such file.* or the name"),
        (("--voice", "/"), "--voice"),
        (("--voice-dir", "/dev/null"), "--voice-dir /dev/null is not a folder"),
        (("--voice-memory-mb", "-1"), "--voice-memory-mb"),
        (("--voice-memory-mb", "nan"), "--voice-memory-mb"),
        (("--device", "gpu"), "--device is 'gpu'; it must be cpu, cuda"),
    ],
)
def test_what_cannot_work_is_refused_by_the_flags_name(flags: tuple[str, ...], word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        settings(*flags)


def test_an_unreadable_environment_variable_is_refused_by_its_name() -> None:
    with pytest.raises(SettingsError, match="STEP_AUDIO_PORT"):
        settings(STEP_AUDIO_PORT="eight thousand")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("example.org", False)],
)  # fmt: skip
def test_loopback_is_told_from_the_rest(host: str, loopback: bool) -> None:
    assert settings("--host", host).on_loopback is loopback


def test_a_flag_that_is_not_given_leaves_nothing_behind() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, ["top_p", "greedy", "host"])
    assert vars(parser.parse_args([])) == {}
    assert vars(parser.parse_args(["--top_p", "0.5"])) == {"top_p": 0.5}
    with pytest.raises(SystemExit):
        parser.parse_args(["--port", "1"])


def test_help_tells_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings("--help")
    words = " ".join(capsys.readouterr().out.split())
    ours = settings()
    for default in (ours.sampling.repetition_penalty, ours.host, ours.port, ours.limits.max_body_mb, SYSTEM_PROMPT):
        assert f"(default: {default})" in words
    assert f"(default: {GPU_SLOTS} on a GPU, {CPU_SLOTS} on a CPU)" in words


def test_settings_need_the_standard_library_alone() -> None:
    program = (
        "import sys; import sidecar.settings;"
        "ours = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names);"
        "print(*sorted(name for name in ours if not name.startswith('_')))"
    )
    answer = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["sidecar"]


def test_a_recording_that_fills_the_longest_context_is_within_the_limits() -> None:
    limits = LimitSettings()
    turns_tokens = 8  # the turns around it have at least as many
    longest_s = longest_recording_s(16_384 - turns_tokens)
    assert longest_s <= limits.max_recording_seconds <= longest_s + 1
    assert limits.max_body_bytes > longest_s * 48_000 * 2 * 2, "as 16-bit stereo"
    assert limits.max_body_bytes > longest_s * 16_000 * 2 * 4 / 3, "as base64 in a chat"
    assert longest_s * 48_000 * 2 <= MAX_VALUES
