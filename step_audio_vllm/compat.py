"""Every difference between vLLM 0.26 and 0.33 that we meet. The only file that asks which vLLM this is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def register_config(model_type: str, config_class: type) -> None:
    """Tell vLLM itself, beside transformers, that the config class is ours, so that it never looks for remote code.

    A private table in all versions so far: where it is gone, the registration with transformers is enough.
    """
    try:
        from vllm.transformers_utils.config import _CONFIG_REGISTRY  # noqa: PLC0415
    except ImportError:
        return
    _CONFIG_REGISTRY[model_type] = config_class


def register_chat_template(model_type: str, template_of: Callable[[str], Path]) -> None:
    """Say which template vLLM falls back to when the model folder brings none. Quiet when called again.

    Args:
        template_of: the tokenizer's folder or hub id -> the template.
    """
    from vllm.transformers_utils.chat_templates import registry  # noqa: PLC0415

    if registry.get_chat_template_fallback_path(model_type, "") != template_of(""):
        registry.register_chat_template_fallback_path(model_type, template_of)


def delta_message(**fields: Any) -> Any:
    """A portion of a streamed reply, of vLLM's class. That moved in 0.29; the tool parsers' base knows it in all."""
    from vllm.tool_parsers.abstract_tool_parser import DeltaMessage  # noqa: PLC0415

    return DeltaMessage(**fields)


def processed(features: Any, prompt: Any, tokenizer: Any, keywords: Mapping[str, Any]) -> Any:
    """What `_apply_hf_processor_main` has to return for its features.

    0.26 to 0.28 hand over the prompt, as text or as ids, and want it back as ids, with a flag that says whether the
    placeholders are already in place; False takes the same road as later versions, which want the features alone.
    Delete when 0.28 is no longer supported.
    """
    if "enable_hf_prompt_update" not in keywords:
        return features
    if isinstance(prompt, str):
        prompt = tokenizer.encode(prompt, **(keywords.get("tokenization_kwargs") or {}))
    return prompt, features, False
