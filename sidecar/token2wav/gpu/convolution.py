"""One-dimensional convolutions over lines of different lengths, channels last: the layers, and how they are launched.

Branches that differ only in their weights and kernels run side by side as groups; a transposed convolution runs as a
plain one with more channels. What follows a layer (residual, activation) is made with it, so nothing is read twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor, nn

from sidecar.token2wav.gpu.activations import Activation
from sidecar.token2wav.gpu.convolution_kernel import convolve
from sidecar.token2wav.gpu.ragged import Ragged

#: Three products on tensor cores for one of float32, whose precision they keep. Half precision is multiplied as it is.
_PRECISION = "tf32x3"
#: With fewer programs too many of an H100's 132 processors would stand idle: then smaller blocks share the work.
_ENOUGH_PROGRAMS = 96
#: Of each thread times warps, so that a processor has room for two blocks: one multiplies while the other writes.
_REGISTERS = 1024
_NO_ACTIVATION = Activation("none")


@dataclass(frozen=True)
class _Blocks:
    rows: int
    columns: int
    depth: int  # input channels of one product
    warps: int
    stages: int


#: From many programs' worth of work to little, by the bytes of a number.
_BLOCKS = {
    2: (_Blocks(128, 128, 64, 8, 3), _Blocks(64, 64, 64, 4, 4), _Blocks(32, 32, 64, 4, 4)),
    4: (_Blocks(64, 64, 32, 4, 3), _Blocks(32, 32, 32, 4, 4), _Blocks(16, 32, 32, 4, 4)),
}


@dataclass(frozen=True)
class Convolution:
    """The weights of G branches, and how they go along a line."""

    weight: Tensor  # (taps of all branches, C in, C out)
    bias: Tensor  # (G, C out) float32
    kernels: Tensor  # (G, 3) int32: first tap, taps, zeros in front
    stride: int = 1
    dilation: int = 1
    upsampling: int = 1  # C out holds so many rows of the output, one behind the other,
    shift: int = 0  # of which this many numbers come out before the first row

    @staticmethod
    def of(layers: Sequence[nn.Conv1d], dtype: torch.dtype) -> Convolution:
        """Branches that differ in their kernels only."""
        weights = [layer.weight.detach().permute(2, 1, 0) for layer in layers]  # (taps, C in, C out) each
        first, kernels = 0, []
        for layer, weight in zip(layers, weights, strict=True):
            same = layer.dilation[0] * (len(weight) - 1) // 2
            kernels.append([first, len(weight), same if isinstance(layer.padding, str) else layer.padding[0]])
            first += len(weight)
        bias = torch.stack([layer.bias.detach().float() for layer in layers if layer.bias is not None])
        return Convolution(
            torch.cat(weights).to(dtype).contiguous(),
            bias,
            torch.tensor(kernels, dtype=torch.int32, device=bias.device),
            stride=layers[0].stride[0],
            dilation=layers[0].dilation[0],
        )

    @staticmethod
    def transposed(layer: nn.ConvTranspose1d, dtype: torch.dtype) -> Convolution:
        """A transposed convolution as a plain one that makes all `rate` output rows of an input row at once.

        Row rate * q + f - padding of the output is the sum over j of input row q - j by tap f + rate * j.
        """
        assert layer.bias is not None and not isinstance(layer.padding, str), "HiFT's upsampling layers have a bias"
        (rate,), (padding,) = layer.stride, layer.padding
        weight = layer.weight.detach()  # (C in, C out, kernel)
        channels_in, channels_out, kernel = weight.shape
        taps = -(-kernel // rate)
        whole = nn.functional.pad(weight, (0, taps * rate - kernel)).view(channels_in, channels_out, taps, rate)
        packed = whole.flip(2).permute(2, 0, 3, 1).reshape(taps, channels_in, rate * channels_out)
        return Convolution(
            packed.to(dtype).contiguous(),
            layer.bias.detach().float().repeat(rate)[None].contiguous(),
            torch.tensor([[0, taps, taps - 1]], dtype=torch.int32, device=weight.device),
            upsampling=rate,
            shift=padding * channels_out,
        )

    def plain(self, x: Ragged, *, residual: Ragged | None = None, dtype: torch.dtype | None = None) -> Ragged:
        """(G, B, L, C in) -> (G, B, L', C out), plus a residual of one group or of G."""
        out = self._empty(x, dtype or x.values.dtype)
        self._launch(x, residual, _NO_ACTIVATION, plain=out.values, activated=out.values)
        return out

    def activated(self, x: Ragged, activation: Activation) -> Ragged:
        """The next layer's input alone."""
        out = self._empty(x, x.values.dtype)
        self._launch(x, None, activation, plain=None, activated=out.values)
        return out

    def both(self, x: Ragged, activation: Activation, *, residual: Ragged | None = None) -> tuple[Ragged, Ragged]:
        """The sum, for a later residual, and the next layer's input."""
        plain, activated = self._empty(x, x.values.dtype), self._empty(x, x.values.dtype)
        self._launch(x, residual, activation, plain=plain.values, activated=activated.values)
        return plain, activated

    def _empty(self, x: Ragged, dtype: torch.dtype) -> Ragged:
        rate, extra = x.rate * self.upsampling // self.stride, x.extra if self.stride == 1 else 0
        rows = (x.rows - x.extra) * self.upsampling // self.stride + extra
        channels = self.weight.shape[2] // self.upsampling
        values = x.values.new_empty(len(self.bias), x.lines, rows, channels, dtype=dtype)
        return Ragged(values, x.lengths, rate, extra)

    def _launch(
        self, x: Ragged, residual: Ragged | None, activation: Activation, *, plain: Tensor | None, activated: Tensor
    ) -> None:
        groups, (_, channels_in, channels_out) = len(self.bias), self.weight.shape
        assert x.groups == groups and x.channels == channels_in, "made for other branches"
        assert x.values.is_contiguous(), "rows lie one behind the other"
        extra = x.extra if self.stride == 1 else 0
        rows = (x.rows - x.extra) // self.stride + extra
        # An upsampling layer goes one row beyond its input: the last rows of its output need what is there, zeros.
        beyond = 1 if self.upsampling > 1 else 0
        blocks = _blocks(rows + beyond, x.lines * groups, self.weight)
        programs = triton.cdiv(rows + beyond, blocks.rows) * triton.cdiv(channels_out, blocks.columns)
        convolve[programs, x.lines, groups](
            x.values, self.weight, self.bias, self.kernels, x.lengths,
            activated if residual is None else residual.values,
            self.bias if activation.alphas is None else activation.alphas,
            activated if plain is None else plain, activated,
            x.rows, rows, self.dilation, 1 if residual is None else residual.groups,
            C_IN=channels_in, C_OUT=channels_out, STRIDE=self.stride, SHIFT=self.shift,
            IN_RATE=x.rate, IN_EXTRA=x.extra, OUT_RATE=x.rate // self.stride, OUT_EXTRA=extra + beyond,
            RESIDUAL=residual is not None, PLAIN=plain is not None,
            ACTIVATION=activation.kind, SLOPE=activation.slope, PRECISION=_PRECISION,
            BLOCK_M=blocks.rows, BLOCK_N=blocks.columns, BLOCK_K=blocks.depth,
            num_warps=blocks.warps, num_stages=blocks.stages, maxnreg=min(255, _REGISTERS // blocks.warps),
        )  # fmt: skip


def _blocks(rows: int, lines: int, weight: Tensor) -> _Blocks:
    """The largest blocks that still keep a GPU busy; a whole line for the interpreter, which pays for each program."""
    _, channels_in, channels_out = weight.shape
    whole = _Blocks(triton.next_power_of_2(rows), 128, 64, 4, 1)
    for blocks in _BLOCKS[weight.element_size()] if weight.is_cuda else (whole,):
        columns = min(blocks.columns, max(16, triton.next_power_of_2(channels_out)))
        if triton.cdiv(rows, blocks.rows) * triton.cdiv(channels_out, columns) * lines >= _ENOUGH_PROGRAMS:
            break
    depth = triton.next_power_of_2(channels_in)
    if depth > blocks.depth:
        depth = min(blocks.depth, channels_in & -channels_in)  # what divides the channels, if anything does
    depth = max(16, depth)
    return _Blocks(blocks.rows, columns, depth, blocks.warps, blocks.stages)
