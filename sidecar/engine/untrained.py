"""What is asked of a language model that was never trained: the `full` synthetic checkpoint, whose weights are noise.

It would draw speech tokens as seldom as any others, and end at random. So that its replies load the server as real
ones do, they are drawn from four times as many speech tokens as text tokens, and go on to their last allowed token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sidecar.engine.text import TextTokenizer

#: As written by the synthetic checkpoint's writer.
MARKER = "synthetic.json"
#: vLLM 0.26 takes no more than 1,024 ids.
SPEECH_IDS, TEXT_IDS = 819, 205
#: The first ids of a byte-level tokenizer are single bytes, which alone are no text.
FIRST_TEXT_ID = 256


def sampling_of_untrained(folder: Path) -> dict[str, Any]:
    """Fields for every request to this checkpoint's language model; none where its weights are more than noise.

    Raises:
        CheckpointError: it is synthetic and has no usable tokenizer.
    """
    marker = folder / MARKER
    if not marker.is_file() or json.loads(marker.read_bytes()).get("size") != "full":
        return {}
    first_speech_id = TextTokenizer.from_folder(folder).vocabulary.first_speech_id
    speech = range(first_speech_id, first_speech_id + SPEECH_IDS)
    text = range(FIRST_TEXT_ID, FIRST_TEXT_ID + TEXT_IDS)
    return {"allowed_token_ids": [*speech, *text], "ignore_eos": True}
