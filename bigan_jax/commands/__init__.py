"""The commands: train, evaluate, load, predict, compare, sweep. Only they read a config."""
