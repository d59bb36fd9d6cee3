"""Writes a synthetic checkpoint in the real file format: `python -m step_audio_vllm.synthetic DIR --size tiny`.

Its token2wav part is written by its twin, `python -m sidecar.token2wav.synthetic DIR`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from step_audio_vllm.synthetic_safetensors import bfloat16_file
from step_audio_vllm.synthetic_script import THOUGHT_OPENINGS, Script, all_pieces, write_script
from step_audio_vllm.synthetic_tokenizer import token_ids, tokenizer_config, tokenizer_json, vocabulary_name
from step_audio_vllm.synthetic_weights import ModelSize, model_tensors
from step_audio_vllm.vocabulary import END_OF_TEXT

logger = logging.getLogger(__name__)

#: Raise it with every change to what is written: folders of another version are written anew.
VERSION = 2

#: Says what a synthetic folder is, and whether it was written to its end.
MARKER = "synthetic.json"

SIZES = {
    "tiny": ModelSize(
        hidden_size=384,
        intermediate_size=512,
        layers=2,
        heads=6,
        kv_heads=2,
        vocab_size=7424,
        encoder_width=64,
        encoder_heads=4,
        encoder_layers=2,
    ),
    "full": ModelSize(
        hidden_size=3584,
        intermediate_size=18944,
        layers=28,
        heads=28,
        kv_heads=4,
        vocab_size=158720,
        encoder_width=1280,
        encoder_heads=20,
        encoder_layers=32,
    ),
}

_DESCRIPTION = """\
Write a synthetic checkpoint in the file format of Step-Audio 2 mini. It has learnt nothing: it repeats one sentence
about itself, and its voice is noise. Written twice with the same seed it is the same, byte for byte. A folder that is
complete already is left as it is.

  tiny   under 30 MB with its token2wav part; runs on a laptop's CPU. Random weights that keep the real model's output
         format (speech between text, then the end). For the demo and for tests.
  full   the real model's exact sizes, and no weights for the language model: start vLLM with --load-format dummy.
         For measuring speed and memory on a GPU. What it says is noise, in text too.

python -m sidecar.token2wav.synthetic writes the token2wav part, which turns speech tokens into sound.
"""


def config_json(size: ModelSize, end_of_text_id: int) -> dict[str, Any]:
    """The contents of config.json."""
    return {
        "architectures": ["StepAudio2ForCausalLM"],
        "model_type": "step_audio_2",
        "torch_dtype": "bfloat16",
        "text_config": {
            "hidden_size": size.hidden_size,
            "intermediate_size": size.intermediate_size,
            "num_attention_heads": size.heads,
            "num_attention_groups": size.kv_heads,
            "num_key_value_heads": size.kv_heads,
            "num_hidden_layers": size.layers,
            "max_seq_len": size.context_tokens,
            "max_position_embeddings": size.context_tokens,
            "vocab_size": size.vocab_size,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "rope_scaling": None,
            "eos_token_id": end_of_text_id,
            "pad_token_id": end_of_text_id,
            "torch_dtype": "bfloat16",
        },
        "audio_encoder_config": {
            "n_mels": size.mel_bins,
            "n_audio_ctx": size.encoder_frames,
            "n_audio_state": size.encoder_width,
            "n_audio_head": size.encoder_heads,
            "n_audio_layer": size.encoder_layers,
            "n_codebook_size": 4096,
            "llm_dim": size.hidden_size,
            "kernel_size": size.adapter_kernel,
            "adapter_stride": size.adapter_stride,
        },
    }


def checkpoint_files(size: ModelSize, *, seed: int, with_weights: bool) -> dict[str, bytes]:
    """Every file of the language model's part, by name."""
    tokenizer = tokenizer_json(all_pieces())
    ids = token_ids(tokenizer)
    files = {
        "config.json": _json(config_json(size, ids[END_OF_TEXT])),
        "tokenizer.json": _json(tokenizer),
        "tokenizer_config.json": _json(tokenizer_config(size.context_tokens)),
    }
    if with_weights:
        files["model.safetensors"] = bfloat16_file(model_tensors(size, script(), ids, seed))
    return files


def script() -> Script:
    """What the model says, in the names of its tokenizer."""
    return write_script({piece: vocabulary_name(piece) for piece in (*all_pieces(), *THOUGHT_OPENINGS)})


def write_checkpoint(folder: Path, size: str, *, seed: int = 0) -> bool:
    """Write the language model's part into `folder`; false if it was complete already.

    Each file appears under its name only when it is whole, and the marker says so when all are.

    Raises:
        FileExistsError: the folder holds a checkpoint that this did not write.
    """
    wanted = {"version": VERSION, "size": size, "seed": seed}
    marker = folder / MARKER
    if not marker.exists() and (folder / "config.json").exists():
        raise FileExistsError(f"{folder} holds a checkpoint that is not synthetic; choose another folder")
    if marker.exists() and json.loads(marker.read_bytes()) == wanted | {"complete": True}:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    _put(marker, _json(wanted | {"complete": False}))
    (folder / "model.safetensors").unlink(missing_ok=True)
    for name, contents in checkpoint_files(SIZES[size], seed=seed, with_weights=size == "tiny").items():
        _put(folder / name, contents)
    _put(marker, _json(wanted | {"complete": True}))
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m step_audio_vllm.synthetic",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to write; made if it isn't there")
    parser.add_argument("--size", choices=sorted(SIZES), required=True, help="tiny or full, see above")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: %(default)s)")
    wanted = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        written = write_checkpoint(wanted.folder, wanted.size, seed=wanted.seed)
    except OSError as error:
        logger.error("cannot write a synthetic checkpoint: %s", error)
        return 1
    logger.info("%s %s", wanted.folder, "written" if written else "is complete already")
    return 0


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def _put(path: Path, contents: bytes) -> None:
    """Write a file that is never seen half written, not even by another process writing the same."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(contents)
    unfinished.replace(path)


if __name__ == "__main__":
    sys.exit(main())
