"""What importing and registering the plugin does to a process."""

from __future__ import annotations

import subprocess
import sys

from step_audio_vllm import ARCHITECTURE, CHAT_TEMPLATE


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_brings_neither_torch_nor_vllm() -> None:
    code = (
        "import sys, step_audio_vllm, step_audio_vllm.vocabulary;"
        "print({'torch', 'vllm', 'transformers'} & {*sys.modules})"
    )
    assert run(code) == "set()"


def test_registering_twice_equals_registering_once_and_does_not_import_the_model() -> None:
    code = (
        "import sys, step_audio_vllm as s; s.register(); s.register();"
        "from vllm import ModelRegistry; from transformers import AutoConfig;"
        "print(s.ARCHITECTURE in ModelRegistry.get_supported_archs(), AutoConfig.for_model(s.MODEL_TYPE).model_type,"
        "      'step_audio_vllm.model' in sys.modules)"
    )
    assert run(code).splitlines()[-1] == "True step_audio_2 False"
    assert ARCHITECTURE == "StepAudio2ForCausalLM"


def test_the_chat_template_is_where_the_constant_says() -> None:
    assert CHAT_TEMPLATE.read_text(encoding="utf-8").startswith("{#-")
