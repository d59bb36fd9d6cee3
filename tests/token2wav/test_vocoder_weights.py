"""Loading: strict, by name, and every refusal says which tensor."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sidecar.errors import CheckpointError
from sidecar.token2wav.weights import fold_weight_norm, load_strict, load_tensors, load_vocoder

WEIGHTS = Path(__file__).parents[1] / "golden" / "data" / "hift" / "hift.safetensors"


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return load_file(WEIGHTS)


def saved(folder: Path, value: object) -> Path:
    torch.save(value, folder / "hift.pt")
    return folder / "hift.pt"


def test_a_saved_dict_and_a_safetensors_file_load_alike(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    ours, theirs = load_vocoder(saved(tmp_path, tensors)).state_dict(), load_vocoder(WEIGHTS).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_prefixed_names_in_the_older_spelling_load_alike(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    old = {
        "generator."
        + name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in tensors.items()
    }
    assert any(name.endswith("weight_g") for name in old)
    ours, theirs = load_vocoder(saved(tmp_path, old)).state_dict(), load_vocoder(WEIGHTS).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_folding_keeps_the_norm_of_every_first_axis_row() -> None:
    gain, direction = torch.rand(6, 1, 1) + 0.5, torch.randn(6, 4, 3)
    weight = fold_weight_norm({"a.weight_g": gain, "a.weight_v": direction})["a.weight"]
    torch.testing.assert_close(weight.flatten(1).norm(dim=1), gain.flatten())


@pytest.mark.parametrize("name", ["conv_pre.bias", "resblocks.4.activations1.2.alpha"])
def test_a_missing_tensor_is_named(tmp_path: Path, tensors: dict[str, Tensor], name: str) -> None:
    del tensors[name]
    with pytest.raises(CheckpointError, match=f"hift.pt.*1 missing: {name}"):
        load_vocoder(saved(tmp_path, tensors))


def test_half_a_weight_norm_pair_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    del tensors["ups.1.parametrizations.weight.original0"]
    with pytest.raises(CheckpointError, match=r"1 missing: ups\.1\.weight.*1 not known: ups\.1\.param"):
        load_vocoder(saved(tmp_path, tensors))


def test_a_spare_tensor_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    tensors["discriminator.0.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"1 not known: discriminator\.0\.bias"):
        load_vocoder(saved(tmp_path, tensors))


def test_a_wrong_shape_is_named_with_the_right_one(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    tensors["conv_post.bias"] = torch.zeros(17)
    with pytest.raises(CheckpointError, match=r"conv_post\.bias is \[17\] and should be \[18\]"):
        load_vocoder(saved(tmp_path, tensors))


def test_another_model_is_refused_by_the_tensor_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no HiFT vocoder: conv_pre\.weight"):
        load_vocoder(saved(tmp_path, {"input_embedding.weight": torch.zeros(4, 4)}))


@pytest.mark.parametrize("kept", [0, 10, 1000, 100_000])
def test_a_truncated_file_is_refused(tmp_path: Path, tensors: dict[str, Tensor], kept: int) -> None:
    path = saved(tmp_path, tensors)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="truncated"):
        load_tensors(path)
    cut = tmp_path / "hift.safetensors"
    cut.write_bytes(WEIGHTS.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="truncated"):
        load_tensors(cut)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"hift\.pt is missing"):
        load_tensors(tmp_path / "hift.pt")


class Trap:
    """Unpickled by a careless loader, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_code_in_a_weight_file_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    path = tmp_path / "hift.pt"
    path.write_bytes(pickle.dumps({"conv_pre.bias": Trap(trap)}, protocol=2))
    with pytest.raises(CheckpointError):
        load_tensors(path)
    assert not trap.exists()


def test_what_is_no_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="epoch is no tensor"):
        load_tensors(saved(tmp_path, {"epoch": 3}))


def test_weights_take_the_precision_of_the_module() -> None:
    layer = nn.Linear(2, 2).half()
    load_strict(layer, {"weight": torch.full((2, 2), 0.5), "bias": torch.ones(2)})
    assert layer.weight.dtype == torch.float16
    assert layer.weight.tolist() == [[0.5, 0.5], [0.5, 0.5]]
