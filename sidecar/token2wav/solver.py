"""From noise to mel: Euler steps along the estimator's velocity (flow matching, arXiv 2210.02747), with guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sidecar.token2wav.config import FlowConfig
from sidecar.token2wav.estimator import Conditions, Estimator, EstimatorPast, Modulation
from sidecar.token2wav.state import EstimatorState


def time_schedule(steps: int) -> Tensor:
    """(K + 1,) flow times from 0 to 1, close together at first. Float32: in 16 bits the first ones would be wrong."""
    return 1 - torch.cos(torch.linspace(0, 1, steps + 1, dtype=torch.float32) * (math.pi / 2))


class Solver(nn.Module):
    """K steps; at each the velocity with the conditions is pushed away from the one without (arXiv 2207.12598)."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.estimator = Estimator(config.estimator)
        self.cfg_rate = config.cfg_rate
        self.steps = config.steps

    def initial_state(self, batch: int) -> EstimatorState:
        past = self.estimator.initial_past(2 * batch)
        return EstimatorState(
            _by_guidance([past.conv] * self.steps), _by_guidance([past.keys_values] * self.steps), ((),) * batch
        )

    def forward(
        self, noise: Tensor, conditions: Conditions, modulation: Modulation, past: EstimatorState, mask: Tensor | None
    ) -> tuple[Tensor, EstimatorState]:
        """
        Args:
            noise: (B, M, T) float32.
            modulation: of the first K times of `time_schedule`.
            mask: (B, L + T), false where a row has no frame; None if it has all.

        Returns:
            mel (B, M, T) float32, and a state with the new frames alone (its `frames` is for the caller to fill).
        """
        both = conditions.with_and_without()
        if mask is not None:
            mask = torch.cat([mask, mask])
        times = time_schedule(self.steps).tolist()
        x, new = noise, []
        for step in range(self.steps):
            step_past = EstimatorPast(past.conv_past[step].flatten(1, 2), past.keys_values[step].flatten(1, 2))
            velocity, step_new = self.estimator(
                torch.cat([x, x]).to(both.mu.dtype), both, modulation.at(step), step_past, mask
            )
            with_voice, without = velocity.float().chunk(2)  # (B, M, T) each
            guided = (1 + self.cfg_rate) * with_voice - self.cfg_rate * without
            x = x + (times[step + 1] - times[step]) * guided
            new.append(step_new)
        return x, EstimatorState(
            _by_guidance([step.conv for step in new]), _by_guidance([step.keys_values for step in new]), ()
        )


def _by_guidance(steps: Sequence[Tensor]) -> Tensor:
    """K tensors (blocks, 2B, ...) -> (K, blocks, 2, B, ...)."""
    stacked = torch.stack(list(steps))
    return stacked.view(*stacked.shape[:2], 2, stacked.shape[2] // 2, *stacked.shape[3:])
