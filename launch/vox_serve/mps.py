"""CUDA MPS of our own: NVIDIA's daemon that lets several processes compute on one GPU at the same moment.

Its folders are in the run folder, so that it is nobody else's, and the processes find it by the environment.
"""

from __future__ import annotations

from dataclasses import dataclass

from vox_serve.command import RUN_FOLDER, Command
from vox_serve.machine import MPS_CONTROL

#: For the daemon and for everyone who is to compute through it.
MPS_ENVIRONMENT = {
    "CUDA_MPS_PIPE_DIRECTORY": f"{RUN_FOLDER}/mps",
    "CUDA_MPS_LOG_DIRECTORY": f"{RUN_FOLDER}/mps-log",
}

#: With the variable, the daemon would number the GPUs anew, and its clients' own would name others.
_START = " && ".join(
    [
        "unset CUDA_VISIBLE_DEVICES",
        'mkdir -p "$CUDA_MPS_PIPE_DIRECTORY" "$CUDA_MPS_LOG_DIRECTORY"',
        f"exec {MPS_CONTROL} -d",
    ]
)
_END = f"echo quit | {MPS_CONTROL}"


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """Something that goes on by itself once `start` has ended, until `end` is run."""

    start: Command
    end: Command


def mps_daemon() -> Daemon:
    return Daemon(
        start=Command(
            name="mps", argv=("sh", "-c", _START), environment=MPS_ENVIRONMENT, first_phase="CUDA MPS is being started"
        ),
        end=Command(name="mps", argv=("sh", "-c", _END), environment=MPS_ENVIRONMENT),
    )
