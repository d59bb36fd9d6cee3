"""flow.yaml and flow.pt: read as data, held to what this package builds, refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_token2wav import WEIGHTS, tiny_config
from torch import Tensor

from sidecar.errors import CheckpointError
from sidecar.token2wav.config import EncoderConfig, EstimatorConfig, FlowConfig, load_flow_config
from sidecar.token2wav.flow import FlowNetwork
from sidecar.token2wav.weights import load_flow

YAML = """
flow: !new:cosyvoice2.flow.flow.CausalMaskedDiffWithXvec
  input_size: 64
  output_type: mel
  vocab_size: 257
  encoder: !new:cosyvoice2.transformer.upsample_encoder_v2.UpsampleConformerEncoderV2
    input_size: 64
    output_size: 64
    num_blocks: 2
    num_up_blocks: 1
    linear_units: 128
    dropout_rate: 0.1
    key_bias: true
  decoder: !new:cosyvoice2.flow.flow_matching.CausalConditionalCFM
    inference_cfg_rate: 0.7
    estimator: !new:cosyvoice2.flow.decoder_dit.DiT
      depth: 2
      num_heads: 2
      head_dim: 16
      hidden_size: 48
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "flow.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_flow_yaml_gives_the_sizes_and_the_classes_own_defaults(tmp_path: Path) -> None:
    assert load_flow_config(written(tmp_path, YAML)) == tiny_config()


def test_reading_a_flow_yaml_runs_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    for tag in ("!!python/object/apply:pathlib.Path.touch", "!new:pathlib.Path", "!apply:pathlib.Path"):
        with pytest.raises(CheckpointError):
            load_flow_config(written(tmp_path, f"flow: {tag} [{trap}]"))
    assert not trap.exists()


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("output_type: mel", "output_type: wave", "flow.output_type is 'wave'; this package builds 'mel' only"),
        ("key_bias: true", "key_bias: false", "flow.encoder.key_bias is False"),
        ("depth: 2", "depth: two", "flow.decoder.estimator.depth is 'two' and should be a number"),
        ("depth: 2", "depth: 0", "depth is 0 and should be above 0"),
        ("depth: 2", "layers: 2", "flow.decoder.estimator has the unknown layers"),
        ("    output_size: 64", "    output_size: 32", "have to be equal"),
        ("    input_size: 64\n", "", "flow.encoder lacks input_size"),
        ("decoder_dit.DiT", "decoder_unet.UNet", "decoder_unet.UNet"),
        ("flow:", "wave:", "no mapping called 'flow'"),
        ("  encoder: !new", "  encoder: [!new", "cannot be read as YAML"),
    ],
)
def test_another_model_is_refused_by_its_key(tmp_path: Path, before: str, after: str, words: str) -> None:
    assert before in YAML
    with pytest.raises(CheckpointError, match=words):
        load_flow_config(written(tmp_path, YAML.replace(before, after, 1)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"flow\.yaml is missing"):
        load_flow_config(tmp_path / "flow.yaml")
    with pytest.raises(CheckpointError, match=r"flow\.pt is missing"):
        load_flow(tmp_path / "flow.pt", tiny_config())


def saved(folder: Path, tensors: dict[str, Tensor]) -> Path:
    torch.save(tensors, folder / "flow.pt")
    return folder / "flow.pt"


def test_weights_load_from_a_torch_file_under_the_names_they_have_there(tmp_path: Path) -> None:
    tensors = load_file(WEIGHTS)
    network = load_flow(saved(tmp_path, tensors), tiny_config())
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in tensors.items()
    }
    assert torch.equal(network.decoder.estimator.in_proj.weight, tensors["decoder.estimator.in_proj.weight"])


def test_wrong_weights_are_named_with_what_was_expected(tmp_path: Path) -> None:
    tensors = load_file(WEIGHTS)
    missing = tensors.pop("encoder.encoders.1.self_attn.pos_bias_u")
    with pytest.raises(CheckpointError, match=r"missing: encoder\.encoders\.1\.self_attn\.pos_bias_u"):
        load_flow(saved(tmp_path, tensors), tiny_config())
    tensors["encoder.encoders.1.self_attn.pos_bias_u"] = missing
    tensors["encoder.encoders.9.self_attn.pos_bias_u"] = missing
    with pytest.raises(CheckpointError, match=r"not known: encoder\.encoders\.9\.self_attn\.pos_bias_u"):
        load_flow(saved(tmp_path, tensors), tiny_config())
    del tensors["encoder.encoders.9.self_attn.pos_bias_u"]
    tensors["encoder_proj.bias"] = torch.zeros(81)
    with pytest.raises(CheckpointError, match=r"encoder_proj\.bias is \[81\] and should be \[80\]"):
        load_flow(saved(tmp_path, tensors), tiny_config())


def test_a_truncated_file_is_called_so(tmp_path: Path) -> None:
    path = saved(tmp_path, load_file(WEIGHTS))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="truncated"):
        load_flow(path, tiny_config())


def test_the_full_model_has_as_many_tensors_and_numbers_as_the_released_one() -> None:
    config = FlowConfig(
        encoder=EncoderConfig(input_size=512, output_size=512, attention_heads=8),
        estimator=EstimatorConfig(depth=16, hidden_size=512),
        vocab_size=6561,
    )
    with torch.device("meta"):
        weights = FlowNetwork(config).state_dict()
    assert len(weights) == 605
    assert sum(value.numel() for value in weights.values()) == 155_802_352
