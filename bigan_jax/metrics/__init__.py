"""Metrics, thresholds and bootstrap intervals: pure functions of scores and labels."""
