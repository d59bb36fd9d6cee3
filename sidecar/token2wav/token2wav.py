"""Speech tokens (25 Hz) -> samples (24 kHz): the flow makes mel frames of them, the vocoder sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sidecar.errors import SynthesisFailed
from sidecar.timebase import FRAMES_PER_TOKEN, tokens_to_frames
from sidecar.token2wav.config import load_flow_config
from sidecar.token2wav.flow import Flow
from sidecar.token2wav.noise import Noise, SeededNoise
from sidecar.token2wav.seams import CONTINUOUS, SeamPolicy, VocoderState
from sidecar.token2wav.state import OpenedVoice, StreamState, VoiceFeatures
from sidecar.token2wav.upsample_encoder import LOOKAHEAD_TOKENS
from sidecar.token2wav.vocoder import Vocoder
from sidecar.token2wav.weights import load_flow, load_vocoder

#: A voice needs this many tokens: the beginning of its prompt stands in for the look-ahead at the prompt's end.
MIN_PROMPT_TOKENS = LOOKAHEAD_TOKENS

_SEEDED = SeededNoise()


@dataclass(frozen=True)
class Token2Wav:
    """Flow, vocoder, their noise and seams. It holds no stream: whoever steps a stream holds that stream's state.

    The same tokens, chunk borders, voice and seed give the same samples; the borders matter, because a chunk's frames
    all see each other and nothing after them but 3 tokens.
    """

    flow: Flow
    vocoder: Vocoder
    noise: Noise = _SEEDED
    seams: SeamPolicy = CONTINUOUS

    LOOKAHEAD_TOKENS = LOOKAHEAD_TOKENS

    @classmethod
    def from_folder(cls, folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Token2Wav:
        """From the `token2wav` folder of a checkpoint: flow.yaml, flow.pt, hift.pt.

        Args:
            dtype: of the flow's layers and caches; the vocoder runs in float32. On a GPU this switches off, for the
                process, convolutions that are less exact than float32 or differ from one call to the next.

        Raises:
            CheckpointError: a file that is missing, broken, or not what its neighbours say; names the tensor or key.
        """
        _compute_exactly()
        _leave_out_cudnn_attention()
        config = load_flow_config(folder / "flow.yaml")
        vocoder = load_vocoder(folder / "hift.pt", mel_bins=config.output_size).to(device)
        network = load_flow(folder / "flow.pt", config, dtype=dtype)
        return cls(Flow(network, device=device, dtype=dtype), vocoder)

    @property
    def speech_token_count(self) -> int:
        """Ids run from 0 to this, exclusive; the language model's padding token has no row and must be left out."""
        return self.flow.config.vocab_size

    @torch.inference_mode()
    def open_voice(self, features: VoiceFeatures) -> OpenedVoice:
        """Feeds a prompt once, for any number of streams. At full size this is 1.5 TFLOP for a prompt of 9 s.

        Raises:
            SynthesisFailed: features that do not fit each other or this model, or a state that is not finite.
        """
        self._check_features(features)
        frames = tokens_to_frames(len(features.prompt_tokens))
        noise = self.noise.prompt_mel(frames, self.flow.config.output_size)[None]
        mel, state = self.flow.open_voice(features, noise)
        if not torch.isfinite(mel).all():
            raise SynthesisFailed("the voice's recording gives numbers that are not finite; choose another recording")
        return OpenedVoice(state)

    def start(self, voice: OpenedVoice, *, seed: int) -> StreamState:
        """A stream before its first token. Streams of one voice share the voice's memory until they have their own."""
        return StreamState(flow=voice.flow, vocoder=self.seams.initial_state(self.vocoder, 1), seed=seed)

    @torch.inference_mode()
    def step(self, tokens: Tensor, states: Sequence[StreamState], *, last: bool) -> tuple[Tensor, list[StreamState]]:
        """The next chunk of B streams of any voices, positions and seeds.

        Args:
            tokens: (B, N) integers on the CPU. Unless `last`, the final 3 columns are look-ahead and come again as the
                first 3 of the next call; N - 3 are spoken.
            states: one a stream. All must hold the same `held_frames`, so that all see and give equally much: a
                stream's first chunk does not share a step with a later one, nor does any before 8 tokens are done.

        Returns:
            samples (B, S) float32 in [-1, 1]: over a whole stream exactly 960 a token, 3840 (160 ms) behind before the
            last chunk. A row whose mel or sound is not finite is NaN from end to end; the other rows are unharmed, so
            a caller who finds `~samples.isfinite().all(1)` ends those streams alone. And the new states; the old ones
            are as they were, so a step may be tried again.

        Raises:
            SynthesisFailed: ids outside the vocabulary, naming row and id, or too few tokens for a chunk.
        """
        self._check_tokens(tokens, len(states), last=last)
        spoken = tokens.shape[1] if last else tokens.shape[1] - LOOKAHEAD_TOKENS
        noise = self._mel_noise(states, spoken)
        mel, flows = self.flow.step(tokens, [state.flow for state in states], noise, last=last)
        samples, vocoders = self._vocode(mel, states, last=last)
        finite = mel.isfinite().all(dim=2).all(dim=1) & samples.isfinite().all(dim=1)  # (B,)
        # the reference's fade adds up to more than 1, so that a loud seam can reach past it
        samples = samples.clamp(-1, 1).masked_fill(~finite[:, None], torch.nan)
        return samples, [
            StreamState(flow, vocoder, state.seed) for flow, vocoder, state in zip(flows, vocoders, states, strict=True)
        ]

    @torch.inference_mode()
    def synthesize_whole(self, features: VoiceFeatures, tokens: Tensor, *, seed: int) -> Tensor:
        """tokens (1, N) in one piece, prompt and all, every frame in view of every other -> samples (1, 960 N).

        Nothing is streamed or shared this way; it is what streamed speech is measured against.
        """
        self._check_features(features)
        self._check_tokens(tokens, 1, last=True)
        prompt_frames, frames = len(features.prompt_mel), tokens_to_frames(tokens.shape[1])
        mel_bins = self.flow.config.output_size
        noise = torch.cat(
            [
                self.noise.prompt_mel(prompt_frames, mel_bins),
                self.noise.speech_mel(seed, prompt_frames, 0, frames, mel_bins),
            ],
            dim=1,
        )
        mel = self.flow.whole(features, tokens, noise[None])[..., prompt_frames:]
        return self.seams.whole(self.vocoder, mel, self.noise.source(seed, 0, frames)[None].to(mel.device))

    def _vocode(self, mel: Tensor, states: Sequence[StreamState], *, last: bool) -> tuple[Tensor, list[VocoderState]]:
        held = {state.held_frames for state in states}
        assert len(held) == 1, f"streams of one step hold {sorted(held)} frames; step those apart"
        held_frames = held.pop()
        noise = torch.stack(
            [
                self.noise.source(state.seed, state.frames_done - held_frames, held_frames + mel.shape[-1])
                for state in states
            ]
        )  # (B, 480 T, 9)
        before = VocoderState.stack([state.vocoder for state in states])
        samples, after = self.seams.step(self.vocoder, mel, before, noise.to(mel.device), last=last)
        return samples, after.split()

    def _mel_noise(self, states: Sequence[StreamState], tokens: int) -> Tensor:
        return torch.stack(
            [
                self.noise.speech_mel(
                    state.seed,
                    state.flow.prompt_frames[0],
                    state.frames_done,
                    tokens_to_frames(tokens),
                    self.flow.config.output_size,
                )
                for state in states
            ]
        )  # (B, M, T)

    def _check_tokens(self, tokens: Tensor, streams: int, *, last: bool) -> None:
        assert tokens.dim() == 2 and len(tokens) == streams, f"tokens are {tuple(tokens.shape)} for {streams} streams"
        least = 1 if last else LOOKAHEAD_TOKENS + 1
        if tokens.shape[1] < least:
            raise SynthesisFailed(
                f"a chunk came with {tokens.shape[1]} tokens; it needs at least {least}"
                + ("" if last else f", {LOOKAHEAD_TOKENS} of them look-ahead")
            )
        wrong = ((tokens < 0) | (tokens >= self.speech_token_count)).nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            raise SynthesisFailed(
                f"speech token {int(tokens[row, column])} in row {row} is outside 0 to "
                f"{self.speech_token_count - 1}; leave out padding and text tokens"
            )

    def _check_features(self, features: VoiceFeatures) -> None:
        tokens, config = len(features.prompt_tokens), self.flow.config
        if tokens < MIN_PROMPT_TOKENS:
            raise SynthesisFailed(
                f"the voice's recording has {tokens} speech tokens; it needs at least {MIN_PROMPT_TOKENS} (25 a second)"
            )
        expected = {"prompt_mel": (tokens * FRAMES_PER_TOKEN, config.output_size), "speaker": (config.spk_embed_dim,)}
        for name, shape in expected.items():
            given = getattr(features, name)
            if tuple(given.shape) != shape:
                raise SynthesisFailed(
                    f"the voice's {name} is {tuple(given.shape)} and should be {shape} for {tokens} prompt tokens"
                )
        if (features.prompt_tokens < 0).any() or (features.prompt_tokens >= config.vocab_size).any():
            raise SynthesisFailed(f"the voice's prompt has speech tokens outside 0 to {config.vocab_size - 1}")


def _compute_exactly() -> None:
    """cuDNN's float32 convolutions in float32, and the same way every time.

    By PyTorch's default they round what they multiply to 10 bits (TF32). The pitch, summed to a phase, is then another
    after a second: 9 dB between an H100's sound and a CPU's, against 70 dB without, in the same time. And cuDNN may add
    up in any order: the same seed gave other samples each time.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def _leave_out_cudnn_attention() -> None:
    """cuDNN's attention makes a plan for each length it meets and keeps it for good; the other kernels take any length.

    Until its windows are full, a stream's every chunk has another length: on an H100 each then took 4 MB of the host's
    memory, never to be given back, and about 100 ms more.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
