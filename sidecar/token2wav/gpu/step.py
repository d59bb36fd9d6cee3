"""The whole step on the device: tokens -> mel -> samples, for streams of any voice, position and length at once."""

from __future__ import annotations

from torch import Tensor

from sidecar.token2wav.gpu.encoder import FusedEncoder
from sidecar.token2wav.gpu.noise import mel_noise
from sidecar.token2wav.gpu.rows import Rows
from sidecar.token2wav.gpu.seams import FusedVocoder
from sidecar.token2wav.gpu.slots import allocate
from sidecar.token2wav.gpu.solver import FusedSolver
from sidecar.token2wav.history import RecentHistory
from sidecar.token2wav.noise import SeededNoise
from sidecar.token2wav.seams import CONTINUOUS
from sidecar.token2wav.state import OpenedVoice
from sidecar.token2wav.token2wav import Token2Wav


class GpuToken2Wav:
    """What `Token2Wav.step` computes, over slots and in few kernels. Its parts stand open so that each can be timed.

    Args:
        token2wav: whose weights are laid out anew, whose device and precision are taken, and who opens the voices.
        slots: streams at once.
        most_tokens: new tokens of a chunk at most.

    Raises:
        ValueError: a `token2wav` with another history, noise or seams than the product's; here there are only those.
    """

    def __init__(self, token2wav: Token2Wav, *, slots: int, most_tokens: int) -> None:
        flow = token2wav.flow
        history = flow.history
        if not isinstance(history, RecentHistory) or token2wav.seams != CONTINUOUS:
            raise ValueError(
                f"history {history} and seams {token2wav.seams} came; the fast road has only RecentHistory and "
                f"{CONTINUOUS}: step others with Token2Wav.step"
            )
        if not isinstance(token2wav.noise, SeededNoise):
            raise ValueError(f"noise {token2wav.noise} came; the fast road draws SeededNoise: use Token2Wav.step")
        self.device = flow.device
        self.dtype = flow.dtype
        self.vocab_size = token2wav.speech_token_count
        self.most_tokens = most_tokens
        self.slots = allocate(
            flow.config,
            slots,
            most_tokens=most_tokens,
            dtype=flow.dtype,
            device=flow.device,
            past_frames=history.past_frames,
            past_tokens=history.past_tokens,
        )
        self._mel_bins = flow.config.output_size
        self.encoder = FusedEncoder(flow.network, flow.dtype, most_tokens=most_tokens, past_tokens=history.past_tokens)
        self.solver = FusedSolver(flow.network, flow.modulation, flow.dtype, past_frames=history.past_frames)
        self.vocoder = FusedVocoder(token2wav.vocoder, flow.dtype)

    def begin(self, slot: int, voice: OpenedVoice) -> None:
        """Put what a stream of the voice starts with into its slot; the voice's keys and values stay where they are."""
        slots, flow = self.slots, voice.flow
        slots.conv_past[slot].copy_(flow.estimator.conv_past[:, :, :, 0])
        slots.lookahead_past[slot].copy_(flow.encoder.lookahead_past[0])
        slots.upsample_past[slot].copy_(flow.encoder.upsample_past[0])
        slots.speaker[slot].copy_(flow.speaker[0])
        slots.turns[slot].zero_()
        slots.at_start[slot].fill_(1)

    def step(self, rows: Rows) -> Tensor:
        """The next chunk of each line. Nothing here waits for the device or depends on what the lines say.

        Args:
            rows: B lines on the device, at most `most_tokens` wide, no slot twice.

        Returns:
            samples (B, S) float32 in [-1, 1], S = 480 (T + 8): each line's own first, as many as `samples_given` says,
            NaN from end to end where its mel or sound is not finite; what follows means nothing.
        """
        assert rows.tokens <= self.most_tokens, f"lines of {rows.tokens} tokens, where {self.most_tokens} have room"
        mu = self.encoder(rows, self.slots)  # (B, T, M)
        mel = self.solver(mu, mel_noise(rows, self._mel_bins), rows, self.slots)  # (B, T, M) float32
        return self.vocoder(mel, rows, self.slots)
