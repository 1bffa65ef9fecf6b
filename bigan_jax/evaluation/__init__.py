"""From a trained state to scores and metrics, and from finished runs to their comparison."""
