"""The errors a client can meet: each says what to do, and knows its HTTP status and its OpenAI error type."""

from __future__ import annotations


class SidecarError(Exception):
    """Base of the family.

    Args:
        message: what came, what is allowed, what to change.
        param: the request field it is about, if there is one.
        code: a word that programs can branch on; the class's own word where not given.
    """

    status = 500
    type = "server_error"
    code: str | None = None
    retry_after_s: int | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class SettingsError(SidecarError):
    """A setting that cannot work; the process refuses to start."""


class BadRequest(SidecarError):
    status = 400
    type = "invalid_request_error"


class UnknownVoice(BadRequest):
    """A request for a voice that is not there; the message names those that are."""

    code = "unknown_voice"


class NotPermitted(SidecarError):
    status = 403
    type = "permission_error"
    code = "not_permitted"


class PathNotPermitted(NotPermitted):
    code = "path_not_permitted"


class NotFound(SidecarError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class Conflict(SidecarError):
    """What is there already stands against it."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class TooLarge(SidecarError):
    status = 413
    type = "invalid_request_error"
    code = "too_large"


class UnsupportedMedia(SidecarError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_media"


class UnusableAudio(SidecarError):
    """Sound that was recognised but cannot be used: empty, damaged, not finite."""

    status = 422
    type = "invalid_request_error"
    code = "unusable_audio"


class RecordingTooLong(UnusableAudio):
    """A recording over the limit; the message gives the limit in seconds."""

    status = 400
    code = "recording_too_long"


class EngineFailed(SidecarError):
    """The language model answered with something that is no answer, or went away in the middle of one."""

    status = 502
    type = "server_error"
    code = "engine_failed"
    retry_after_s = 5


class NotReady(SidecarError):
    status = 503
    type = "server_error"
    code = "not_ready"
    retry_after_s = 5


class Full(SidecarError):
    """Every slot has a listener."""

    status = 503
    type = "server_error"
    code = "full"
    retry_after_s = 1


class VoiceUnavailable(SidecarError):
    """A voice that is known, but whose recording cannot be had, used or kept now; says what the operator can do."""

    status = 503
    type = "server_error"
    code = "voice_unavailable"


class SynthesisFailed(SidecarError):
    """Token2wav could not turn this request's speech tokens into sound."""

    status = 500
    type = "server_error"
    code = "synthesis_failed"


class EncodingFailed(SidecarError):
    """The sound of this request is there, but could not be written in the format that was asked for."""

    status = 500
    type = "server_error"
    code = "encoding_failed"


class CheckpointError(SidecarError):
    """A weight file that is missing, truncated or not what the model needs; names the tensor."""
