"""Runs a supervisor on a plan given as JSON: the launcher without its flags, for tests that kill it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vox_serve import supervisor
from vox_serve.command import Command
from vox_serve.mps import MPS_ENVIRONMENT, mps_daemon
from vox_serve.plan import Plan


def main() -> int:
    given = json.loads(sys.argv[1])
    folder = Path(given["folder"])
    make_run_folder = supervisor.make_run_folder

    def noted_run_folder() -> Path:
        made = make_run_folder()
        (folder / "run_folder").write_text(str(made))
        return made

    supervisor.make_run_folder = noted_run_folder
    environment = MPS_ENVIRONMENT if given["mps"] else {}
    plan = Plan(
        prepare=tuple(
            Command(name="prepare", argv=tuple(argv), first_phase="it is being prepared") for argv in given["prepare"]
        ),
        engine=Command(
            name="vllm",
            argv=tuple(given["engine"]),
            first_phase="vLLM is being imported",
            landmarks=(("engine is loading", "vLLM is loading"), ("engine is serving", "")),
            environment=environment,
        ),
        sidecar=Command(
            name="sidecar",
            argv=tuple(given["sidecar"]),
            first_phase="the sidecar is starting",
            environment=environment,
        ),
        model_folder=None if given["prepare"] else "/model",
        ready_url=f"{given['url']}/ready",
        url=given["url"],
        daemon=mps_daemon() if given["mps"] else None,
        sidecar_first=given["sidecar_first"],
        notes=tuple(given["notes"]),
    )
    return supervisor.Supervisor(
        say=lambda line: print(line, file=sys.stderr, flush=True), grace_s=given["grace_s"]
    ).run(plan)


if __name__ == "__main__":
    sys.exit(main())
