"""Keyframe selection and motion-compensated fill-in. Runs without torch, but for ``learned`` and ``torch_*``."""
