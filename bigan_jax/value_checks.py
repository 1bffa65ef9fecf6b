"""Checks of values that come from configs and callers, with one wording for all of them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

from bigan_jax.errors import UserError


class Range(NamedTuple):
    """The values that a setting accepts."""

    description: str  # for messages
    accepts: Callable[[object], bool]


POSITIVE_INTEGER = Range("a positive integer", lambda n: _is_integer(n) and n > 0)
COUNT = Range("an integer of at least 0", lambda n: _is_integer(n) and n >= 0)
POSITIVE = Range("a number above 0", lambda n: _is_number(n) and 0 < n < float("inf"))
NON_NEGATIVE = Range("a number of at least 0", lambda n: _is_number(n) and 0 <= n < float("inf"))
DECAY = Range("a number from 0 to below 1", lambda n: _is_number(n) and 0 <= n < 1)
UNIT = Range("a number from 0 to 1", lambda n: _is_number(n) and 0 <= n <= 1)


def require(field: str, value: object, allowed: Range) -> None:
    """Raises UserError unless a value, or each of a non-empty list or tuple of values, is in range.

    The field is its dotted name below `config`, such as "model.latent".
    """
    values = value if isinstance(value, list | tuple) else (value,)
    if not values or not all(map(allowed.accepts, values)):
        raise UserError(f"config.{field} must be {allowed.description} (got {value!r:.200}).")


def require_finite(values: Num[np.ndarray, "..."], name: str) -> Float[np.ndarray, "..."]:
    """Returns the values as floats, keeping a floating type, or raises ValueError if one is infinite or NaN."""
    values = np.asarray(values)
    values = values if np.issubdtype(values.dtype, np.floating) else values.astype(np.float64)
    if not np.isfinite(values).all():
        bad = np.count_nonzero(~np.isfinite(values))
        raise ValueError(f"{bad} of {values.size} values of the {name} are not finite.")
    return values


def _is_integer(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
