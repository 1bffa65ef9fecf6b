"""One detector a file: `create(*, shape, conditions, dtype, ...) -> Detector`."""
