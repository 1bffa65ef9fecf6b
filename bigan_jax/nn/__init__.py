"""Flax layers and networks that several detectors share, and losses."""
