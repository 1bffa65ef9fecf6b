"""Detectors, one per file.

Each file has `create(*, shape, conditions, dtype, ...) -> Detector`, whose further arguments are the fields of
config.model, and `FIELD_RANGES`, the values that these fields accept. A numeric field that is not listed accepts
numbers of at least 0.
"""
