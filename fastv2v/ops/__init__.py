"""Tensor operations: warping, flow, labels, resizing. Pure functions on torch tensors."""
