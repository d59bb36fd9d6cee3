"""An ONNX network with one output, on one CPU thread: it runs once a voice, beside everything that is urgent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sidecar.errors import CheckpointError
from sidecar.token2wav.checkpoint_file import require_file


class OnnxModel:
    """Inputs and outputs are taken by position: exports of the same network name them differently.

    Raises:
        CheckpointError: the file is missing, broken, or takes another number of inputs.
    """

    def __init__(self, path: Path, *, inputs: int) -> None:
        require_file(path)
        # newer builds send their makers what is run with them unless they are told not to
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base below Exception
            raise CheckpointError(
                f"{path} ({path.stat().st_size:,} bytes) is no ONNX network that loads: it is truncated or of another "
                f"kind ({str(error).splitlines()[0]}); download it again"
            ) from error
        self._names = [value.name for value in self._session.get_inputs()]
        if len(self._names) != inputs:
            raise CheckpointError(f"{path} has {len(self._names)} inputs ({', '.join(self._names)}), not {inputs}")

    def run(self, *values: NDArray[Any]) -> NDArray[Any]:
        """Output 0 for these inputs."""
        return np.asarray(self._session.run(None, dict(zip(self._names, values, strict=True)))[0])
