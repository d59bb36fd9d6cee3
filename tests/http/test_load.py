"""The load benchmark counts right, against a real server. What it measures is not judged here."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from functools import partial
from pathlib import Path

import load
import pytest
from asks import Wanted, chat, streamed, whole
from cpu_time import cpu_time
from heard import Sound
from listener import Ask, Failed, Server, listen
from load_report import Measured, Reply, numbers, plot, table, write_json
from load_run import Load, Run
from playback import Arrival
from speech_fixtures import StartServer
from speech_parts import ERROR_SEED, GatedEngine
from speech_server import SpeechServer

from sidecar.errors import Full

REPLY_S = 1.6
ASK = streamed(Wanted(), 0)


def heard_of(server: SpeechServer, ask: Ask, timeout_s: float = 60) -> Sound:
    heard = ask.heard()
    assert isinstance(heard, Sound)
    asyncio.run(listen(Server.from_url(server.url), ask, heard, timeout_s=timeout_s))
    return heard


def measured(server: SpeechServer, load_: Load, wanted: Wanted | None = None) -> Measured:
    asking = partial(streamed, wanted or Wanted(max_tokens=(500, 500)))
    return asyncio.run(Run(Server.from_url(server.url), asking, load_, lambda: cpu_time(os.getpid())).measure())


def release(engine: GatedEngine, after_s: float, hold_at: int | None = None) -> threading.Timer:
    timer = threading.Timer(after_s, lambda: setattr(engine, "hold_at", hold_at))
    timer.start()
    return timer


def test_the_first_sound_is_not_the_header(server: SpeechServer, engine: GatedEngine) -> None:
    engine.hold_at = 0
    release(engine, 0.4)
    heard = heard_of(server, ASK)
    assert heard.first_s is not None and heard.first_s > 0.4
    assert heard.audio_s == REPLY_S


def test_chunks_are_told_apart_by_when_they_were_written(server: SpeechServer, engine: GatedEngine) -> None:
    engine.hold_at = 20
    release(engine, 0.8)
    first, *later = heard_of(server, ASK).arrivals
    assert first.at_s < 0.8 < min(arrival.at_s for arrival in later)
    assert sum(arrival.samples for arrival in (first, *later)) == REPLY_S * 24_000


@pytest.mark.parametrize("response_format", ["wav", "pcm"])
def test_streamed_and_whole_replies_are_as_long(server: SpeechServer, response_format: str) -> None:
    wanted = Wanted(response_format=response_format)
    assert heard_of(server, streamed(wanted, 0)).audio_s == REPLY_S
    one_piece = heard_of(server, whole(wanted, 0))
    assert one_piece.audio_s == REPLY_S and one_piece.arrivals[0].at_s > 0


def test_a_recording_is_sent_along(server: SpeechServer, engine: GatedEngine, recording: bytes, tmp_path: Path) -> None:
    file = tmp_path / "question.wav"
    file.write_bytes(recording)
    assert heard_of(server, streamed(Wanted(recording=file, max_tokens=(77, 77)), 3)).audio_s == REPLY_S
    asked = json.dumps(engine.requests[-1].messages)
    assert "input_audio" in asked and "3. Good evening" in asked
    assert engine.requests[-1].sampling.max_tokens == 77
    body = json.loads(chat(Wanted(recording=file), 4).body)
    assert [part["type"] for part in body["messages"][0]["content"]] == ["input_audio", "text"]
    assert body["messages"][0]["content"][1]["text"].startswith("4. ")


def test_failures_are_told_apart_by_kind(server: SpeechServer, engine: GatedEngine) -> None:
    def failing(ask: Ask, timeout_s: float = 60) -> str:
        with pytest.raises(Failed) as failed:
            heard_of(server, ask, timeout_s)
        return str(failed.value)

    body = json.dumps({"text": "Hello", "streaming": True, "seed": ERROR_SEED}).encode()
    assert failing(Ask("/generate", ASK.content_type, body, ASK.heard)) == "cut short"
    assert failing(Ask("/generate", ASK.content_type, b"{", ASK.heard)) == "400 invalid_request_error"
    assert failing(Ask("/nowhere", ASK.content_type, b"", ASK.heard)).startswith("404")
    engine.hold_at = 0
    assert failing(ASK, timeout_s=0.3) == "not over within 0.3 s"
    engine.hold_at = None
    engine.refusal = Full("no slot")
    assert failing(ASK) == "503 full"
    engine.reset([])
    assert failing(ASK) == "nothing was said"
    with pytest.raises(Failed, match="no connection: "):
        asyncio.run(listen(Server("127.0.0.1", 1), ASK, ASK.heard(), timeout_s=5))


def test_listeners_ask_again_until_enough_was_counted(server: SpeechServer, engine: GatedEngine) -> None:
    found = measured(server, Load(listeners=3, stagger_s=0.1, warm_up=3, requests=7))
    assert len(found.replies) == 7 and not found.failures
    assert len(engine.requests) > 3 + 7  # who is done asks again while others are still counted
    told = numbers(found)
    assert 1 < told["under_way_mean"] <= 3
    assert told["rtf"]["p50"] > 0 and told["first_s"]["p95"] <= told["first_s"]["max"]
    assert told["reply_audio_s"]["p50"] == REPLY_S
    assert told["audio_s_per_s"] * told["seconds"] >= 7 * REPLY_S
    assert told["server_cpu_ms_per_audio_s"] > told["client_cpu_ms_per_audio_s"] * 0.9  # one process is both here


def test_a_gap_is_found_where_the_model_stood_still(server: SpeechServer, engine: GatedEngine) -> None:
    engine.hold_at = 20
    release(engine, 2.0)
    found = measured(server, Load(warm_up=0, requests=1))
    told = numbers(found)
    assert told["streams_without_gap"] == 0 and told["chunks_in_time"] < 1
    assert 0.5 < told["underrun_s"]["max"] < 2.0


def test_strangers_come_at_their_rate_however_slow_the_server_is(server: SpeechServer, engine: GatedEngine) -> None:
    engine.hold_at = 0
    release(engine, 1.0)
    found = measured(server, Load(rate_hz=10, warm_up=2, requests=50, seconds=0.8))
    began = [reply.began_s for reply in found.replies]
    assert 2 < len(began) <= 30 and max(began) <= 0.8
    assert all(reply.took_s > 0.1 for reply in found.replies)


def test_a_listener_may_hear_its_reply_out_before_it_asks_again(server: SpeechServer) -> None:
    found = measured(server, Load(warm_up=0, requests=2, play_out=True))
    first, second = found.replies
    assert second.began_s == pytest.approx(first.began_s + (first.first_s or 0) + REPLY_S, abs=0.3)


def test_a_full_server_is_asked_once_a_second_and_counted(start_server: StartServer) -> None:
    with start_server() as server:
        server.engine.refusal = Full("no slot")
        found = measured(server, Load(listeners=2, stagger_s=0, warm_up=0, requests=4))
    assert found.failures == {"503 full": 4}
    assert 0.9 < found.seconds < 5
    assert "4 x 503 full" in table(found)
    assert numbers(found)["rtf"] is None and numbers(found)["streams_without_gap"] is None


def test_cpu_time_is_that_of_the_process_and_of_its_first_thread() -> None:
    def work() -> None:
        until_s = time.thread_time() + 0.3
        while time.thread_time() < until_s:
            pass

    before = cpu_time(os.getpid())
    beside = threading.Thread(target=work)
    beside.start()
    beside.join()
    spent = cpu_time(os.getpid()) - before
    assert spent.process_s > 0.2 and spent.main_thread_s < 0.2
    work()
    assert (cpu_time(os.getpid()) - before).main_thread_s > 0.2


def test_numbers_table_json_and_plot_tell_the_same(tmp_path: Path) -> None:
    fluent = Reply(0.0, 0.1, 1.0, (Arrival(0.1, 48_000), Arrival(0.9, 48_000)), "")
    broken = Reply(0.5, 0.3, 2.0, (Arrival(0.3, 24_000), Arrival(1.8, 24_000)), "")
    refused = Reply(0.6, None, 0.1, (), "503 full")
    found = Measured((fluent, broken, refused), 2.5, 6.0, 0.5, (0.001,), None)
    told = numbers(found)
    assert told["first_s"] == pytest.approx({"p50": 0.2, "p95": 0.29, "p99": 0.298, "max": 0.3})
    assert told["rtf"]["max"] == 1.0 and told["rtf"]["p50"] == pytest.approx(0.625)
    assert told["underrun_s"]["max"] == pytest.approx(0.5)
    assert (told["chunks_in_time"], told["streams_without_gap"]) == (0.5, 0.5)
    assert told["client_busy"] == 0.2 and told["client_cpu_ms_per_audio_s"] == pytest.approx(500 / 6)
    assert told["server_cpu_ms_per_audio_s"] is None
    shown = table(found)
    for words in ("p50 200, p95 290", "1 x 503 full", "50.00 %", "max 500"):
        assert words in shown
    write_json(found, {"recording": Path("a.wav")}, tmp_path / "load.json")
    written = json.loads((tmp_path / "load.json").read_text())
    assert written["replies"][1]["arrivals"] == [[0.3, 24_000], [1.8, 24_000]]
    assert written["asked"] == {"recording": "a.wav"}
    plot(found, tmp_path / "load.png")
    assert (tmp_path / "load.png").stat().st_size > 10_000


def test_the_command_prints_its_table(server: SpeechServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "load.json"
    load.main(["--url", server.url, "--listeners", "2", "--stagger", "0", "--requests", "2", "--json", str(file)])
    assert "| 2 in " in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["asked"]["listeners"] == 2 and written["asked"]["warm_up"] == 2
    assert written["server_cpu_ms_per_audio_s"] > 0
    with pytest.raises(ValueError, match="without a path"):
        Server.from_url("http://127.0.0.1:8000/generate")
