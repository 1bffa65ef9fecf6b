"""The page of `bigan-jax app`: its server, the scoring of one image, and the files of the page (static/)."""
