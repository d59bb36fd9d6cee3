"""The two ONNX files of a voice, as they may lie on a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.errors import CheckpointError
from sidecar.token2wav.synthetic_onnx import speaker_model
from sidecar.voices.onnx import OnnxModel

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 28303423\n" % (b"0f" * 32)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (None, "is missing; the checkpoint folder needs it"),
        (b"", "is empty"),
        (POINTER, r"git-lfs pointer .* to the real file \(28,303,423 bytes\)"),
        (b"<!doctype html><title>404</title>", "is a web page"),
        (b"Entry not found", r"\(15 bytes\) is no ONNX network that loads: it is truncated or of another kind"),
        *(
            (speaker_model(0)[:kept], rf"\({kept:,} bytes\) is no ONNX network that loads: it is truncated")
            for kept in (10, 1000, 50_000)
        ),
    ],
)
def test_a_file_that_is_not_the_network_is_called_what_it_is(
    tmp_path: Path, contents: bytes | None, words: str
) -> None:
    path = tmp_path / "campplus.onnx"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(CheckpointError, match=words):
        OnnxModel(path, inputs=1)


def test_a_network_with_other_inputs_is_refused_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "campplus.onnx"
    path.write_bytes(speaker_model(0))
    OnnxModel(path, inputs=1)
    with pytest.raises(CheckpointError, match=r"has 1 inputs \(input\), not 2"):
        OnnxModel(path, inputs=2)
