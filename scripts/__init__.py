"""Programs for the repository's own files. They are not installed."""
