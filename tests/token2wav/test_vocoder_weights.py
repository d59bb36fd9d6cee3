"""Loading: strict, by name, and every refusal says which tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sidecar.errors import CheckpointError
from sidecar.token2wav.weight_norm import fold_weight_norm
from sidecar.token2wav.weights import load_strict, load_vocoder

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


def respelled(name: str) -> str:
    return name.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v"
    )


@pytest.mark.parametrize("respell", ["all", "every other layer"])
@pytest.mark.parametrize("prefixed", ["none", "all", "every other name"])
def test_names_in_either_spelling_with_a_prefix_or_without_load_alike(
    tmp_path: Path, tensors: dict[str, Tensor], respell: str, prefixed: str
) -> None:
    layers = sorted({name.partition(".parametrizations")[0] for name in tensors if "parametrizations" in name})
    older = set(layers if respell == "all" else layers[::2])
    named = {
        respelled(name) if name.partition(".parametrizations")[0] in older else name: value
        for name, value in tensors.items()
    }
    assert any(name.endswith("weight_g") for name in named)
    every = {"none": len(named) + 1, "all": 1, "every other name": 2}[prefixed]
    named = {
        ("generator." if number % every == every - 1 else "") + name: value
        for number, (name, value) in enumerate(named.items())
    }
    ours, theirs = load_vocoder(saved(tmp_path, named)).state_dict(), load_vocoder(WEIGHTS).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_weight_norm_stored_in_another_precision_is_folded_in_float32(
    tmp_path: Path, tensors: dict[str, Tensor], dtype: torch.dtype
) -> None:
    rounded = {name: value.to(dtype) for name, value in tensors.items()}
    weight = load_vocoder(saved(tmp_path, rounded)).ups[0].weight
    gain = rounded["ups.0.parametrizations.weight.original0"].double()
    direction = rounded["ups.0.parametrizations.weight.original1"].double()
    exact = direction * gain / direction.square().sum((1, 2), keepdim=True).sqrt()
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight.double(), exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("spare", "words"),
    [
        ("generator.conv_pre.bias", "conv_pre.bias is there twice, with 'generator.' in front and without"),
        ("conv_pre.weight", "conv_pre.weight is there twice: also as conv_pre.param"),
    ],
)
def test_a_tensor_under_two_names_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor], spare: str, words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        load_vocoder(saved(tmp_path, tensors | {spare: tensors["conv_pre.bias"]}))


def test_a_weight_norm_in_both_spellings_at_once_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    both = tensors | {respelled(name): value for name, value in tensors.items() if name.startswith("conv_post.")}
    with pytest.raises(
        CheckpointError, match=r"hift\.pt: conv_post\.weight is there twice: also as conv_post\.weight_g"
    ):
        load_vocoder(saved(tmp_path, both))


def test_a_direction_of_length_zero_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    tensors["ups.1.parametrizations.weight.original1"][2] = 0
    with pytest.raises(CheckpointError, match=r"hift\.pt: ups\.1\.param\S+original1 is all zeros in row 2"):
        load_vocoder(saved(tmp_path, tensors))


@pytest.mark.parametrize("shape", [(16,), (1, 8, 1), (16, 1), (8, 1, 1), ()])
def test_a_gain_of_another_shape_is_not_spread_over_the_weight(
    tmp_path: Path, tensors: dict[str, Tensor], shape: tuple[int, ...]
) -> None:
    name = "ups.1.parametrizations.weight.original0"
    assert tuple(tensors[name].shape) == (16, 1, 1)
    with pytest.raises(CheckpointError, match=r"ups\.1\.param\S+original0 is \[.*\] and should be \[16, 1, 1\]"):
        load_vocoder(saved(tmp_path, tensors | {name: torch.ones(shape)}))


def test_numbers_that_are_not_finite_are_named_as_they_are_stored(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    tensors["ups.1.parametrizations.weight.original1"][0, 0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"ups\.1\.param\S+original1 has 1 of [\d,]+ numbers that are not finite"):
        load_vocoder(saved(tmp_path, tensors))


def test_a_vocoder_wider_than_any_memory_is_refused_before_it_is_built(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    tensors["conv_pre.parametrizations.weight.original0"] = torch.ones(200_000, 1, 1)
    tensors["conv_pre.parametrizations.weight.original1"] = torch.ones(200_000, 1, 1)
    with pytest.raises(CheckpointError, match=r"fits any memory: .*base_channels=200000"):
        load_vocoder(saved(tmp_path, tensors))


def test_a_vocoder_for_other_mels_is_refused(tmp_path: Path) -> None:
    load_vocoder(WEIGHTS, mel_bins=80)
    with pytest.raises(CheckpointError, match=r"mels of 80 bins, and flow\.yaml beside it makes 100"):
        load_vocoder(WEIGHTS, mel_bins=100)


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


def test_weights_take_the_precision_of_the_module() -> None:
    layer = nn.Linear(2, 2).half()
    load_strict(layer, {"weight": torch.full((2, 2), 0.5), "bias": torch.ones(2)})
    assert layer.weight.dtype == torch.float16
    assert layer.weight.tolist() == [[0.5, 0.5], [0.5, 0.5]]
