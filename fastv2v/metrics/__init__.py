"""Measures of quality on finished 8-bit frames."""
