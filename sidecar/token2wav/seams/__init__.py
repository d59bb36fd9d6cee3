"""How a stream's chunks become one sound: what the vocoder sees of the chunk before, and how the two are joined."""

from sidecar.token2wav.seams.continuous import CONTINUOUS, ContinuousSeams
from sidecar.token2wav.seams.policy import SeamPolicy, VocoderState
from sidecar.token2wav.seams.reference import REFERENCE, ReferenceSeams

__all__ = ["CONTINUOUS", "REFERENCE", "ContinuousSeams", "ReferenceSeams", "SeamPolicy", "VocoderState"]
