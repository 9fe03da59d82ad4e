"""A page on this machine that drives a bundle: camera, video or clip in, every frame out as it is made. Torch-free."""
