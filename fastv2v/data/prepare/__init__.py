"""A data set from a plain video: what it holds, what is found in its frames, what is drawn and written. Torch-free."""
