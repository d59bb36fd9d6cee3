"""Step-Audio 2 for vLLM. Importing this package imports neither torch nor vLLM."""

from __future__ import annotations

from pathlib import Path

MODEL_TYPE = "step_audio_2"
ARCHITECTURE = "StepAudio2ForCausalLM"

#: The one chat format. Plain vLLM finds it by itself once `register` has run; it can also be given as
#: `--chat-template`, which wins over a template inside the model folder.
CHAT_TEMPLATE = Path(__file__).parent / "chat_template.jinja"


def register() -> None:
    """Make Step-Audio 2 known to this process's vLLM: its config, its model class and its chat template.

    vLLM calls it through the entry point group `vllm.general_plugins` in each of its processes, some of them more
    than once. The model class is named, not imported, so that the API process stays free of it.
    """
    from transformers import AutoConfig  # noqa: PLC0415
    from vllm import ModelRegistry  # noqa: PLC0415

    from step_audio_vllm import compat  # noqa: PLC0415
    from step_audio_vllm.config import StepAudio2Config  # noqa: PLC0415

    AutoConfig.register(MODEL_TYPE, StepAudio2Config, exist_ok=True)
    compat.register_config(MODEL_TYPE, StepAudio2Config)
    compat.register_chat_template(MODEL_TYPE, CHAT_TEMPLATE)
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"step_audio_vllm.model:{ARCHITECTURE}")
