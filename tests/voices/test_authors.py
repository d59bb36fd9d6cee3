"""The authors' voices, fetched from a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from voice_parts import recording

from sidecar.errors import VoiceUnavailable
from sidecar.voices.authors import AUTHORS_VOICES, Authors, fetch_url
from sidecar.voices.catalogue import Catalogue
from sidecar.voices.folder import VoiceFolder
from sidecar.voices.recording import VoiceRecording
from sidecar.voices.uploads import Uploads
from sidecar.voices.voice import Voice

DATA = recording()
PUBLISHED = (Voice("anna", hashlib.sha256(DATA).hexdigest(), 1.0, True),)


class Site:
    """Serves `data` at /anna.wav, and counts."""

    def __init__(self) -> None:
        self.data = DATA
        self.asked: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                self.send_response(200 if self.path == "/anna.wav" else 404)
                self.send_header("Content-Length", str(len(site.data)))
                self.end_headers()
                self.wfile.write(site.data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/{{name}}.wav"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    site = Site()
    threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield site
    site.server.shutdown()
    site.server.server_close()


def authors(folder: Path, url: str) -> Authors:
    return Authors(folder / "cache", fetch_url, voices=PUBLISHED, url=url)


def test_a_voice_is_fetched_once_and_kept(site: Site, tmp_path: Path) -> None:
    async def ask() -> list[VoiceRecording]:
        first = authors(tmp_path, site.url)
        return await asyncio.gather(*(first.recording("anna") for _ in range(3)))

    assert {recording.data for recording in asyncio.run(ask())} == {DATA}
    assert asyncio.run(authors(tmp_path, site.url).recording("anna")).data == DATA
    assert site.asked == ["/anna.wav"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["anna.wav"]


def test_what_is_fetched_must_be_what_the_authors_published(site: Site, tmp_path: Path) -> None:
    site.data = b"<html>please log in</html>"
    with pytest.raises(VoiceUnavailable, match=r"its sha256 differs\): put http.*anna\.wav into --voice-dir"):
        asyncio.run(authors(tmp_path, site.url).recording("anna"))
    assert not (tmp_path / "cache").exists()


def test_a_kept_file_that_is_damaged_is_fetched_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "anna.wav").write_bytes(DATA[:100])
    assert asyncio.run(authors(tmp_path, site.url).recording("anna")).data == DATA
    assert (tmp_path / "cache" / "anna.wav").read_bytes() == DATA


def test_a_file_that_is_not_there_is_said_in_one_sentence(site: Site, tmp_path: Path) -> None:
    with pytest.raises(VoiceUnavailable, match=r"fetching it failed \(HTTPStatusError: .*404 Not Found") as refused:
        asyncio.run(authors(tmp_path, site.url.replace("{name}", "{name}2")).recording("anna"))
    assert "\n" not in refused.value.message


def test_a_failure_is_not_remembered(site: Site, tmp_path: Path) -> None:
    async def ask(ours: Authors) -> VoiceRecording:
        site.data = b"a page of the hotel's network"
        with pytest.raises(VoiceUnavailable):
            await ours.recording("anna")
        site.data = DATA
        return await ours.recording("anna")

    assert asyncio.run(ask(authors(tmp_path, site.url))).data == DATA


def test_without_a_network_one_sentence_says_what_to_do(free_port: int, tmp_path: Path) -> None:
    ours = authors(tmp_path, f"http://127.0.0.1:{free_port}/{{name}}.wav")
    with pytest.raises(VoiceUnavailable, match=r"fetching it failed \(Connect.*put .* into --voice-dir .*--voice FILE"):
        asyncio.run(ours.recording("anna"))


def test_a_site_that_never_answers_holds_up_nobody_who_wants_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    async def ask(ours: Authors) -> None:
        asking = asyncio.create_task(ours.recording("anna"))
        await asyncio.to_thread(silent.accept)
        asking.cancel()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        asyncio.run(ask(authors(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}/{{name}}.wav")))
    assert time.monotonic() - started < 5


def test_offline_nothing_is_fetched(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(VoiceUnavailable, match=r"fetching it failed \(ConnectionError: HF_HUB_OFFLINE forbids it\)"):
        asyncio.run(authors(tmp_path, site.url).recording("anna"))
    assert site.asked == []


def test_a_folder_that_cannot_be_written_costs_only_fetching_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    ours = authors(tmp_path, site.url)
    assert asyncio.run(ours.recording("anna")).data == asyncio.run(ours.recording("anna")).data == DATA
    assert site.asked == ["/anna.wav"] * 2


def test_a_voice_that_cannot_be_fetched_can_be_uploaded(bare: Path, tmp_path: Path, free_port: int) -> None:
    ours = authors(tmp_path, f"http://127.0.0.1:{free_port}/{{name}}.wav")
    folder = VoiceFolder(None)
    uploads = Uploads(Catalogue(bare, folder, ours.voices, default=None), folder, ours)
    assert uploads.there("anna", VoiceRecording(DATA)) == PUBLISHED[0]
    assert asyncio.run(ours.recording("anna")).data == DATA


def test_both_of_the_authors_voices_are_known_with_their_lengths() -> None:
    assert {voice.name: voice.seconds for voice in AUTHORS_VOICES} == {"default_female": 9.04225, "default_male": 7.7}
