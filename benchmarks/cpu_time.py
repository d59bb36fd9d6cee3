"""How much CPU a process has used, by the kernel's own count. Linux."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CpuTime:
    """Seconds of CPU, user and system, since the process began."""

    process_s: float  # all its threads
    main_thread_s: float  # the first thread alone: in the sidecar the one that runs the event loop

    def __sub__(self, before: CpuTime) -> CpuTime:
        return CpuTime(self.process_s - before.process_s, self.main_thread_s - before.main_thread_s)


def cpu_time(pid: int) -> CpuTime:
    """
    Raises:
        FileNotFoundError: there is no such process on this machine.
    """
    return CpuTime(_seconds(f"/proc/{pid}/stat"), _seconds(f"/proc/{pid}/task/{pid}/stat"))


def _seconds(stat: str) -> float:
    # the second field is the program's name in brackets and may hold anything; utime and stime are fields 14 and 15
    fields = Path(stat).read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
