"""Two small random ONNX graphs with the inputs and outputs of the real speaker model and speech tokenizer.

They hear something: other sound gives another vector and other tokens. They recognise nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

#: Old enough for any onnxruntime in use.
OPSET = 13
IR_VERSION = 8

FILTERBANK_BINS = 80
SPEAKER_WIDTH = 192
LOG_MEL_BINS = 128
MIDDLE_WIDTH = 32
#: A token is eight digits of 0, 1 or 2: 3^8 = 6561 codes (finite scalar quantisation, arXiv 2309.15505).
DIGITS = 8


def speaker_model(seed: int) -> bytes:
    """Filterbank (B, frames, 80) with its mean taken off -> speaker vector (B, 192), from the spread of each bin."""
    random = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Mul", ["input", "input"], ["energy"]),
        helper.make_node("ReduceMean", ["energy"], ["mean_energy"], axes=[1], keepdims=0),
        helper.make_node("Sqrt", ["mean_energy"], ["spread"]),
        helper.make_node("MatMul", ["spread", "weight"], ["mixed"]),
        helper.make_node("Add", ["mixed", "bias"], ["output"]),
    ]
    constants = {
        "weight": _normal(random, FILTERBANK_BINS, SPEAKER_WIDTH, deviation=0.3),
        "bias": _normal(random, SPEAKER_WIDTH, deviation=0.3),
    }
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["B", "frames", FILTERBANK_BINS])]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["B", SPEAKER_WIDTH])
    return _model("speaker", nodes, constants, inputs, output)


def speech_tokenizer(seed: int) -> bytes:
    """Log-mel (1, 128, L) and its length L -> tokens (1, ceil(ceil(L / 2) / 2)), each 0 ... 6560."""
    random = np.random.default_rng(seed)
    halve = {"kernel_shape": [3], "pads": [1, 1], "strides": [2]}
    nodes = [
        helper.make_node("Slice", ["feats", "zero", "feats_length", "time_axis"], ["heard"]),
        helper.make_node("Conv", ["heard", "weight1", "bias1"], ["x1"], **halve),
        helper.make_node("Tanh", ["x1"], ["x2"]),
        helper.make_node("Conv", ["x2", "weight2", "bias2"], ["x3"], **halve),
        helper.make_node("Transpose", ["x3"], ["x4"], perm=[0, 2, 1]),
        helper.make_node("Tanh", ["x4"], ["x5"]),
        helper.make_node("Round", ["x5"], ["x6"]),
        helper.make_node("Add", ["x6", "one"], ["digits"]),
        helper.make_node("MatMul", ["digits", "place_values"], ["codes"]),
        helper.make_node("Cast", ["codes"], ["indices"], to=TensorProto.INT32),
    ]
    constants = {
        "zero": np.zeros(1, dtype=np.int32),
        "time_axis": np.array([2], dtype=np.int32),
        "weight1": _normal(random, MIDDLE_WIDTH, LOG_MEL_BINS, 3, deviation=0.15),
        "bias1": _normal(random, MIDDLE_WIDTH, deviation=0.3),
        "weight2": _normal(random, DIGITS, MIDDLE_WIDTH, 3, deviation=0.15),
        "bias2": _normal(random, DIGITS, deviation=0.3),
        "one": np.ones(1, dtype=np.float32),
        "place_values": (3.0 ** np.arange(DIGITS)).astype(np.float32),
    }
    inputs = [
        helper.make_tensor_value_info("feats", TensorProto.FLOAT, [1, LOG_MEL_BINS, "L"]),
        helper.make_tensor_value_info("feats_length", TensorProto.INT32, [1]),
    ]
    output = helper.make_tensor_value_info("indices", TensorProto.INT32, [1, "N"])
    return _model("speech_tokenizer", nodes, constants, inputs, output)


def _normal(random: np.random.Generator, *shape: int, deviation: float) -> NDArray[np.float32]:
    return random.standard_normal(shape, dtype=np.float32) * np.float32(deviation)


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, NDArray[Any]],
    inputs: list[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
) -> bytes:
    tensors = [numpy_helper.from_array(value, name=constant) for constant, value in constants.items()]
    graph = helper.make_graph(nodes, name, inputs, [output], initializer=tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    contents: bytes = model.SerializeToString(deterministic=True)
    return contents
