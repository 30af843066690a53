"""nnU-Net's own trainer with an end: after so many minutes of processor time instead of 1000 epochs.

Runs inside nnU-Net's environment, which finds it by `nnUNet_extTrainer`. The polynomial decay of the learning rate goes
over the budget, epochs are short so that validation does not eat it, and one thread is used, as the budget is that of
one core. Nothing else is changed: network, patch, batch, loss, augmentation and first learning rate are its plan's.
"""

from __future__ import annotations

import os
import time

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.optim.lr_scheduler import LRScheduler

MINUTES = "NNUNET_CPU_MINUTES"
MOST_EPOCHS = 100_000


class BudgetDecay(LRScheduler):
    """Rate = first rate * (1 - share of the budget that is used) ^ 0.9, as nnU-Net's PolyLRScheduler over epochs."""

    def __init__(self, optimizer: torch.optim.Optimizer, initial_lr: float, seconds: float):
        self.initial_lr, self.seconds, self.begun = initial_lr, seconds, time.process_time()
        super().__init__(optimizer)

    @property
    def share(self) -> float:
        return min(1.0, (time.process_time() - self.begun) / self.seconds)

    def get_lr(self) -> list[float]:
        rate = self.initial_lr * (1 - self.share) ** 0.9
        return [rate for _ in self.optimizer.param_groups]


CPU = torch.device("cpu")


class nnUNetTrainerCpuMinutes(nnUNetTrainer):
    """Named and called as nnU-Net does it."""

    def __init__(self, plans, configuration, fold, dataset_json, device=CPU):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = 10
        self.num_val_iterations_per_epoch = 1
        self.num_epochs = MOST_EPOCHS
        self.save_every = MOST_EPOCHS

    def configure_optimizers(self):
        optimizer, _ = super().configure_optimizers()
        return optimizer, BudgetDecay(optimizer, self.initial_lr, 60 * float(os.environ[MINUTES]))

    def run_training(self):
        torch.set_num_threads(1)
        self.on_train_start()
        self.lr_scheduler.begun = time.process_time()
        iterations = 0
        while self.lr_scheduler.share < 1:
            self.on_epoch_start()
            self.on_train_epoch_start()
            outputs = []
            while len(outputs) < self.num_iterations_per_epoch and (
                not outputs or self.lr_scheduler.share < 1
            ):
                outputs.append(self.train_step(next(self.dataloader_train)))
                self.lr_scheduler.step()  # a large patch takes minutes for the ten steps of an epoch
                iterations += 1
            self.on_train_epoch_end(outputs)
            with torch.no_grad():
                self.on_validation_epoch_start()
                batches = range(self.num_val_iterations_per_epoch)
                self.on_validation_epoch_end(
                    [self.validation_step(next(self.dataloader_val)) for _ in batches]
                )
            self.on_epoch_end()
        minutes = (time.process_time() - self.lr_scheduler.begun) / 60
        self.print_to_log_file(
            f"Budget used: {iterations} iterations in {minutes:.1f} minutes of processor time."
        )
        self.current_epoch = self.num_epochs  # what makes the last checkpoint the final one
        self.on_train_end()

    def perform_actual_validation(self, save_probabilities: bool = False):
        """Left out: whole scans of the validation part are no part of the budget, and nothing is chosen by them."""
