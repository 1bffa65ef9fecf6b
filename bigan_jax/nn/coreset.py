"""Choice of few points that represent many."""

import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits


def k_center_greedy(points: Float[np.ndarray, "n d"], count: int) -> Int[np.ndarray, "m"]:
    """Returns the indices of points, chosen one by one: always the one that is farthest from all chosen ones.

    The first is that of the first row. The largest distance of a point to its nearest chosen one is at most twice the
    smallest possible (Gonzalez 1985, "Clustering to minimize the maximum intercluster distance").

    Returns:
      `count` indices in the order of choice, or fewer if all other points coincide with chosen ones.
    """
    # |a - b|² = |a|² + |b|² - 2 a b, one product of a matrix and a vector for each choice.
    points = np.asarray(points - points.mean(0), np.float32)
    norm = np.square(points).sum(1)
    doubled = -2 * points
    rounding = 1e-6 * norm.max()
    distance = np.full(len(points), np.inf, np.float32)  # squared, to the nearest chosen point
    chosen, newest = [], 0
    with threadpool_limits(1, "blas"):  # a product takes less time than to start threads
        while len(chosen) < count and distance[newest] > rounding:
            chosen.append(newest)
            to_newest = doubled @ points[newest]
            to_newest += norm
            to_newest += norm[newest]
            np.minimum(distance, to_newest, out=distance)
            distance[newest] = 0
            newest = int(distance.argmax())
    return np.array(chosen, np.int64)
