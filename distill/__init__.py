"""Spatial and temporal knowledge distillation. May import the core and students.schedule."""
