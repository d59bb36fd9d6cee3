"""flow.yaml is data: whatever else it asks for is refused in words, soon, and without memory or time to speak of."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from tiny_token2wav import tiny_config

from sidecar.errors import CheckpointError
from sidecar.token2wav.config import load_flow_config

YAML = """
flow: !new:cosyvoice2.flow.flow.CausalMaskedDiffWithXvec
  input_size: 64
  output_type: mel
  vocab_size: 257
  encoder: !new:cosyvoice2.transformer.upsample_encoder_v2.UpsampleConformerEncoderV2
    input_size: 64
    output_size: 64
    num_blocks: 2
    num_up_blocks: 1
    linear_units: 128
    dropout_rate: 0.1
    key_bias: true
  decoder: !new:cosyvoice2.flow.flow_matching.CausalConditionalCFM
    inference_cfg_rate: 0.7
    estimator: !new:cosyvoice2.flow.decoder_dit.DiT
      depth: 2
      num_heads: 2
      head_dim: 16
      hidden_size: 48
"""


TOP = "flow: !new:cosyvoice2.flow.flow.CausalMaskedDiffWithXvec\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "flow.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_flow_yaml_gives_the_sizes_and_the_classes_own_defaults(tmp_path: Path) -> None:
    assert load_flow_config(written(tmp_path, YAML)) == tiny_config()


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(CheckpointError) as refused:
        load_flow_config(written(folder, text))
    message = refused.value.message
    assert "flow.yaml" in message
    assert len(message) < 1000, "nobody reads that"
    return message


def changed(before: str, after: str) -> str:
    assert before in YAML
    return YAML.replace(before, after, 1)


@pytest.mark.parametrize("ends", ["\r\n", "\n"])
def test_line_ends_and_a_byte_order_mark_make_no_difference(tmp_path: Path, ends: str) -> None:
    path = tmp_path / "flow.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + YAML.replace("\n", ends).encode())
    assert load_flow_config(path) == tiny_config()


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {trap}']",
        "!!python/object/new:pathlib.Path ['{trap}']",
        "!!python/name:os.system ''",
        "!!python/module:os ''",
        "!new:pathlib.Path ['{trap}']",
        "!new:cosyvoice2.flow.length_regulator.InterpolateRegulator {{channels: 80}}",
        "!name:os.system",
        "!apply:os.system ['touch {trap}']",
        "!ref <flow>",
    ],
)
def test_no_tag_makes_or_calls_anything(tmp_path: Path, value: str) -> None:
    trap = tmp_path / "sprung"
    refusal(tmp_path, changed("vocab_size: 257", f"vocab_size: {value.format(trap=trap)}"))
    assert not trap.exists()


def test_references_are_refused_before_they_multiply(tmp_path: Path) -> None:
    laughs = "a0: &a0 [ha, ha]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(40))
    tracemalloc.start()
    assert "line 2 refers to another by *a0" in refusal(tmp_path, laughs + "flow: {encoder: *a40}\n")
    assert "refers to another by *me" in refusal(tmp_path, "flow: &me {encoder: *me}\n")
    merging = "a: &a {depth: 2}\nflow:\n  <<: *a\n"
    assert "refers to another by *a" in refusal(tmp_path, merging)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("output_type: mel", "output_type: wave", "flow.output_type is 'wave'; this package builds 'mel' only"),
        ("key_bias: true", "key_bias: false", "flow.encoder.key_bias is False"),
        ("depth: 2", "depth: two", "flow.decoder.estimator.depth is 'two' and should be a number"),
        ("depth: 2", "depth: 0", "depth is 0 and should be above 0"),
        ("depth: 2", "layers: 2", "flow.decoder.estimator has the unknown layers"),
        ("    output_size: 64", "    output_size: 32", "have to be equal"),
        ("    input_size: 64\n", "", "flow.encoder lacks input_size"),
        ("decoder_dit.DiT", "decoder_unet.UNet", "decoder_unet.UNet"),
        ("flow:", "wave:", "no mapping called 'flow'"),
        ("  encoder: !new", "  encoder: [!new", "cannot be read as YAML"),
        ("depth: 2", "depth: 1000000000", "estimator.depth is 1000000000 and should be above 0, 256 at most"),
        ("num_blocks: 2", "num_blocks: 257", "flow.encoder.num_blocks is 257"),
        ("hidden_size: 48", "hidden_size: 4000000000", "hidden_size is 4000000000 and should be above 0, 1000000 at"),
        ("vocab_size: 257", "vocab_size: " + "9" * 400, "vocab_size is 999"),
        ("vocab_size: 257", "vocab_size: " + "9" * 5000, "cannot be read as YAML data"),
        ("vocab_size: 257", "vocab_size: -257", "vocab_size is -257 and should be above 0"),
        ("vocab_size: 257", "vocab_size: '257'", "vocab_size is '257' and should be a number without a fraction"),
        ("vocab_size: 257", "vocab_size: 257.0", "vocab_size is 257.0 and should be a number without a fraction"),
        ("vocab_size: 257", "vocab_size: true", "vocab_size is True and should be a number"),
        ("vocab_size: 257", "vocab_size:", "vocab_size is None and should be a number"),
        ("vocab_size: 257", "vocab_size: [257]", r"vocab_size is [257] and should be a number"),
        ("vocab_size: 257", "vocab_size: .nan", "vocab_size is nan and should be a number without"),
        ("vocab_size: 257", "vocab_size: 2026-99-99", "cannot be read as YAML data"),
        ("depth: 2", "mlp_ratio: .nan\n      depth: 2", "mlp_ratio is nan and should be above 0"),
        ("depth: 2", "mlp_ratio: .inf\n      depth: 2", "mlp_ratio is inf and should be above 0"),
        ("cfg_rate: 0.7", "cfg_rate: .nan", "inference_cfg_rate is nan and should be 0 to"),
        ("cfg_rate: 0.7", "cfg_rate: -1", "inference_cfg_rate is -1 and should be 0 to"),
        ("cfg_rate: 0.7", "cfg_rate: high", "inference_cfg_rate is 'high' and should be a number"),
        ("key_bias: true", "key_bias: 1", "flow.encoder.key_bias is 1; this package builds True only"),
        ("key_bias: true", "up_stride: 2.0", "flow.encoder.up_stride is 2.0; this package builds 2 only"),
        ("depth: 2", "depth: 2\n      depth: 3", "'depth' stands in line"),
        ("depth: 2", "depth: 2\n      gelu: tanh", "flow.decoder.estimator has the unknown gelu; known are"),
        ("depth: 2", "depth: 2\n      {a: b}: 3", "cannot be read as YAML data"),
        ("  encoder: !new:cosyvoice2.transformer.upsample_encoder_v2.UpsampleConformerEncoderV2", "  encoder: 3\n  x:",
         "flow.encoder should be a mapping of sizes, and is 3"),
        ("  encoder: !new:cosyvoice2.transformer.upsample_encoder_v2.UpsampleConformerEncoderV2", "  coder:",
         "flow.encoder should be a mapping of sizes, and is None"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_by_its_key(tmp_path: Path, before: str, after: str, words: str) -> None:
    assert words in refusal(tmp_path, changed(before, after))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 1840\n", "is a git-lfs pointer"),
        ("flow:\n", "no mapping called 'flow'"),
        ("- flow", "no mapping called 'flow'"),
        ("flow: {}\n---\nflow: {}\n", "cannot be read as YAML data"),
        ("flow: \x00", "cannot be read as YAML data"),
        ("flow: " + "[" * 20_000, "nested too deeply"),
        ("flow: " + "{a: " * 10_000 + "1" + "}" * 10_000, "nested too deeply"),
        ("flow: " + "a" * 100_000, "has 100,006 bytes; a flow configuration has at most 64,000"),
        (TOP + "".join(f"  key{n}: 1\n" for n in range(3000)), "flow.encoder should be a mapping"),
        ("flow: " + "{" + ", ".join(f"k{n}: 1" for n in range(5000)) + ", encoder: {input_size: 8, output_size: 8}, "
         "decoder: {estimator: {}}}", "flow has the unknown k0, k1, k10"),
        (YAML[: len(YAML) // 2], "flow.decoder should be a mapping"),
    ],
)  # fmt: skip
def test_what_is_no_flow_configuration_is_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"flow\.yaml is missing"):
        load_flow_config(tmp_path / "flow.yaml")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_bytes(b"flow: \xff\xfe")
    with pytest.raises(CheckpointError, match="cannot be read as YAML"):
        load_flow_config(tmp_path / "flow.yaml")


def test_what_is_left_out_takes_the_default_of_the_class_that_is_named(tmp_path: Path) -> None:
    least = "flow:\n  encoder: {input_size: 256}\n  decoder: {estimator: {}}\n  input_size: 256\n"
    config = load_flow_config(written(tmp_path, least))
    assert (config.vocab_size, config.output_size, config.spk_embed_dim, config.cfg_rate) == (5121, 80, 192, 0.7)
    encoder, estimator = config.encoder, config.estimator
    assert (encoder.output_size, encoder.attention_heads, encoder.linear_units) == (256, 4, 2048)
    assert (encoder.num_blocks, encoder.num_up_blocks) == (6, 4)
    assert (estimator.in_channels, estimator.out_channels, estimator.mlp_ratio) == (320, 80, 4.0)
    assert (estimator.depth, estimator.num_heads, estimator.head_dim, estimator.hidden_size) == (28, 8, 64, 256)
