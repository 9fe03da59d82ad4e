"""Keyframe selection and motion-compensated fill-in. Runs without torch. May import the core."""
