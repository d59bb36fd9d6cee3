"""What the model is asked to do with a recording that is to be written down or translated.

The instructions are the system turns that the authors use; the recording is the only user turn. What the authors do
not show, and is assumed here: the English target of a translation (their sentence with the word exchanged), and the
two lines that carry a client's own text and words to watch for.
"""

from __future__ import annotations

from typing import Any

from step_audio_vllm import features, siblings

#: What the authors show the model writing down, by ISO 639-1 code. vLLM warns of any other language it knows, and
#: refuses what is no language; the instruction is the same for all.
LANGUAGES = {"en": "English", "zh": "Chinese", "ja": "Japanese"}

#: What it translates to, in the instruction's own words.
TARGETS = {"en": "英文", "zh": "中文"}
DEFAULT_TARGET = "en"

TRANSCRIBE = "请记录下你所听到的语音内容。"
TRANSLATE = "请仔细聆听这段语音，然后将其内容翻译成{target}。"
PROMPT_LINE = "\n参考文本：{text}"
HOTWORDS_LINE = "\n热词：{text}"

#: One block of placeholders each. vLLM cuts a longer recording before the quietest tenth of a second of a clip's last
#: seconds, and the next clip begins at the cut: no sound is lost, none is heard twice. What vLLM calls overlap is how
#: far back it looks; people pause for breath within five seconds, and rarely within its default of one.
CLIP_SECONDS = features.CHUNK_SAMPLES // features.SAMPLE_RATE_HZ
LOOK_BACK_SECONDS = 5


def instruction(*, translate: bool, to_language: str | None = None, prompt: str = "", hotwords: str = "") -> str:
    """The system turn.

    Args:
        to_language: what to translate to, an ISO 639-1 code; English where None.
        prompt: the client's own text about the recording, or what was said before it.
        hotwords: words to expect.

    Raises:
        ValueError: no translation to this language is known, or one is asked for in a transcription.
    """
    if not translate and to_language is not None:
        raise ValueError(
            f"to_language is {to_language!r}, but a transcription stays in its own language; ask /v1/audio/translations"
        )
    target = to_language or DEFAULT_TARGET
    if target not in TARGETS:
        raise ValueError(f"to_language is {target!r}; this model translates to {' and '.join(sorted(TARGETS))}")
    words = TRANSLATE.format(target=TARGETS[target]) if translate else TRANSCRIBE
    lines = ((PROMPT_LINE, prompt), (HOTWORDS_LINE, hotwords))
    return words + "".join(line.format(text=text) for line, text in lines if text)


def prompt_ids(tokenizer: Any, system: str, *, model: str) -> list[int]:
    """The chat prompt of this system turn and one recording, which is one `<audio_patch>` so far.

    Args:
        model: its folder or hub id, which tells its chat format. One that can think is not told to.
    """
    messages = [{"role": "system", "content": system}, {"role": "user", "content": [{"type": "audio"}]}]
    template = siblings.chat_template(model).read_text(encoding="utf-8")
    text = tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def require_plain(tokenizer: Any, text: str, field: str) -> None:
    """Let only text pass that is nothing but text to the tokenizer.

    Raises:
        ValueError: it names a control token, which would become that token in the prompt.
    """
    if not text:
        return
    names = {token_id: name for name, token_id in tokenizer.get_added_vocab().items()}
    found = next((names[token] for token in tokenizer.encode(text, add_special_tokens=False) if token in names), None)
    if found is not None:
        raise ValueError(f"{field} contains {found!r}, the name of one of the model's control tokens; remove it")
