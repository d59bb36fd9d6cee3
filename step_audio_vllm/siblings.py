"""Which chat format a checkpoint wants, told from its name: the one place that knows the three siblings apart.

Step-Audio-2-mini talks in turns. Mini-Think talks in the same turns and thinks in text before it answers. Mini-Base
only continues: no roles, no turns, one piece after another. Nothing inside their files tells them apart, so the name
does: a hub id, a folder, or a snapshot in the hub's cache.

Not confirmed by anything published, and assumed here:
- Base and Think have mini's config.json layout and mini's tokenizer; sizes and ids are read from the files.
- Base ends with its tokenizer's own end token, `<|endoftext|>`. Mini's other stop tokens, `<|EOT|>` and `<|im_end|>`,
  stop it too; a model that knows no turns does not write them.
- `<think>` and `</think>` are plain text, cut into tokens like any text; none of our code looks for their ids.
- Think's turn is opened with newline, `<think>`, newline, as its authors' own inference code does. Their HTTP example
  opens with `<think>` alone and the larger Step-Audio-R1 with `<think>` and newline: a request may choose.
- Think's own system prompt says in words that it shall think; no template adds such words.
- No checkpoint brings a chat template of its own; one that does wins in plain vLLM, and never with the launcher.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from step_audio_vllm import CHAT_TEMPLATE

#: The reasoning parser's name, for vLLM's `--reasoning-parser`.
REASONING_PARSER = "step_audio_2"
#: The tool parser's, for `--enable-auto-tool-choice --tool-call-parser`.
TOOL_PARSER = "step_audio_2"

_NAME = re.compile(r"mini[-_.](base|think)(?![a-z0-9])|[-_.](base|think)$")


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """What a server needs to talk to a checkpoint.

    Attributes:
        template: for vLLM's `--chat-template`.
        template_defaults: for `--default-chat-template-kwargs`: true of every chat unless its request says otherwise.
        reasoning_parser: for `--reasoning-parser`; None for a model that does not think.
        has_turns: without turns, whoever writes an instruction before a text must also write what parts the two.
    """

    template: Path
    template_defaults: Mapping[str, bool] = field(default_factory=dict)
    reasoning_parser: str | None = None
    has_turns: bool = True


CHAT_FORMATS = {
    "mini": ChatFormat(template=CHAT_TEMPLATE),
    "base": ChatFormat(template=CHAT_TEMPLATE.with_name("chat_template_base.jinja"), has_turns=False),
    "think": ChatFormat(
        template=CHAT_TEMPLATE,
        template_defaults={"enable_thinking": True},
        reasoning_parser=REASONING_PARSER,
    ),
}


def chat_format_name(model: str) -> str:
    """The key in `CHAT_FORMATS` for a model's hub id or folder; `mini` for every name that says nothing else."""
    named = _NAME.search(_name(model).casefold())
    return (named[1] or named[2]) if named else "mini"


def chat_template(model: str) -> Path:
    """The template for a model's hub id or folder."""
    return CHAT_FORMATS[chat_format_name(model)].template


def _name(model: str) -> str:
    """The last part of a hub id or folder; for `models--OWNER--NAME/snapshots/HASH` in the hub's cache, NAME."""
    parts = PurePath(model).parts
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].rpartition("--")[2]
    return parts[-1] if parts else ""
