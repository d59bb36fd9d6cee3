"""Layers of the flow alone: convolutions in chunks, attention at any distance, the flow's times."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_token2wav import tiny_network
from torch import Tensor

from sidecar.token2wav.conformer import Float32Norm, RelativeAttention, position_angles
from sidecar.token2wav.flow import FlowNetwork
from sidecar.token2wav.solver import time_schedule


@pytest.fixture(scope="module")
def network() -> FlowNetwork:
    return tiny_network()


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("chunks", [[1] * 9, [2, 7], [8, 1], [1, 3, 5]])
@torch.inference_mode()
def test_the_look_ahead_in_chunks_equals_the_look_ahead_whole(network: FlowNetwork, chunks: list[int]) -> None:
    x, layer = drawn(2, 9 + 3, 64), network.encoder.pre_lookahead_layer
    past = network.encoder.initial_state(2).lookahead_past
    whole, whole_past = layer(x, past, last=False)
    pieces, done = [], 0
    for chunk in chunks:
        piece, past = layer(x[:, done : done + chunk + 3], past, last=False)
        pieces.append(piece)
        done += chunk
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(past, whole_past, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunks", [[1] * 9, [2, 7], [8, 1]])
@torch.inference_mode()
def test_the_upsampling_in_chunks_equals_the_upsampling_whole(network: FlowNetwork, chunks: list[int]) -> None:
    x, start = drawn(2, 64, 9), network.encoder.initial_state(2).upsample_past
    whole, _ = network.encoder.up_layer(x, start)
    pieces, past = [], start
    for chunk in x.split(chunks, dim=-1):
        piece, past = network.encoder.up_layer(chunk, past)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=-1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunks", [[1] * 9, [2, 7], [8, 1]])
@torch.inference_mode()
def test_the_estimators_convolutions_in_chunks_equal_them_whole(network: FlowNetwork, chunks: list[int]) -> None:
    estimator = network.decoder.estimator
    layer, x, start = estimator.blocks[0].conv, drawn(2, 9, 48), estimator.initial_past(2).conv[0]
    whole, _ = layer(x, start)
    pieces, past = [], start
    for chunk in x.split(chunks, dim=1):
        piece, past = layer(chunk, past)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=0)


def by_definition(
    attention: RelativeAttention, x: Tensor, keys_values: Tensor, queries: list[int], keys: list[int]
) -> Tensor:
    """The score written out for each pair, with the sinusoid of their distance; float64."""
    heads, width = attention.pos_bias_u.shape
    channels = heads * width
    rates = 10_000.0 ** (-2 * torch.arange(channels // 2, dtype=torch.float64) / channels)
    distance = torch.tensor(queries)[:, None] - torch.tensor(keys)  # (N, n)
    angle = distance[..., None] * rates
    sinusoid = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)  # (N, n, C)
    position = (sinusoid @ attention.linear_pos.weight.double().T).view(*distance.shape, heads, width)
    query = attention.linear_q(x)[0].double().view(-1, heads, width)  # (N, H, D)
    key, value = keys_values[0].double().chunk(2, dim=-1)  # (H, n, D)
    score = torch.einsum("qhd,hkd->hqk", query + attention.pos_bias_u.double(), key)
    score = score + torch.einsum("qhd,qkhd->hqk", query + attention.pos_bias_v.double(), position)
    mixed = torch.einsum("hqk,hkd->qhd", (score / math.sqrt(width)).softmax(-1), value)
    return attention.linear_out(mixed.flatten(1).float())[None]


@pytest.mark.parametrize("cached", [[0, 1, 2, 3], [0, 1, 2, 29_000, 29_001], [7, 3, 5], []])
@torch.inference_mode()
def test_attention_follows_its_definition_at_any_distance(network: FlowNetwork, cached: list[int]) -> None:
    attention = network.encoder.encoders[0].self_attn
    assert isinstance(attention, RelativeAttention)
    first = max(cached, default=-1) + 1
    queries = [first, first + 1, first + 2]
    x, past = drawn(1, 3, 64), drawn(1, 4, len(cached), 32)
    out, new = attention(x, past, position_angles(torch.tensor([cached + queries]), 64), None)
    expected = by_definition(attention, x, torch.cat([past, new], dim=2), queries, cached + queries)
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=0)


def test_flow_times_run_from_noise_to_mel_in_growing_steps() -> None:
    times = time_schedule(10)
    assert times.dtype == torch.float32
    assert (times[0].item(), times[-1].item()) == pytest.approx((0, 1), abs=1e-6)
    assert (times.diff().diff() > 0).all()


def test_a_norm_with_a_vanishing_epsilon_survives_sixteen_bits() -> None:
    norm = Float32Norm(64, eps=1e-12).to(torch.float16)
    almost_flat = torch.full((1, 64), 3e-4, dtype=torch.float16)
    assert norm(almost_flat).isfinite().all()
    assert norm(drawn(1, 64).half()).dtype == torch.float16
