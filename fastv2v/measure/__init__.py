"""Latency and cost of a step."""
