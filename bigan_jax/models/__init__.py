"""Detectors, one per file, each with two public names.

- `FIELD_RANGES`: the values that the fields of config.model accept; by default numbers of at least 0.
- `create(*, shape, conditions, dtype, ...) -> Detector`, with the fields of config.model as further arguments. `shape`
  is the (height, width, channels) of the images, both sides divisible by 2 ** len(widths) unless stated otherwise.
  A detector that has a score of its own and takes `roi`, the pixels that count (or None), accepts config.data.roi.
  `conditions` is the number of classes of `Batch.condition`, and `dtype` that of the computations.
"""
