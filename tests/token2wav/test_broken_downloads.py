"""Weight files as they lie on people's disks: cut short, stood in for, wrapped, in another precision, or hostile."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_token2wav import WEIGHTS, tiny_config
from torch import Tensor, nn

from sidecar.errors import CheckpointError
from sidecar.token2wav.weight_files import load_tensors
from sidecar.token2wav.weights import load_flow, load_strict

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 623304982\n" % (b"0f" * 32)


def saved(folder: Path, value: object, name: str = "flow.pt", **how: Any) -> Path:
    torch.save(value, folder / name, **how)
    return folder / name


@pytest.mark.parametrize("older_format", [False, True])
def test_a_file_cut_anywhere_is_refused_with_its_size_and_what_was_expected(tmp_path: Path, older_format: bool) -> None:
    path = saved(tmp_path, load_file(WEIGHTS), _use_new_zipfile_serialization=not older_format)
    whole = path.read_bytes()
    cuts = {1, 2, 4, 30, 63, 64, 65, 100, 512, 1000, *range(5000, len(whole), len(whole) // 40), len(whole) - 1}
    for kept in sorted(cuts, reverse=True):
        path.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError) as refused:
            load_flow(path, tiny_config())
        words = refused.value.message
        assert "truncated" in words or "no pickle" in words, (kept, words)
        assert f"flow.pt ({kept:,} bytes)" in words, kept
        assert "136 tensors with" in words, kept


@pytest.mark.parametrize("kept", [0, 7, 8, 100, 10_000])
def test_a_safetensors_file_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    cut = tmp_path / "flow.safetensors"
    cut.write_bytes(WEIGHTS.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="truncated"):
        load_tensors(cut)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"", r"flow\.pt is empty"),
        (POINTER, r"git-lfs pointer \(\d+ bytes\) to the real file \(623,304,982 bytes\); run 'git lfs pull'"),
        (b"\n <!DOCTYPE html><html><title>Sign in</title>", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
        (b"Entry not found", r"\(15 bytes\) cannot be read as weights"),
        (b"\x00" * 4096, r"\(4,096 bytes\) cannot be read as weights"),
        (b"PK\x03\x04" + b"\xff" * 500, r"\(504 bytes\) cannot be read as weights"),
    ],
)
def test_what_stands_in_for_a_file_is_called_what_it_is(tmp_path: Path, contents: bytes, words: str) -> None:
    (tmp_path / "flow.pt").write_bytes(contents)
    with pytest.raises(CheckpointError, match=words):
        load_flow(tmp_path / "flow.pt", tiny_config())


def test_a_missing_file_and_a_folder_in_its_place_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"flow\.pt is missing"):
        load_tensors(tmp_path / "flow.pt")
    (tmp_path / "hift.pt").mkdir()
    with pytest.raises(CheckpointError, match=r"hift\.pt is a folder"):
        load_tensors(tmp_path / "hift.pt")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_stored_in_another_precision_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = load_file(WEIGHTS)
    path = saved(tmp_path, {name: value.to(dtype) for name, value in tensors.items()})
    loaded = load_flow(path, tiny_config()).state_dict()
    for name, value in tensors.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], value.to(dtype).float()), name


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.ones(80, dtype=torch.int64), "encoder_proj.bias is int64; weights are dense float32"),
        (torch.ones(80, dtype=torch.int8), "encoder_proj.bias is int8"),
        (torch.ones(80).to(torch.float8_e4m3fn), "encoder_proj.bias is float8_e4m3fn"),
        (torch.ones(80).to_sparse(), "encoder_proj.bias is sparse float32"),
        (torch.empty(80, device="meta"), "encoder_proj.bias is meta"),
        (torch.full((80,), torch.nan), "encoder_proj.bias has 80 of 80 numbers that are not finite"),
        (torch.tensor([torch.inf] + [0.0] * 79), "encoder_proj.bias has 1 of 80 numbers that are not finite"),
        (torch.full((80,), 1e300, dtype=torch.float64), "encoder_proj.bias has 80 of 80 numbers that are not finite"),
        ([1.0] * 80, "encoder_proj.bias is no tensor but list"),
        (torch.zeros(81), r"encoder_proj\.bias is \[81\] and should be \[80\]"),
        (torch.zeros(()), r"encoder_proj\.bias is \[\] and should be \[80\]"),
    ],
)
def test_a_tensor_that_is_no_weight_is_named(tmp_path: Path, value: object, words: str) -> None:
    path = saved(tmp_path, load_file(WEIGHTS) | {"encoder_proj.bias": value})
    with pytest.raises(CheckpointError, match=words):
        load_flow(path, tiny_config())


def test_missing_spare_and_misshapen_tensors_are_told_together_with_the_shapes(tmp_path: Path) -> None:
    tensors = load_file(WEIGHTS) | {"encoder_proj.bias": torch.zeros(3), "decoder.rand_noise": torch.zeros(2)}
    del tensors["encoder.after_norm.weight"]
    with pytest.raises(CheckpointError) as refused:
        load_flow(saved(tmp_path, tensors), tiny_config())
    for words in (
        f"flow.pt ({len(tensors)} tensors) is not the expected model (136)",
        "1 missing: encoder.after_norm.weight [64]",
        "1 not known: decoder.rand_noise",
        "encoder_proj.bias is [3] and should be [80]",
    ):
        assert words in refused.value.message


@pytest.mark.parametrize(
    ("wrapped", "words"),
    [
        (lambda tensors: {"state_dict": tensors}, "a dict of its own under 'state_dict'; expected a flat dict"),
        (lambda tensors: {"generator": OrderedDict(tensors), "epoch": 3}, "under 'generator'"),
        (lambda tensors: {"epoch": 3, "model": tensors}, "epoch is no tensor but int"),
        (lambda tensors: list(tensors.values()), "holds a list; expected a flat dict"),
        (lambda tensors: dict(enumerate(tensors.values())), "has the key 0; expected a flat dict"),
        (lambda tensors: {}, "136 missing"),
    ],
)
def test_a_wrapped_file_is_refused_by_what_wraps_it(tmp_path: Path, wrapped: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        load_flow(saved(tmp_path, wrapped(load_file(WEIGHTS))), tiny_config())


def test_parameters_and_views_load_like_tensors(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {name: nn.Parameter(value) for name, value in load_file(WEIGHTS).items()}
    tensors["encoder_proj.weight"] = tensors["encoder_proj.weight"].detach().T.contiguous().T
    tensors["encoder_proj.bias"] = torch.arange(400.0)[::5]
    loaded = load_flow(saved(tmp_path, OrderedDict(tensors)), tiny_config()).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
    assert all(value.is_contiguous() for value in loaded.values())


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused_before_memory_goes(tmp_path: Path) -> None:
    path = saved(tmp_path, {"conv_pre.weight": torch.zeros(1).expand(10**6, 10**6)})
    with pytest.raises(CheckpointError, match=r"conv_pre\.weight claims \[1000000, 1000000\]"):
        load_tensors(path)


class Trap:
    """Unpickled by a careless loader, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


@pytest.mark.parametrize("how", ["plain pickle", "torch, new", "torch, old"])
def test_code_in_a_weight_file_is_named_and_not_run(tmp_path: Path, how: str) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "hift.pt"
    contents = {"conv_pre.bias": Trap(sprung)}
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(contents, protocol=2))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=how == "torch, new")
    with pytest.raises(CheckpointError, match=r"it holds \S*getattr, .*nothing in it was run"):
        load_tensors(path)
    assert not sprung.exists()


def test_weights_too_large_for_16_bits_are_named_for_float16_alone(tmp_path: Path) -> None:
    path = saved(tmp_path, load_file(WEIGHTS) | {"encoder_proj.bias": torch.full((80,), -70_000.0)})
    with pytest.raises(
        CheckpointError, match=r"encoder_proj\.bias goes from -7e\+04 .*torch.float16 ends at 6.55e\+04"
    ):
        load_flow(path, tiny_config(), dtype=torch.float16)
    load_flow(path, tiny_config(), dtype=torch.bfloat16)


def test_loaded_weights_are_taken_over_and_not_copied() -> None:
    tensors = load_file(WEIGHTS)
    with torch.device("meta"):
        layer = nn.Linear(64, 80)
    mine = {"weight": tensors["encoder_proj.weight"], "bias": tensors["encoder_proj.bias"]}
    load_strict(layer, mine)
    assert layer.weight.data_ptr() == mine["weight"].data_ptr()
