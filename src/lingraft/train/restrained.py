"""transformers.Trainer that does what strategies ask of the weights: our own phases and a user's script share it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from lingraft.strategies.base import TrainingRules
from lingraft.train.restraints import Restraints, split_by_rate


class RestrainedTrainer(Trainer):
    """Trainer with pulls, frozen masks and rates of their own; whoever makes it calls `restrain`.

    Attributes:
        rules: What strategies ask of training.
        restraints: The pulls and masks of these rules; of a model that FSDP2 divides, from when it has.
    """

    rules: TrainingRules
    restraints: Restraints

    def restrain(self, rules: TrainingRules, *, restore: bool) -> None:
        """Set what strategies ask of training; see `Restraints`."""
        self.rules, self._restore = rules, restore
        if not self.is_fsdp_enabled:
            self._take_up_weights()

    def _take_up_weights(self) -> None:
        model: Any = self.model
        self.restraints = Restraints(model, self.rules, restore=self._restore)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """Create the scheduler, and take up the pieces that FSDP2 has just put in place of the parameters.

        No checkpoint has been read into them yet, so they are those of the start.
        """
        if self.is_fsdp_enabled:
            self._take_up_weights()
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Add a micro-batch's gradients; with the step's last one, what depends on the weights alone."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:  # all processes' gradients are summed up, and none is clipped yet
            self.restraints.change_gradients()
        return loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer, with a group of its own for each factor of the learning rate."""
        is_new = self.optimizer is None  # the Trainer asks again where it tries a smaller batch
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if is_new:
            split_by_rate(optimizer, self.model, self.rules.learning_rates)
            optimizer.register_step_post_hook(lambda *_: self.restraints.restore_frozen())
        return optimizer
