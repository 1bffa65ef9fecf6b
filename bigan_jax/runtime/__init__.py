"""The process and its run folder: files, lock, config, signals, other processes, JAX set-up."""
