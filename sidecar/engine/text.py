"""The model's tokenizer as the sidecar needs it: token -> bytes, how many tokens, and which names are not text."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from sidecar.errors import BadRequest, CheckpointError
from step_audio_vllm.spoken_turn import allowed_ids
from step_audio_vllm.vocabulary import MissingToken, Vocabulary

#: Of one text. No more fits a context of 16,384 tokens, the longest of which stand for 128 characters.
MAX_CHARACTERS = 1 << 21


def byte_of_letter() -> dict[str, int]:
    """GPT-2's byte-level alphabet, backwards: the printable letter that stands for a byte -> that byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    letters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    letters.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return letters


class TextTokenizer:
    """A loaded `tokenizer.json`. It never changes, so threads may share it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """
        Raises:
            MissingToken: it lacks a token that the format is made of.
        """
        self._tokenizer = tokenizer
        ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary = Vocabulary.from_ids(ids)
        self.spoken_ids = allowed_ids(ids)  # that a spoken turn of the history may hold
        self._added: dict[int, str] = {
            token_id: added.content for token_id, added in tokenizer.get_added_tokens_decoder().items()
        }
        self._bytes = self._bytes_by_id(ids)

    @classmethod
    def from_folder(cls, folder: Path) -> TextTokenizer:
        """Read `tokenizer.json` of a checkpoint folder.

        Raises:
            CheckpointError: there is none, or it is not Step-Audio 2's.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: give --model a folder with a Step-Audio 2 checkpoint")
        try:
            return cls(Tokenizer.from_file(str(path)))
        except MissingToken as error:
            raise CheckpointError(f"{path}: {error}") from error
        except Exception as error:  # tokenizers raises bare Exception for a damaged file
            raise CheckpointError(f"{path} cannot be read: {error}; download the checkpoint again") from error

    def _bytes_by_id(self, ids: dict[str, int]) -> list[bytes]:
        letters = byte_of_letter()
        table = [b""] * (max(ids.values()) + 1)
        for name, token_id in ids.items():
            if token_id in self._added:
                table[token_id] = self._added[token_id].encode()
            elif all(letter in letters for letter in name):
                table[token_id] = bytes(letters[letter] for letter in name)
            else:
                table[token_id] = name.encode()
        return table

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; an added token stands for its name, an id without a token for nothing."""
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def encode(self, text: str) -> list[int]:
        """Ids of one piece of text, nothing added; names of added tokens in it become those tokens.

        Raises:
            BadRequest: it is longer than any context.
        """
        if len(text) > MAX_CHARACTERS:
            raise BadRequest(
                f"a text of {len(text):,} characters came; at most {MAX_CHARACTERS:,} are taken: send a shorter text "
                "or conversation",
                code="context_length_exceeded",
            )
        # the form for batches: the other one lets no other thread run, for seconds where a text is long
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def count(self, text: str) -> int:
        return len(self.encode(text))

    def control_token_in(self, text: str) -> str | None:
        """The first added token that this text would become; None for text that is nothing but text.

        The tokenizer itself is asked, so its normalisation and its rules for matching are the ones that count.
        """
        return next((self._added[token_id] for token_id in self.encode(text) if token_id in self._added), None)

    def require_plain(self, text: str, param: str) -> None:
        """Let only text pass that can be nothing but text; `param` names the request's field.

        Raises:
            BadRequest: it names a control token, or holds half of a surrogate pair.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRequest(
                f"{param} holds half of a surrogate pair at character {error.start}; send valid Unicode",
                param=param,
                code="invalid_unicode",
            ) from error
        name = self.control_token_in(text)
        if name is not None:
            raise BadRequest(
                f"{param} contains {name!r}, the name of one of the model's control tokens; remove it, "
                "or write it with a space inside",
                param=param,
                code="control_token",
            )
