"""Speech tokens to sound, for many streams at once: tensors and state in, tensors and state out."""

from sidecar.token2wav.state import OpenedVoice, StreamState, VoiceFeatures
from sidecar.token2wav.token2wav import Token2Wav

__all__ = ["OpenedVoice", "StreamState", "Token2Wav", "VoiceFeatures"]
