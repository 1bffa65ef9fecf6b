"""What each command does, from config to files. The only package that reads a config."""
