"""Spoken text and its speech codes -> the ids of a speech section, as the model itself writes one.

Groups of one text token and four speech tokens; whichever runs out first is padded to the end of the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from step_audio_vllm.vocabulary import SPEECH_CODES, SPEECH_PAD_CODE, Vocabulary

SPEECH_TOKENS_PER_GROUP = 4


def interleave(text_ids: Sequence[int], speech_codes: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """From `<tts_start>` to `<tts_end>`, both included.

    Raises:
        ValueError: a code outside 0 ... 6560.
    """
    for code in speech_codes:
        if not 0 <= code < SPEECH_CODES:
            raise ValueError(f"speech code {code} is outside 0 ... {SPEECH_CODES - 1}")
    per_group = SPEECH_TOKENS_PER_GROUP
    groups = max(len(text_ids), -(-len(speech_codes) // per_group))
    text = [*text_ids, *[vocabulary.tts_pad] * (groups - len(text_ids))]
    codes = [*speech_codes, *[SPEECH_PAD_CODE] * (groups * per_group - len(speech_codes))]
    ids = [vocabulary.tts_start]
    for group, text_id in enumerate(text):
        ids.append(text_id)
        ids.extend(vocabulary.first_speech_id + code for code in codes[group * per_group : (group + 1) * per_group])
    ids.append(vocabulary.tts_end)
    return ids
