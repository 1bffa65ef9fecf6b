"""What `bigan-jax export` writes: the graph, its description, and the check of both in another process."""
