"""Another person's face or body, fitted to the person a generator was trained on. Torch-free."""
