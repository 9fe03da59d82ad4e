"""Training of the interpolation network (grade ``best``). Needs torch; ``interpolate.network``, deployed, does not."""
