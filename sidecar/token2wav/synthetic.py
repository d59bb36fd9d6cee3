"""Writes the token2wav part of a synthetic checkpoint: `python -m sidecar.token2wav.synthetic DIR --size tiny`.

The language model's part is written by its twin, `python -m step_audio_vllm.synthetic DIR`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidecar.token2wav.config import EncoderConfig, EstimatorConfig, FlowConfig
from sidecar.token2wav.synthetic_onnx import speaker_model, speech_tokenizer
from sidecar.token2wav.synthetic_voice import vowel_recording
from sidecar.token2wav.synthetic_weights import flow_tensors, vocoder_tensors
from sidecar.token2wav.vocoder import HiftConfig

logger = logging.getLogger(__name__)

#: Raise it with every change to what is written: folders of another version are written anew.
VERSION = 1

#: Says what a synthetic folder is, and whether it was written to its end.
MARKER = "synthetic.json"

VOICE_SECONDS = 3.0

SIZES = {
    "tiny": (
        FlowConfig(
            input_size=64,
            vocab_size=6561,
            encoder=EncoderConfig(
                input_size=64, output_size=64, attention_heads=4, linear_units=128, num_blocks=2, num_up_blocks=1
            ),
            estimator=EstimatorConfig(depth=2, num_heads=2, head_dim=16, hidden_size=48),
        ),
        HiftConfig(base_channels=32, f0_channels=24),
    ),
    "full": (
        FlowConfig(
            input_size=512,
            vocab_size=6561,
            encoder=EncoderConfig(
                input_size=512, output_size=512, attention_heads=8, linear_units=2048, num_blocks=6, num_up_blocks=4
            ),
            estimator=EstimatorConfig(depth=16, num_heads=8, head_dim=64, hidden_size=512),
        ),
        HiftConfig(base_channels=512, f0_channels=512),
    ),
}

_DESCRIPTION = """\
Write DIR/token2wav, the part of a synthetic checkpoint that turns speech tokens into sound, in the file format of
Step-Audio 2 mini. Its weights are random: its voice is noise. Written twice with the same seed it is the same, byte for
byte. A folder that is complete already is left as it is.

  tiny   a few MB; runs on a laptop's CPU. For the demo and for tests.
  full   the real model's exact sizes (flow 623 MB, vocoder 83 MB). For measuring speed and memory on a GPU.

Speaker model and speech tokenizer are small stand-ins in both. python -m step_audio_vllm.synthetic writes the rest.
"""

_FLOW_YAML = """\
flow: !new:cosyvoice2.flow.flow.CausalMaskedDiffWithXvec
  input_size: {flow.input_size}
  output_size: {flow.output_size}
  spk_embed_dim: {flow.spk_embed_dim}
  output_type: mel
  vocab_size: {flow.vocab_size}
  encoder: !new:cosyvoice2.transformer.upsample_encoder_v2.UpsampleConformerEncoderV2
    input_size: {encoder.input_size}
    output_size: {encoder.output_size}
    input_layer: linear
    pre_lookahead_len: 3
    num_blocks: {encoder.num_blocks}
    num_up_blocks: {encoder.num_up_blocks}
    up_stride: 2
    up_scale_factor: 2
    attention_heads: {encoder.attention_heads}
    pos_enc_layer_type: rel_pos_espnet
    selfattention_layer_type: rel_selfattn
    key_bias: true
    linear_units: {encoder.linear_units}
    dropout_rate: 0.1
    positional_dropout_rate: 0.1
    attention_dropout_rate: 0.1
    normalize_before: true
  decoder: !new:cosyvoice2.flow.flow_matching.CausalConditionalCFM
    inference_cfg_rate: {flow.cfg_rate}
    estimator: !new:cosyvoice2.flow.decoder_dit.DiT
      in_channels: {estimator.in_channels}
      out_channels: {estimator.out_channels}
      mlp_ratio: {estimator.mlp_ratio}
      depth: {estimator.depth}
      num_heads: {estimator.num_heads}
      head_dim: {estimator.head_dim}
      hidden_size: {estimator.hidden_size}
"""


def flow_yaml(flow: FlowConfig) -> str:
    """The contents of flow.yaml."""
    return _FLOW_YAML.format(flow=flow, encoder=flow.encoder, estimator=flow.estimator)


def write_token2wav(model_folder: Path, size: str, *, seed: int = 0) -> bool:
    """Write `token2wav/` into a checkpoint's folder; false if it was complete already.

    Each file appears under its name only when it is whole, and the marker says so when all are.

    Raises:
        FileExistsError: the folder holds a token2wav that this did not write.
    """
    folder = model_folder / "token2wav"
    wanted = {"version": VERSION, "size": size, "seed": seed}
    marker = folder / MARKER
    if not marker.exists() and (folder / "flow.yaml").exists():
        raise FileExistsError(f"{folder} holds weights that are not synthetic; choose another folder")
    if marker.exists() and json.loads(marker.read_bytes()) == wanted | {"complete": True}:
        return False
    (folder / "voices").mkdir(parents=True, exist_ok=True)
    _put(marker, _bytes(_json(wanted | {"complete": False})))
    for name, write in _files(size, seed).items():
        _put(folder / name, write)
    _put(marker, _bytes(_json(wanted | {"complete": True})))
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sidecar.token2wav.synthetic",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="the checkpoint's folder; made if it isn't there")
    parser.add_argument("--size", choices=sorted(SIZES), required=True, help="tiny or full, see above")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: %(default)s)")
    wanted = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        written = write_token2wav(wanted.folder, wanted.size, seed=wanted.seed)
    except OSError as error:
        logger.error("cannot write a synthetic token2wav: %s", error)
        return 1
    logger.info("%s %s", wanted.folder / "token2wav", "written" if written else "is complete already")
    return 0


def _files(size: str, seed: int) -> dict[str, Callable[[Path], None]]:
    """For each file of the folder, what writes it."""
    flow, vocoder = SIZES[size]
    return {
        "flow.yaml": _bytes(flow_yaml(flow).encode()),
        "flow.pt": lambda path: _save(flow_tensors(flow, seed), path),
        "hift.pt": lambda path: _save(vocoder_tensors(vocoder, seed), path),
        "campplus.onnx": _bytes(speaker_model(seed)),
        "speech_tokenizer_v2_25hz.onnx": _bytes(speech_tokenizer(seed)),
        "voices/default.wav": _bytes(vowel_recording(VOICE_SECONDS)),
    }


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save(tensors, path)


def _bytes(contents: bytes) -> Callable[[Path], None]:
    return lambda path: _write(path, contents)


def _write(path: Path, contents: bytes) -> None:
    path.write_bytes(contents)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode()


def _put(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file that is never seen half written.

    It is written under its own name in a folder of its own: torch.save puts the file's name into the file.
    """
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as unfinished:
        write(Path(unfinished, path.name))
        Path(unfinished, path.name).replace(path)


if __name__ == "__main__":
    sys.exit(main())
