"""The flow of a whole stream at once, written from its formulas alone: what a streamed flow has to equal.

Nothing is cut, cached or carried over here. What a chunk may see is a mask, every convolution runs over the whole
stream, and distances between encoder positions are looked up one by one. Slow, and only for one stream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from sidecar.token2wav.config import FlowConfig
from sidecar.token2wav.state import VoiceFeatures

LOOKAHEAD = 3


class WholeFlow:
    """
    Args:
        weights: under the names of `flow.pt`.
        config: their sizes, guidance and number of flow steps.
    """

    def __init__(self, weights: Mapping[str, Tensor], config: FlowConfig) -> None:
        self.weights = weights
        self.config = config

    def mu(self, prompt: Tensor, tokens: Tensor, visible: Tensor) -> Tensor:
        """
        Args:
            prompt, tokens: (Np,), (N,).
            visible: (Np + N, Np + N), which key (column) a query (row) sees, both counted in tokens.

        Returns:
            (80, 2 (Np + N)) conditioning for the estimator.
        """
        encoder, sizes = "encoder", self.config.encoder
        x = torch.cat([self._ahead(prompt, prompt[:LOOKAHEAD]), self._ahead(tokens, None)])
        embedded = self._input(f"{encoder}.embed", self._rows(torch.cat([prompt, tokens])))
        x = embedded + self._conv(f"{encoder}.pre_lookahead_layer.conv2", x, past=2)
        for block in range(sizes.num_blocks):
            x = self._conformer(f"{encoder}.encoders.{block}", x, visible)
        x = self._conv(f"{encoder}.up_layer.conv", x.repeat_interleave(2, dim=0), past=4)
        x = self._input(f"{encoder}.up_embed", x)
        frames_visible = visible.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)
        for block in range(sizes.num_up_blocks):
            x = self._conformer(f"{encoder}.up_encoders.{block}", x, frames_visible)
        return self._linear("encoder_proj", self._norm(f"{encoder}.after_norm", x, 1e-5)).T

    def mel(self, mu: Tensor, voice: VoiceFeatures, noise: Tensor, visible: Tensor) -> Tensor:
        """mu and noise (80, P + T), visible (P + T, P + T) in frames -> mel (80, P + T), the prompt's first."""
        direction = voice.speaker / voice.speaker.norm()
        speaker = self._linear("spk_embed_affine_layer", direction)
        cond = torch.zeros_like(mu)
        cond[:, : len(voice.prompt_mel)] = voice.prompt_mel.T
        x, steps, rate = noise, self.config.steps, self.config.cfg_rate
        times = [1 - math.cos(math.pi / 2 * step / steps) for step in range(steps + 1)]
        for time, following in pairwise(times):
            given = self._velocity(x, mu, speaker, cond, time, visible)
            free = self._velocity(x, 0 * mu, 0 * speaker, 0 * cond, time, visible)
            x = x + (following - time) * ((1 + rate) * given - rate * free)
        return x

    def _ahead(self, tokens: Tensor, following: Tensor | None) -> Tensor:
        """(N, C): the first convolution of the look-ahead, which sees what follows, or zeros after the end."""
        x = self._input("encoder.embed", self._rows(tokens))
        after = x.new_zeros(LOOKAHEAD, x.shape[1])
        if following is not None:
            after = self._input("encoder.embed", self._rows(following))
        seen = torch.cat([x, after])
        return F.leaky_relu(self._conv("encoder.pre_lookahead_layer.conv1", seen, past=0), 0.01)

    def _conformer(self, name: str, x: Tensor, visible: Tensor) -> Tensor:
        x = x + self._relative_attention(f"{name}.self_attn", self._norm(f"{name}.norm_mha", x, 1e-12), visible)
        wide = F.silu(self._linear(f"{name}.feed_forward.w_1", self._norm(f"{name}.norm_ff", x, 1e-12)))
        return x + self._linear(f"{name}.feed_forward.w_2", wide)

    def _relative_attention(self, name: str, x: Tensor, visible: Tensor) -> Tensor:
        heads, (length, channels) = self.config.encoder.attention_heads, x.shape
        width = channels // heads
        query, key, value = (
            self._linear(f"{name}.linear_{part}", x).view(length, heads, width).transpose(0, 1) for part in "qkv"
        )  # (H, N, D) each
        distance = torch.arange(1 - length, length)  # query's position less key's
        frequency = 10_000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
        angle = distance[:, None] * frequency
        sinusoid = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()
        positions = (sinusoid @ self.weights[f"{name}.linear_pos.weight"].T).view(-1, heads, width).transpose(0, 1)
        by_distance = (query + self.weights[f"{name}.pos_bias_v"][:, None]) @ positions.transpose(1, 2)
        row, column = torch.arange(length)[:, None], torch.arange(length)[None]
        far = by_distance.gather(2, (row - column + length - 1).expand(heads, -1, -1))
        near = (query + self.weights[f"{name}.pos_bias_u"][:, None]) @ key.transpose(1, 2)
        scores = ((near + far) / math.sqrt(width)).masked_fill(~visible, -math.inf)
        heard = (scores.softmax(-1) @ value).transpose(0, 1).reshape(length, channels)
        return self._linear(f"{name}.linear_out", heard)

    def _velocity(self, x: Tensor, mu: Tensor, speaker: Tensor, cond: Tensor, time: float, visible: Tensor) -> Tensor:
        name = "decoder.estimator"
        rates = torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float64) / 128)
        sinusoid = torch.cat([(1000 * time * rates).cos(), (1000 * time * rates).sin()]).float()
        embedded = self._linear(f"{name}.t_embedder.mlp.0", sinusoid)
        embedded = F.silu(self._linear(f"{name}.t_embedder.mlp.2", F.silu(embedded)))
        together = torch.cat([x, mu, speaker[:, None].expand_as(mu), cond])  # (320, T)
        hidden = self._linear(f"{name}.in_proj", together.T)
        for block in range(self.config.estimator.depth):
            hidden = self._dit_block(f"{name}.blocks.{block}", hidden, embedded, visible)
        shift, scale = self._linear(f"{name}.final_layer.adaLN_modulation.1", embedded).chunk(2)
        return self._linear(f"{name}.final_layer.linear", _adaptive_norm(hidden, shift, scale)).T

    def _dit_block(self, name: str, x: Tensor, embedded: Tensor, visible: Tensor) -> Tensor:
        parts = self._linear(f"{name}.adaLN_modulation.1", embedded).chunk(9)
        attention, feed_forward, convolution = parts[0:3], parts[3:6], parts[6:9]
        x = x + attention[2] * self._attention(f"{name}.attn", _adaptive_norm(x, *attention[:2]), visible)
        convolved = self._conv(f"{name}.conv.block.1", _adaptive_norm(x, *convolution[:2]), past=2)
        convolved = F.mish(self._norm(f"{name}.conv.block.3", convolved, 1e-5))
        x = x + convolution[2] * self._conv(f"{name}.conv.block.6", convolved, past=2)
        wide = F.gelu(self._linear(f"{name}.mlp.fc1", _adaptive_norm(x, *feed_forward[:2])), approximate="tanh")
        return x + feed_forward[2] * self._linear(f"{name}.mlp.fc2", wide)

    def _attention(self, name: str, x: Tensor, visible: Tensor) -> Tensor:
        sizes = self.config.estimator
        query, key, value = (
            self._linear(f"{name}.to_{part}", x).view(len(x), sizes.num_heads, sizes.head_dim) for part in "qkv"
        )  # (T, H, D) each
        query, key = self._norm(f"{name}.q_norm", query, 1e-5), self._norm(f"{name}.k_norm", key, 1e-5)
        scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(sizes.head_dim)
        weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
        return self._linear(f"{name}.proj", torch.einsum("hqk,khd->qhd", weights, value).flatten(1))

    def _rows(self, tokens: Tensor) -> Tensor:
        return self.weights["input_embedding.weight"][tokens]

    def _input(self, name: str, x: Tensor) -> Tensor:
        return math.sqrt(x.shape[-1]) * self._norm(f"{name}.out.1", self._linear(f"{name}.out.0", x), 1e-5)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)

    def _conv(self, name: str, x: Tensor, *, past: int) -> Tensor:
        """x (T, C) with so many zeros before it -> (T + past - kernel + 1, C')."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.conv1d(F.pad(x.T[None], (past, 0)), weight, bias)[0].T


def _adaptive_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def newest_visible(prompt: int, chunks: Sequence[int], newest: int) -> Tensor:
    """Which key a query sees where the prompt and the newest steps before a chunk are remembered.

    Args:
        prompt, chunks: lengths, in one unit.
        newest: so many steps before a chunk's beginning are in its view.
    """
    visible = torch.zeros(prompt + sum(chunks), prompt + sum(chunks), dtype=torch.bool)
    visible[:, :prompt] = True
    begin = prompt
    for chunk in chunks:
        visible[begin : begin + chunk, max(prompt, begin - newest) : begin + chunk] = True
        begin += chunk
    return visible


def reference_visible(prompt: int, chunks: Sequence[int], past: int) -> Tensor:
    """The same for the authors' list: new steps go in front; of too long a list the first `prompt` and the last
    `past` are kept."""
    visible = torch.zeros(prompt + sum(chunks), prompt + sum(chunks), dtype=torch.bool)
    visible[:prompt, :prompt] = True
    remembered, begin = list(range(prompt)), prompt
    for chunk in chunks:
        remembered = [*range(begin, begin + chunk), *remembered]
        visible[begin : begin + chunk, remembered] = True
        if len(remembered) > prompt + past:
            remembered = remembered[:prompt] + remembered[-past:]
        begin += chunk
    return visible
