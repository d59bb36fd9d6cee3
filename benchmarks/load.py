"""Many listeners on one server: TTFA, RTF, gaps, and what server and client spend on each second of speech.

    python benchmarks/load.py --listeners 64 --requests 192 --max-tokens 300-500
    python benchmarks/load.py --rate 5 --seconds 60 --json load.json --plot load.png
    python benchmarks/load.py --listeners 8 --ask chat --recording examples/question.wav

With --listeners that many requests are under way at any time: each listener asks again as soon as its reply has
arrived, or, with --play-out, once it would have heard it to the end. With --rate requests come as they do from many
people who know nothing of each other (Poisson), however slow the server is. The first requests warm up and are not
counted, and the load goes on until the last counted reply has ended.

TTFA is timed from before the connection is made to the first read with sound in it: on a streamed wav that is the
second, since the first is the header, which is sent before there is sound.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from asks import ASKS, HEADER_BYTES, TEXT, Wanted
from cpu_time import CpuTime, cpu_time
from listener import Ask, Server
from load_report import Measured, plot, table, write_json
from load_run import Load, Run

from sidecar.settings import PROCESS_ID_HEADER


def server_cpu_reader(url: str) -> Callable[[], CpuTime] | None:
    """Reads the CPU time of the sidecar at this address; None where it is not on this machine.

    Raises:
        httpx.HTTPError: it does not answer, or is not ready.
    """
    ready = httpx.get(f"{url}/ready", timeout=10).raise_for_status()
    pid = int(ready.headers.get(PROCESS_ID_HEADER, 0))
    here = urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
    return (lambda: cpu_time(pid)) if here and Path(f"/proc/{pid}/stat").exists() else None


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--ask", choices=sorted(ASKS), default="streamed", help="what for (default: %(default)s)")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--listeners", type=int, default=Load.listeners, help="requests under way (default: %(default)s)")
    who.add_argument("--rate", type=float, help="requests a second, Poisson, instead of --listeners")
    parser.add_argument(
        "--stagger", type=float, default=Load.stagger_s, help="s in which the listeners begin (default: %(default)s)"
    )
    parser.add_argument("--play-out", action="store_true", help="a listener hears its reply out before it asks again")
    parser.add_argument("--requests", type=int, default=Load.requests, help="to count, at most (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=Load.seconds, help="count those that begin in this time")
    parser.add_argument("--warm-up", type=int, help="requests before that (default: one for each listener; 10 by rate)")
    parser.add_argument(
        "--timeout", type=float, default=Load.timeout_s, help="s a reply may take (default: %(default)s)"
    )
    parser.add_argument("--text", default=TEXT, help="what to read aloud, or to answer")
    parser.add_argument("--recording", type=Path, help="a sound file to answer")
    parser.add_argument("--voice", action="append", default=[], help="who speaks; several take turns")
    parser.add_argument("--format", choices=sorted(HEADER_BYTES), default="wav", help="(default: %(default)s)")
    parser.add_argument(
        "--max-tokens",
        type=lengths,
        metavar="N[-M]",
        help="of a reply, drawn for each from N to M (default: the server's)",
    )
    parser.add_argument("--json", type=Path, help="write the numbers here, with every read of every reply")
    parser.add_argument("--plot", type=Path, help="draw TTFA and sound in hand here; needs matplotlib")
    return parser


def lengths(word: str) -> tuple[int, int]:
    """`400` or `300-500`."""
    low, _, high = word.partition("-")
    return int(low), int(high or low)


def main(argv: Sequence[str] | None = None) -> None:
    given = flags().parse_args(argv)
    load = Load(
        listeners=given.listeners, rate_hz=given.rate, stagger_s=given.stagger, play_out=given.play_out,
        warm_up=given.warm_up if given.warm_up is not None else 10 if given.rate else given.listeners,
        requests=given.requests, seconds=given.seconds, timeout_s=given.timeout,
    )  # fmt: skip
    wanted = Wanted(
        text=given.text, recording=given.recording, voices=tuple(given.voice), response_format=given.format,
        max_tokens=given.max_tokens,
    )  # fmt: skip
    url = given.url.rstrip("/")
    measured = asyncio.run(_measure(url, lambda number: ASKS[given.ask](wanted, number), load))
    print(table(measured))
    asked = {"ask": given.ask, **asdict(load), **asdict(wanted)}
    if given.json:
        write_json(measured, asked, given.json)
    if given.plot:
        plot(measured, given.plot)


async def _measure(url: str, asking: Callable[[int], Ask], load: Load) -> Measured:
    return await Run(Server.from_url(url), asking, load, server_cpu_reader(url)).measure()


if __name__ == "__main__":
    main()
