"""TODO docstring."""

import numpy as np
from jaxtyping import Float, Num


def require_finite(values: Num[np.ndarray, "..."], what: str) -> Float[np.ndarray, "..."]:
    """The values as floats, those of a float type as they are. ValueError names `what` if one of
    them is infinite or no number."""
    values = np.asarray(values)
    values = values if np.issubdtype(values.dtype, np.floating) else values.astype(np.float64)
    if not np.isfinite(values).all():
        bad = np.count_nonzero(~np.isfinite(values))
        raise ValueError(f"{bad} of {values.size} values of the {what} are not finite.")
    return values
