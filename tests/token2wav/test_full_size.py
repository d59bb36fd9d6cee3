"""The real checkpoint's size: every tensor of its two files by name and shape, and how they load.

The names and shapes are written out here from the released files' own listing, not taken from the modules.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path

import pytest
import torch

from sidecar.token2wav import Token2Wav
from sidecar.token2wav.synthetic import write_token2wav

Shapes = dict[str, tuple[int, ...]]

V, C, F, H, D = 6561, 512, 2048, 8, 64  # vocabulary; encoder's width, feed-forward, heads, head width
HIDDEN, SPEAKER, MEL = 512, 192, 80

#: Numbers in each part of the flow, and of the vocoder with its weight norms as they are stored.
FLOW_NUMBERS = {
    "input_embedding": 3_359_232,
    "spk_embed_affine_layer": 15_440,
    "encoder": 37_831_168,
    "encoder_proj": 41_040,
    "decoder": 114_555_472,
}
VOCODER_NUMBERS = {
    "f0_predictor": 3_274_241,
    "m_source": 10,
    "conv_pre": 287_744,
    "ups": 2_516_288,
    "source_downs": 153_664,
    "source_resblocks": 3_719_040,
    "resblocks": 10_862_208,
    "conv_post": 8_100,
}


def layer(name: str, *weight: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": weight} | ({f"{name}.bias": weight[:1]} if bias else {})


def joined(*parts: Shapes) -> Shapes:
    return {name: shape for part in parts for name, shape in part.items()}


def encoder_block(block: str) -> Shapes:
    return joined(
        {f"{block}.self_attn.pos_bias_{bias}": (H, D) for bias in "uv"},
        *(layer(f"{block}.self_attn.linear_{part}", C, C) for part in ("q", "k", "v", "out")),
        layer(f"{block}.self_attn.linear_pos", C, C, bias=False),
        layer(f"{block}.feed_forward.w_1", F, C),
        layer(f"{block}.feed_forward.w_2", C, F),
        layer(f"{block}.norm_mha", C),
        layer(f"{block}.norm_ff", C),
    )


def estimator_block(block: str) -> Shapes:
    return joined(
        *(layer(f"{block}.attn.to_{part}", HIDDEN, HIDDEN) for part in "qkv"),
        layer(f"{block}.attn.q_norm", 64),
        layer(f"{block}.attn.k_norm", 64),
        layer(f"{block}.attn.proj", HIDDEN, HIDDEN),
        layer(f"{block}.conv.block.1", HIDDEN, HIDDEN, 3),
        layer(f"{block}.conv.block.3", HIDDEN),
        layer(f"{block}.conv.block.6", HIDDEN, HIDDEN, 3),
        layer(f"{block}.mlp.fc1", 4 * HIDDEN, HIDDEN),
        layer(f"{block}.mlp.fc2", HIDDEN, 4 * HIDDEN),
        layer(f"{block}.adaLN_modulation.1", 9 * HIDDEN, HIDDEN),
    )


def flow_shapes() -> Shapes:
    estimator = "decoder.estimator"
    return joined(
        layer("input_embedding", V, C, bias=False),
        layer("spk_embed_affine_layer", MEL, SPEAKER),
        *(joined(layer(f"encoder.{stage}.out.0", C, C), layer(f"encoder.{stage}.out.1", C)) for stage in
          ("embed", "up_embed")),
        layer("encoder.pre_lookahead_layer.conv1", C, C, 4),
        layer("encoder.pre_lookahead_layer.conv2", C, C, 3),
        *(encoder_block(f"encoder.encoders.{number}") for number in range(6)),
        layer("encoder.up_layer.conv", C, C, 5),
        *(encoder_block(f"encoder.up_encoders.{number}") for number in range(4)),
        layer("encoder.after_norm", C),
        layer("encoder_proj", MEL, C),
        layer(f"{estimator}.t_embedder.mlp.0", HIDDEN, 256),
        layer(f"{estimator}.t_embedder.mlp.2", HIDDEN, HIDDEN),
        layer(f"{estimator}.in_proj", HIDDEN, 4 * MEL),
        *(estimator_block(f"{estimator}.blocks.{number}") for number in range(16)),
        layer(f"{estimator}.final_layer.adaLN_modulation.1", 2 * HIDDEN, HIDDEN),
        layer(f"{estimator}.final_layer.linear", MEL, HIDDEN),
    )  # fmt: skip


def normed(name: str, *direction: int, outputs: int | None = None) -> Shapes:
    """A convolution under weight normalisation; a transposed one has its outputs on axis 1."""
    return {
        f"{name}.parametrizations.weight.original0": (direction[0], 1, 1),
        f"{name}.parametrizations.weight.original1": direction,
        f"{name}.bias": (outputs or direction[0],),
    }


def residual_block(block: str, channels: int, kernel: int) -> Shapes:
    return joined(
        *(normed(f"{block}.convs{half}.{q}", channels, channels, kernel) for half in (1, 2) for q in range(3)),
        {f"{block}.activations{half}.{q}.alpha": (channels,) for half in (1, 2) for q in range(3)},
    )


def vocoder_shapes() -> Shapes:
    channels = (256, 128, 64)
    return joined(
        normed("f0_predictor.condnet.0", 512, 80, 3),
        *(normed(f"f0_predictor.condnet.{number}", 512, 512, 3) for number in (2, 4, 6, 8)),
        layer("f0_predictor.classifier", 1, 512),
        layer("m_source.l_linear", 1, 9),
        normed("conv_pre", 512, 80, 7),
        normed("ups.0", 512, 256, 16, outputs=256),
        normed("ups.1", 256, 128, 11, outputs=128),
        normed("ups.2", 128, 64, 7, outputs=64),
        layer("source_downs.0", 256, 18, 30),
        layer("source_downs.1", 128, 18, 6),
        layer("source_downs.2", 64, 18, 1),
        *(residual_block(f"source_resblocks.{i}", channels[i], k) for i, k in enumerate((7, 7, 11))),
        *(residual_block(f"resblocks.{3 * i + j}", channels[i], k) for i in range(3) for j, k in enumerate((3, 7, 11))),
        normed("conv_post", 18, 64, 7),
    )


def numbers_by_part(shapes: Shapes) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for name, shape in shapes.items():
        counted[name.partition(".")[0]] += prod(shape)
    return dict(counted)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    model = tmp_path_factory.mktemp("full")
    write_token2wav(model, "full")
    yield model / "token2wav"
    for weights in (model / "token2wav").glob("*.pt"):  # 700 MB: pytest would keep them for three sessions
        weights.unlink()


def stored_shapes(path: Path) -> Shapes:
    tensors = torch.load(path, mmap=True, weights_only=True)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_the_two_files_have_every_tensor_by_name_and_shape(folder: Path) -> None:
    flow, vocoder = flow_shapes(), vocoder_shapes()
    assert (len(flow), sum(map(prod, flow.values()))) == (605, 155_802_352)
    assert (len(vocoder), sum(map(prod, vocoder.values()))) == (328, 20_821_295)
    assert numbers_by_part(flow) == FLOW_NUMBERS
    assert numbers_by_part(vocoder) == VOCODER_NUMBERS
    assert stored_shapes(folder / "flow.pt") == flow
    assert stored_shapes(folder / "hift.pt") == vocoder


def test_a_full_size_folder_loads_with_every_number(folder: Path) -> None:
    token2wav = Token2Wav.from_folder(folder)
    flow = {name: tuple(value.shape) for name, value in token2wav.flow.network.named_parameters()}
    assert flow == flow_shapes()
    assert numbers_by_part(flow) == FLOW_NUMBERS
    gains = {name: shape for name, shape in vocoder_shapes().items() if name.endswith("original0")}
    folded = numbers_by_part({name: tuple(value.shape) for name, value in token2wav.vocoder.named_parameters()})
    stored = Counter(VOCODER_NUMBERS)
    stored.subtract(numbers_by_part(gains))
    assert folded == stored


_LOADED = """
import sys
from pathlib import Path
from sidecar.token2wav import Token2Wav
def most_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = most_kb()
token2wav = Token2Wav.from_folder(Path(sys.argv[1]))
print(most_kb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its memory from /proc")
def test_loading_takes_the_memory_of_the_weights_once(folder: Path) -> None:
    weights_kb = sum((folder / name).stat().st_size for name in ("flow.pt", "hift.pt")) / 1024
    loaded = subprocess.run([sys.executable, "-c", _LOADED, folder], capture_output=True, check=True)
    assert int(loaded.stdout) < 1.15 * weights_kb
