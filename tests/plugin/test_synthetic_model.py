"""What the synthetic model says, run as an ordinary Qwen2 under ordinary sampling: rhythm, choice, end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from step_audio_vllm import synthetic
from step_audio_vllm.vocabulary import SPEECH_PAD_CODE, Vocabulary

MOST_CODES = 250  # 10 s
MOST_WRITTEN_TOKENS = 100


@dataclass(frozen=True)
class Sampled:
    """A checkpoint, and a sampler with the usual knobs and no other."""

    model: Any
    tokenizer: Any
    vocabulary: Vocabulary

    @torch.inference_mode()
    def replies(
        self, prompt: str, *, rows: int = 1, temperature: float = 0.0, repetition_penalty: float = 1.0, seed: int = 0
    ) -> list[list[int]]:
        """Ids up to the end of turn, for `rows` draws; a reply that goes on for 400 tokens is returned as it is."""
        ids = torch.tensor([self.tokenizer(prompt)["input_ids"]] * rows)
        generator = torch.Generator().manual_seed(seed)
        seen = torch.zeros(rows, self.model.config.vocab_size, dtype=torch.bool).scatter(1, ids, True)
        written: list[torch.Tensor] = []
        past = None
        while len(written) < 400 and not self._all_ended(written):
            out = self.model(input_ids=ids, past_key_values=past, use_cache=True)
            past, logits = out.past_key_values, out.logits[:, -1].float()
            weaker = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
            logits = torch.where(seen, weaker, logits)
            if temperature == 0:
                ids = logits.argmax(-1, keepdim=True)
            else:
                ids = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
            seen.scatter_(1, ids, True)
            written.append(ids)
        return [self._until_end(row) for row in torch.cat(written, 1).tolist()]

    def _all_ended(self, written: Sequence[torch.Tensor]) -> bool:
        return bool(written) and bool((torch.cat(list(written), 1) == self.vocabulary.end_of_turn).any(1).all())

    def _until_end(self, ids: list[int]) -> list[int]:
        end = self.vocabulary.end_of_turn
        return ids[: ids.index(end) + 1] if end in ids else ids

    def speech_codes(self, ids: list[int]) -> list[int]:
        return [code for code in map(self.vocabulary.speech_code, ids) if code is not None]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Steps this small are slower on many threads, and on a busy machine sixty times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Sampled:
    folder: Path = tmp_path_factory.mktemp("synthetic") / "tiny"
    synthetic.write_checkpoint(folder, "tiny")
    config = json.loads((folder / "config.json").read_bytes())["text_config"]
    sizes = {
        key: config[key]
        for key in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "vocab_size",
            "num_attention_heads",
            "num_key_value_heads",
            "rms_norm_eps",
        )
    }
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, rope_parameters=rope)).to(torch.bfloat16).eval()
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if name.startswith(("model.", "lm_head."))})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Sampled(model, tokenizer, Vocabulary.from_ids(tokenizer.get_vocab()))


def turns(text: str, *, spoken: bool) -> str:
    system = "<|BOT|>system\nYou are a helpful assistant.<|EOT|>"
    return f"{system}<|BOT|>human\n{text}<|EOT|><|BOT|>assistant\n{'<tts_start>' if spoken else ''}"


def assert_spoken_in_the_models_format(sampled: Sampled, ids: list[int]) -> None:
    """t a a a a, t a a a a, ..., <tts_end>, <|EOT|>, with the last pair of places padded."""
    vocabulary = sampled.vocabulary
    pad_code = vocabulary.first_speech_id + SPEECH_PAD_CODE
    assert ids[-2:] == [vocabulary.tts_end, vocabulary.end_of_turn]
    groups = [ids[start : start + 5] for start in range(0, len(ids) - 2, 5)]
    for group in groups:
        assert len(group) == 5
        assert vocabulary.speech_code(group[0]) is None
        assert not vocabulary.is_silent(group[0]) or group is groups[-1]
        assert all(vocabulary.speech_code(code) is not None for code in group[1:4])
    assert groups[-1][0] == vocabulary.tts_pad
    assert [group[4] == pad_code for group in groups] == [False] * (len(groups) - 1) + [True]
    assert len(sampled.speech_codes(ids)) <= MOST_CODES


@pytest.mark.parametrize(("temperature", "repetition_penalty"), [(0.7, 1.05), (1.5, 1.0), (1.5, 1.3)])
def test_speech_keeps_rhythm_and_ends_however_it_is_sampled(
    sampled: Sampled, temperature: float, repetition_penalty: float
) -> None:
    replies = sampled.replies(
        turns("Tell me a story.", spoken=True), rows=12, temperature=temperature, repetition_penalty=repetition_penalty
    )
    for reply in replies:
        assert_spoken_in_the_models_format(sampled, reply)
    assert len(set(map(tuple, replies))) == len(replies), "draws differ"


@pytest.mark.parametrize("text", ["", "a", "My text never changes. noise, speech! ♪ la ", "你好" * 50, "word " * 300])
def test_speech_keeps_rhythm_and_ends_for_any_text_when_greedy(sampled: Sampled, text: str) -> None:
    (reply,) = sampled.replies(turns(text, spoken=True))
    assert_spoken_in_the_models_format(sampled, reply)


def test_what_is_said_depends_on_the_prompt_and_on_nothing_else(sampled: Sampled) -> None:
    first, again, other = (sampled.replies(turns(text, spoken=True))[0] for text in ("Hello", "Hello", "Good morning"))
    assert first == again
    assert sampled.speech_codes(first) != sampled.speech_codes(other)


def test_the_spoken_words_say_that_this_is_noise(sampled: Sampled) -> None:
    (reply,) = sampled.replies(turns("Who are you?", spoken=True))
    said = sampled.tokenizer.decode([token for token in reply if token < sampled.vocabulary.first_control_id])
    assert "test model" in said
    assert "noise" in said
    assert "♪" in said


@pytest.mark.parametrize(
    "prompt",
    [
        turns("Hello", spoken=False),
        "Once upon a time",
        "This is noise",
        "hear real answers.",
        "<|BOT|>assistant\n\n",
        turns("Hi", spoken=True) + "<tts_end>",
        "<audio_start><audio_end>",
        "\n",
    ],
)
def test_any_other_prompt_is_answered_in_a_few_words(sampled: Sampled, prompt: str) -> None:
    replies = sampled.replies(prompt) + sampled.replies(prompt, rows=4, temperature=1.5, repetition_penalty=1.3)
    for reply in replies:
        assert reply[-1] == sampled.vocabulary.end_of_turn
        assert len(reply) <= MOST_WRITTEN_TOKENS
        assert all(token < sampled.vocabulary.first_control_id for token in reply)
        # after <tts_end> the turn is over, everything else gets the whole sentence
        assert prompt.endswith("<tts_end>") or sampled.tokenizer.decode(reply[:-1]).startswith(("I am", "This is"))


@pytest.mark.parametrize("opening", ["\n<think>\n", "<think>\n", "<think>"])
def test_a_prompt_that_opens_a_thought_gets_a_thought_and_then_the_answer(sampled: Sampled, opening: str) -> None:
    prompt = turns("Hi", spoken=False) + opening
    for reply in sampled.replies(prompt) + sampled.replies(prompt, rows=4, temperature=1.5, repetition_penalty=1.3):
        assert reply[-1] == sampled.vocabulary.end_of_turn
        thought, tag, answer = sampled.tokenizer.decode(reply[:-1]).partition("</think>\n\n")
        assert tag and "not" in thought
        assert answer.startswith(("I am", "This is"))


def test_no_forbidden_token_comes_near_even_with_strong_knobs(sampled: Sampled) -> None:
    ids = torch.tensor(
        [sampled.tokenizer(turns("Hello", spoken=True))["input_ids"] + sampled.replies(turns("Hello", spoken=True))[0]]
    )
    with torch.inference_mode():
        logits = sampled.model(input_ids=ids).logits[0].float()  # (tokens, vocabulary)
    allowed = logits.max(-1).values
    assert allowed.min() > -10
    forbidden = logits.masked_fill(logits > -30, -torch.inf)
    assert forbidden.max() < -50, "a gap of 40, at temperature 1.5, leaves no chance to any of 7,000 tokens"
