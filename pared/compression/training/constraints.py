"""Keeps pruned weights at zero, and shared ones equal, through every step of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from pared.compression.pruning.weights import Masks
from pared.compression.training.gradual import RunningGradients


class WeightConstraint(Protocol):
    """What holds through every step: pruned weights at zero (`masks.Masks`), shared ones equal (`SharedValues`)."""

    def apply(self, module: nn.Module) -> None:
        """Make the weights so."""

    def mask_gradients(self, module: nn.Module) -> None:
        """Change the gradients so that a step leaves the weights so."""

    def state(self) -> dict[str, Tensor]:
        """All of it as tensors."""

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """It again."""


class ConstrainedModule:
    """A module in training with its optimizer, and which of its weights live."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        masks: WeightConstraint | None,
        device: str,
        running_gradients: RunningGradients | None,
    ) -> None:
        self.optimizer, self.device, self.running_gradients = optimizer, device, running_gradients
        self._module = module
        self.masks: WeightConstraint | None = None
        if masks is not None:
            self.renew(masks)

    def renew(self, masks: WeightConstraint) -> None:
        """Take up other masks; what the optimizer remembers of removed weights is forgotten."""
        # Moved once, not in every step.
        self.masks = masks.from_state({name: kept.to(self.device) for name, kept in masks.state().items()})
        self.masks.apply(self._module)
        if not isinstance(self.masks, Masks):
            return
        for name, parameter in self._module.named_parameters():
            kept = self.masks.kept.get(name)
            for remembered in self.optimizer.state.get(parameter, {}).values():
                if kept is not None and isinstance(remembered, Tensor) and remembered.shape == kept.shape:
                    remembered.masked_fill_(~kept, 0.0)
