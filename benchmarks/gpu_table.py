"""The final table of gpu.sh out of the JSON files in its folder; what a failed part did not write is a dash.

python benchmarks/gpu_table.py FOLDER
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

#: Of `listeners` each hears its reply out before it asks again; of `requests` so many are under way without a pause.
LOAD = re.compile(r"(listeners|requests)-(\d+)\.json")


def table(folder: Path) -> str:
    """Markdown: single numbers, then a line for each number of listeners."""
    token2wav, one = _read(folder / "token2wav.json"), _read(folder / "one.json")
    rows = [
        ("flow + HiFT, 1 s chunk, batch 1, ms", _step(token2wav, batch=1, tokens=25)),
        ("first chunk of 8 tokens, batch 1, ms", _step(token2wav, batch=1, tokens=8)),
        ("flow + HiFT, 1 s chunks, batch 32, ms", _step(token2wav, batch=32, tokens=25)),
        ("memory a stream, MB", _cell(token2wav, "memory", 0, "mb_per_stream")),
        ("TTFA p50, one listener, ms", _cell(one, "first_s", "p50", factor=1000)),
        ("RTF p50, one listener", _cell(one, "rtf", "p50", digits=3)),
    ]
    lines = [f"{token2wav.get('machine', '')}\n", "| what | measured |", "|---|---|"]
    lines += [f"| {what} | {value} |" for what, value in rows]
    lines += ["", "| load | failed | TTFA p50 / p95 / p99, ms | RTF p50 / p95 | streams without a gap | "
              "worst underrun, ms | sound a second, s | sidecar's CPU ms for 1 s of sound (event loop) | "
              "client's |", "|---" * 9 + "|"]  # fmt: skip
    loads = [(int(found[2]), found[1], path) for path in folder.glob("*.json") if (found := LOAD.match(path.name))]
    return "\n".join([*lines, *(_load_line(f"{count} {kind}", _read(path)) for count, kind, path in sorted(loads))])


def _load_line(name: str, load: dict[str, Any]) -> str:
    ttfa = " / ".join(_cell(load, "first_s", name, factor=1000, digits=0) for name in ("p50", "p95", "p99"))
    rtf = " / ".join(_cell(load, "rtf", name, digits=3) for name in ("p50", "p95"))
    cpu = f"{_cell(load, 'server_cpu_ms_per_audio_s')} ({_cell(load, 'server_main_thread_ms_per_audio_s')})"
    cells = [
        name, str(sum(load.get("failures", {}).values())), ttfa, rtf,
        f"{_cell(load, 'streams_without_gap', factor=100)} %", _cell(load, "underrun_s", "max", factor=1000, digits=0),
        _cell(load, "audio_s_per_s", digits=0), cpu, _cell(load, "client_cpu_ms_per_audio_s"),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _step(token2wav: dict[str, Any], *, batch: int, tokens: int) -> str:
    found = [step for step in token2wav.get("steps", []) if (step["batch"], step["tokens"]) == (batch, tokens)]
    return f"{found[0]['ms']:.2f} ({found[0]['x_real_time']:.0f} x real time)" if found else "-"


def _cell(found: Any, *names: str | int, factor: float = 1, digits: int = 1) -> str:
    for name in names:
        try:
            found = found[name]
        except (KeyError, IndexError, TypeError):
            return "-"
    return "-" if found is None else f"{factor * found:.{digits}f}"


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
