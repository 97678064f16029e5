"""A door that users know: one epoch of training, one evaluation."""

from simv0.training.epoch import evaluate, train_one_epoch

__all__ = ["evaluate", "train_one_epoch"]
