"""Detectors, one per file.

Each file has `FIELD_RANGES`, the values that the fields of config.model accept (by default numbers of at least 0), and
`create`, with these fields as arguments after `shape`, the (height, width, channels) of the images, both sides
divisible by 2 ** len(widths) unless stated otherwise; `conditions`, the number of classes of `Batch.condition`, which
most detectors ignore; and the `dtype` of the computations.
"""
