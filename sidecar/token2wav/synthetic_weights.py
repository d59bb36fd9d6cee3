"""Random weights for flow and vocoder, under the names and in the shapes of the real files.

Scaled so that nothing dies out or runs away at any size: layers keep the strength of what they are given, the pitch
lies where voices do, and the sound is a noise of ordinary loudness.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod, sqrt

import torch
from torch import Tensor

from sidecar.token2wav.config import EncoderConfig, EstimatorConfig, FlowConfig
from sidecar.token2wav.phase import HARMONICS
from sidecar.token2wav.resblock import DILATIONS
from sidecar.token2wav.stft import BINS
from sidecar.token2wav.vocoder import (
    RESBLOCK_KERNELS,
    SOURCE_RESBLOCK_KERNELS,
    UPSAMPLE_KERNELS,
    UPSAMPLE_RATES,
    HiftConfig,
)

#: Sinusoids that a flow time is written in.
TIME_FEATURES = 256
BIAS_DEVIATION = 0.1

#: Where the pitch lies and how far it moves with the mel.
PITCH_HZ = 150.0
PITCH_DEVIATION_HZ = 30.0
#: Bias of the log magnitudes before the inverse STFT: sets the loudness.
LOG_MAGNITUDE = -1.0

#: Kernel of each layer that brings the source's spectrum down to the rate of an upsampling stage: twice its stride.
SOURCE_DOWN_KERNELS = (30, 6, 1)

Named = Iterator[tuple[str, Tensor]]


class Draw:
    """Random tensors, one after the other from one seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, deviation: float, mean: float = 0.0) -> Tensor:
        return torch.randn(shape, generator=self._generator).mul_(deviation).add_(mean)

    def layer(self, name: str, *shape: int, gain: float = 1.0, bias: bool = True) -> Named:
        """Weight (out, in, ...) and bias of a layer whose output is about `gain` times as strong as its input."""
        yield f"{name}.weight", self.normal(*shape, deviation=gain / sqrt(prod(shape[1:])))
        if bias:
            yield f"{name}.bias", self.normal(shape[0], deviation=BIAS_DEVIATION)

    def norm(self, name: str, width: int) -> Named:
        yield f"{name}.weight", self.normal(width, deviation=0.1, mean=1.0)
        yield f"{name}.bias", self.normal(width, deviation=BIAS_DEVIATION)

    def weight_normed(self, name: str, *shape: int, outputs: int, gain: float) -> Named:
        """A convolution stored as gain and direction (arXiv 1602.07868); the gain is along the first axis."""
        yield f"{name}.bias", self.normal(outputs, deviation=BIAS_DEVIATION)
        yield f"{name}.parametrizations.weight.original0", self.normal(shape[0], 1, 1, deviation=gain / 10, mean=gain)
        yield f"{name}.parametrizations.weight.original1", self.normal(*shape, deviation=1.0)


def flow_tensors(config: FlowConfig, seed: int) -> dict[str, Tensor]:
    """Every tensor of `flow.pt` by name, float32."""
    draw = Draw(seed)
    width, bins = config.input_size, config.output_size
    return dict(
        [
            ("input_embedding.weight", draw.normal(config.vocab_size, width, deviation=1.0)),
            *draw.layer("spk_embed_affine_layer", bins, config.spk_embed_dim, gain=sqrt(config.spk_embed_dim)),
            *_encoder(config.encoder, draw),
            *draw.layer("encoder_proj", bins, config.encoder.output_size),
            *_estimator(config.estimator, draw),
        ]
    )


def vocoder_tensors(config: HiftConfig, seed: int) -> dict[str, Tensor]:
    """Every tensor of `hift.pt` by name, float32."""
    draw = Draw(seed)
    widths = [config.base_channels >> level for level in range(len(UPSAMPLE_RATES) + 1)]
    return dict(
        [
            *_pitch(config, draw),
            # the nine waves are weak (0.1 each): brought up to about 0.4 together
            *draw.layer("m_source.l_linear", 1, HARMONICS, gain=6.0),
            *draw.weight_normed("conv_pre", widths[0], config.mel_bins, 7, outputs=widths[0], gain=1.0),
            *_upsampling(widths, draw),
            *_log_spectrum(widths[-1], draw),
        ]
    )


def _encoder(config: EncoderConfig, draw: Draw) -> Named:
    width = config.output_size
    for stage, stack, blocks in (
        ("embed", "encoders", config.num_blocks),
        ("up_embed", "up_encoders", config.num_up_blocks),
    ):
        yield from draw.layer(f"encoder.{stage}.out.0", width, width)
        yield from draw.norm(f"encoder.{stage}.out.1", width)
        for number in range(blocks):
            yield from _encoder_block(f"encoder.{stack}.{number}", config, draw)
    yield from draw.layer("encoder.pre_lookahead_layer.conv1", width, width, 4)
    yield from draw.layer("encoder.pre_lookahead_layer.conv2", width, width, 3)
    yield from draw.layer("encoder.up_layer.conv", width, width, 5)
    yield from draw.norm("encoder.after_norm", width)


def _encoder_block(block: str, config: EncoderConfig, draw: Draw) -> Named:
    width = config.output_size
    head_shape = (config.attention_heads, width // config.attention_heads)
    for bias in ("u", "v"):
        yield f"{block}.self_attn.pos_bias_{bias}", draw.normal(*head_shape, deviation=0.4)
    for part in ("q", "k", "v", "out"):
        yield from draw.layer(f"{block}.self_attn.linear_{part}", width, width)
    yield from draw.layer(f"{block}.self_attn.linear_pos", width, width, bias=False)
    # x has a strength of sqrt(width) from the input layer on: a block that adds 1 would not be heard
    yield from draw.layer(f"{block}.feed_forward.w_1", config.linear_units, width, gain=2.0)
    yield from draw.layer(f"{block}.feed_forward.w_2", width, config.linear_units, gain=2.0)
    yield from draw.norm(f"{block}.norm_mha", width)
    yield from draw.norm(f"{block}.norm_ff", width)


def _estimator(config: EstimatorConfig, draw: Draw) -> Named:
    top, hidden = "decoder.estimator", config.hidden_size
    yield from draw.layer(f"{top}.t_embedder.mlp.0", hidden, TIME_FEATURES, gain=2.0)
    yield from draw.layer(f"{top}.t_embedder.mlp.2", hidden, hidden, gain=2.0)
    yield from draw.layer(f"{top}.in_proj", hidden, config.in_channels)
    for number in range(config.depth):
        yield from _estimator_block(f"{top}.blocks.{number}", config, draw)
    yield from draw.layer(f"{top}.final_layer.adaLN_modulation.1", 2 * hidden, hidden, gain=0.3)
    yield from draw.layer(f"{top}.final_layer.linear", config.out_channels, hidden)


def _estimator_block(block: str, config: EstimatorConfig, draw: Draw) -> Named:
    hidden, inner = config.hidden_size, config.num_heads * config.head_dim
    middle = int(config.mlp_ratio * hidden)
    for part in ("q", "k", "v"):
        yield from draw.layer(f"{block}.attn.to_{part}", inner, hidden)
    yield from draw.norm(f"{block}.attn.q_norm", config.head_dim)
    yield from draw.norm(f"{block}.attn.k_norm", config.head_dim)
    yield from draw.layer(f"{block}.attn.proj", hidden, inner)
    yield from draw.layer(f"{block}.conv.block.1", hidden, hidden, 3)
    yield from draw.norm(f"{block}.conv.block.3", hidden)
    yield from draw.layer(f"{block}.conv.block.6", hidden, hidden, 3)
    yield from draw.layer(f"{block}.mlp.fc1", middle, hidden)
    yield from draw.layer(f"{block}.mlp.fc2", hidden, middle)
    yield from draw.layer(f"{block}.adaLN_modulation.1", 9 * hidden, hidden, gain=0.5)


def _pitch(config: HiftConfig, draw: Draw) -> Named:
    channels = config.f0_channels
    for layer, width in zip(range(0, 10, 2), (config.mel_bins, *[channels] * 4), strict=True):
        yield from draw.weight_normed(f"f0_predictor.condnet.{layer}", channels, width, 3, outputs=channels, gain=1.3)
    yield "f0_predictor.classifier.weight", draw.normal(1, channels, deviation=PITCH_DEVIATION_HZ / sqrt(channels))
    yield "f0_predictor.classifier.bias", torch.full((1,), PITCH_HZ)


def _upsampling(widths: list[int], draw: Draw) -> Named:
    for level, (kernel, rate) in enumerate(zip(UPSAMPLE_KERNELS, UPSAMPLE_RATES, strict=True)):
        before, width = widths[level], widths[level + 1]
        # each output sees kernel / rate of the taps of every input, and the norm runs over outputs and taps
        gain = sqrt(width * rate / before)
        yield from draw.weight_normed(f"ups.{level}", before, width, kernel, outputs=width, gain=gain)
        yield from draw.layer(f"source_downs.{level}", width, 2 * BINS, SOURCE_DOWN_KERNELS[level], gain=2.0)
        yield from _resblock(f"source_resblocks.{level}", width, SOURCE_RESBLOCK_KERNELS[level], draw)
        for number, block_kernel in enumerate(RESBLOCK_KERNELS):
            block = f"resblocks.{level * len(RESBLOCK_KERNELS) + number}"
            yield from _resblock(block, width, block_kernel, draw)


def _resblock(block: str, width: int, kernel: int, draw: Draw) -> Named:
    for number in range(len(DILATIONS)):
        for half in ("1", "2"):
            convolution = f"{block}.convs{half}.{number}"
            yield from draw.weight_normed(convolution, width, width, kernel, outputs=width, gain=0.5)
            yield f"{block}.activations{half}.{number}.alpha", draw.normal(width, deviation=0.3).abs().add_(0.5)


def _log_spectrum(width: int, draw: Draw) -> Named:
    for name, tensor in draw.weight_normed("conv_post", 2 * BINS, width, 7, outputs=2 * BINS, gain=0.4):
        if name.endswith(".bias"):
            tensor[:BINS] += LOG_MAGNITUDE
        yield name, tensor
