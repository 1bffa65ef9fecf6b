"""Datasets prepared and stored in the format of TensorFlow Datasets."""
