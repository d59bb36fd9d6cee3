"""flow.pt: strict, by the names it has there, and every refusal says which tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_token2wav import WEIGHTS, tiny_config
from torch import Tensor

from sidecar.errors import CheckpointError
from sidecar.token2wav.weights import load_flow


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
