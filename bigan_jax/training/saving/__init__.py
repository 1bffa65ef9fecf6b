"""Checkpoints and logs of a training run."""
