"""Speech tokens -> mel frames by flow matching (CosyVoice 2, arXiv 2412.10117), chunk by chunk or whole.

There is one road: everything at once is one last chunk from an empty state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidecar.timebase import FRAMES_PER_TOKEN
from sidecar.token2wav.config import FlowConfig
from sidecar.token2wav.estimator import Conditions
from sidecar.token2wav.history import RECENT, HistoryPolicy, gather
from sidecar.token2wav.solver import Solver, time_schedule
from sidecar.token2wav.state import (
    EncoderState,
    EstimatorState,
    FlowState,
    Positions,
    VoiceFeatures,
    positions_tensor,
    present,
    split,
    stack,
)
from sidecar.token2wav.upsample_encoder import LOOKAHEAD_TOKENS, UpsampleEncoder


class FlowNetwork(nn.Module):
    """The trained layers, under the names they have in `flow.pt`."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.vocab_size, config.input_size)
        self.spk_embed_affine_layer = nn.Linear(config.spk_embed_dim, config.output_size)
        self.encoder = UpsampleEncoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.output_size, config.output_size)
        self.decoder = Solver(config)


@dataclass(frozen=True)
class Encoded:
    """The encoder's part of one call, with the new keys and values alone."""

    hidden: Tensor  # (B, T, C) after the closing norm
    mu: Tensor  # (B, M, T)
    state: EncoderState


class Flow:
    """A loaded flow.

    Args:
        network: with its weights in float32; it is converted to `dtype` here.
        dtype: of layers and caches. Flow times, what the blocks and the solver add up, and the mel are float32 always.
        history: what a stream still attends to after a call.
    """

    def __init__(
        self,
        network: FlowNetwork,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        history: HistoryPolicy = RECENT,
    ) -> None:
        self.config = network.config
        self.history = history
        self.device = torch.device(device)
        self.dtype = dtype
        with torch.inference_mode():
            modulation = network.decoder.estimator.modulation(time_schedule(self.config.steps)[:-1])
            self.modulation = modulation.to(self.device)
        self.network = network.to(self.device, dtype).eval().requires_grad_(False)

    def initial_state(self, speaker: Tensor, *, prompt_tokens: int) -> FlowState:
        """Nothing fed yet. `speaker` is (192,), of any length but 0: only its direction counts."""
        direction = F.normalize(speaker.float()[None], dim=1, eps=1e-12).to(self.device, self.dtype)
        return FlowState(
            speaker=self.network.spk_embed_affine_layer(direction),
            encoder=self.network.encoder.initial_state(1),
            estimator=self.network.decoder.initial_state(1),
            prompt_tokens=(prompt_tokens,),
            tokens_done=(0,),
        )

    def open_voice(self, features: VoiceFeatures, noise: Tensor) -> tuple[Tensor, FlowState]:
        """Feeds the prompt, noise (1, M, P) -> a mel (1, M, P) that nobody hears, and every stream's first state.

        What follows the prompt isn't known yet, so its own first tokens stand in for the look-ahead.
        """
        prompt = features.prompt_tokens
        tokens = torch.cat([prompt, prompt[:LOOKAHEAD_TOKENS]])[None]
        state = self.initial_state(features.speaker, prompt_tokens=len(prompt))
        mel, (state,) = self.step(tokens, [state], noise, last=False, prompt_mel=features.prompt_mel.T[None])
        return mel, state

    def whole(self, features: VoiceFeatures, tokens: Tensor, noise: Tensor) -> Tensor:
        """Prompt and tokens (1, N) in one call, noise (1, M, P + 2N) -> mel (1, M, P + 2N), the prompt's first."""
        everything = torch.cat([features.prompt_tokens[None], tokens], dim=1)
        state = self.initial_state(features.speaker, prompt_tokens=len(features.prompt_tokens))
        mel, _ = self.step(everything, [state], noise, last=True, prompt_mel=features.prompt_mel.T[None])
        return mel

    @torch.inference_mode()
    def step(
        self,
        tokens: Tensor,
        states: Sequence[FlowState],
        noise: Tensor,
        *,
        last: bool,
        prompt_mel: Tensor | None = None,
    ) -> tuple[Tensor, list[FlowState]]:
        """The next chunk of B streams, whatever each of them remembers.

        Args:
            tokens: (B, N) ids; unless `last`, the final 3 are look-ahead and come again in the next call.
            states: one a stream.
            noise: (B, M, T), T = 2N, or 2(N - 3) if not last.
            prompt_mel: (B, M, up to T) recorded frames that the first frames of this call should be; none as a rule.

        Returns:
            mel (B, M, T) float32, and the new states.
        """
        past = stack(states)
        encoded = self.encode(tokens, past, last=last)
        frames = encoded.mu.shape[-1]
        cond = torch.zeros_like(encoded.mu)
        if prompt_mel is not None:
            cond[..., : prompt_mel.shape[-1]] = prompt_mel
        known = past.estimator.frames
        mask = present(known, past.estimator.keys_values.shape[-2], frames, self.device)
        mel, solved = self.network.decoder(
            noise.to(self.device), Conditions(encoded.mu, past.speaker, cond), self.modulation, past.estimator, mask
        )
        return mel, self._after(states, past, encoded.state, solved, frames // FRAMES_PER_TOKEN)

    @torch.inference_mode()
    def encode(self, tokens: Tensor, past: FlowState, *, last: bool) -> Encoded:
        """The encoder alone, on tokens (B, N) after what `past` (B streams) holds."""
        cached = past.encoder.token_keys_values.shape[-2]
        new_tokens = tokens.shape[1] if last else tokens.shape[1] - LOOKAHEAD_TOKENS
        positions = torch.cat(
            [
                positions_tensor(past.encoder.tokens, cached, self.device),
                positions_tensor(_upcoming(past, new_tokens), new_tokens, self.device),
            ],
            dim=1,
        )
        mask = present(past.encoder.tokens, cached, new_tokens, self.device)
        embedded = self.network.input_embedding(tokens.to(self.device))  # (B, N, C)
        hidden, state = self.network.encoder(embedded, past.encoder, positions, mask, last=last)
        return Encoded(hidden, self.network.encoder_proj(hidden).transpose(1, 2), state)

    def _after(
        self,
        states: Sequence[FlowState],
        past: FlowState,
        encoder: EncoderState,
        estimator: EstimatorState,
        new_tokens: int,
    ) -> list[FlowState]:
        """Each stream's old columns and new ones joined, less what the history policy drops."""
        tokens = _upcoming(past, new_tokens)
        frames: Positions = tuple(tuple(_frames_of(row)) for row in tokens)
        new = FlowState(
            past.speaker,
            replace(encoder, tokens=tokens),
            replace(estimator, frames=frames),
            past.prompt_tokens,
            tuple(done + new_tokens for done in past.tokens_done),
        )
        return [self._joined(old, row) for old, row in zip(states, split(new), strict=True)]

    def _joined(self, old: FlowState, new: FlowState) -> FlowState:
        old_tokens, new_tokens = old.encoder.tokens[0], new.encoder.tokens[0]
        old_frames, new_frames = old.estimator.frames[0], new.estimator.frames[0]
        token_places = self.history.tokens_kept(old_tokens, new_tokens, new.prompt_tokens[0])
        frame_places = self.history.frames_kept(old_frames, new_frames, new.prompt_frames[0])
        return replace(
            new,
            encoder=replace(
                new.encoder,
                token_keys_values=gather(old.encoder.token_keys_values, new.encoder.token_keys_values, token_places),
                frame_keys_values=gather(
                    old.encoder.frame_keys_values, new.encoder.frame_keys_values, _frames_of(token_places)
                ),
                tokens=(_at(old_tokens + new_tokens, token_places),),
            ),
            estimator=replace(
                new.estimator,
                keys_values=gather(old.estimator.keys_values, new.estimator.keys_values, frame_places),
                frames=(_at(old_frames + new_frames, frame_places),),
            ),
        )


def _upcoming(past: FlowState, tokens: int) -> Positions:
    return tuple(tuple(range(done, done + tokens)) for done in past.tokens_done)


def _frames_of(tokens: Sequence[int]) -> list[int]:
    return [token * FRAMES_PER_TOKEN + part for token in tokens for part in range(FRAMES_PER_TOKEN)]


def _at(positions: tuple[int, ...], places: Sequence[int]) -> tuple[int, ...]:
    return tuple(positions[place] for place in places)
