"""Step-Audio 2 for vLLM. Importing this package imports neither torch nor vLLM."""

from __future__ import annotations

from pathlib import Path

MODEL_TYPE = "step_audio_2"
ARCHITECTURE = "StepAudio2ForCausalLM"

#: Mini's chat format; `siblings` knows the others. Plain vLLM finds each by itself once `register` has run; one can
#: also be given as `--chat-template`, which wins over a template inside the model folder.
CHAT_TEMPLATE = Path(__file__).parent / "chat_template.jinja"


def register() -> None:
    """Make Step-Audio 2 known to this process's vLLM: its config, model class, chat templates and parsers.

    vLLM calls it through the entry point group `vllm.general_plugins` in each of its processes, some of them more
    than once. The classes for vLLM are named, not imported, so that no process loads what it doesn't need.
    """
    from transformers import AutoConfig  # noqa: PLC0415
    from vllm import ModelRegistry  # noqa: PLC0415
    from vllm.reasoning import ReasoningParserManager  # noqa: PLC0415
    from vllm.tool_parsers import ToolParserManager  # noqa: PLC0415

    from step_audio_vllm import compat, siblings  # noqa: PLC0415
    from step_audio_vllm.config import StepAudio2Config  # noqa: PLC0415

    AutoConfig.register(MODEL_TYPE, StepAudio2Config, exist_ok=True)
    compat.register_config(MODEL_TYPE, StepAudio2Config)
    compat.register_chat_template(MODEL_TYPE, siblings.chat_template)
    ReasoningParserManager.register_lazy_module(
        siblings.REASONING_PARSER, "step_audio_vllm.reasoning_parser", "StepAudio2ReasoningParser"
    )
    ToolParserManager.register_lazy_module(siblings.TOOL_PARSER, "step_audio_vllm.tool_parser", "StepAudio2ToolParser")
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"step_audio_vllm.model:{ARCHITECTURE}")
