"""From a trained generator to a deployed bundle, and the torch-free runtime that streams it."""
