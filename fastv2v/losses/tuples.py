"""Which frames the temporal discriminators of vid2vid look at, for every frame rate and chunk size."""

from __future__ import annotations


def past_needed(window: int, scales: int) -> int:
    """Frames made before a chunk that its tuples can reach back to: what a training task keeps.

    Args:
        window: frames per tuple.
        scales: number of temporal scales; scale s looks at every window^s-th frame. 0 keeps nothing.
    """
    return window ** (scales - 1) * (window - 1) if scales else 0


def dense_tuples(num_past: int, num_new: int, window: int, scale: int = 0) -> list[tuple[int, ...]]:
    """vid2vid's dense rule: tuples that end in the chunk, ``window`` frames apart, the newest first.

    Args:
        num_past: frames kept from before this chunk, no more than ``past_needed`` of all scales.
        num_new: frames of this chunk.
        window: frames per tuple.
        scale: the frames of a tuple lie window^scale apart.

    Returns:
        Tuples of indices into kept and new frames together; empty while there are too few.

    Source:
        Wang et al., "Video-to-Video Synthesis", NeurIPS 2018, and its published implementation.
    """
    stride = window**scale
    span = stride * (window - 1)
    total = num_past + num_new
    ends = range(0, min(total - span, num_new), window)
    return [tuple(range(total - 1 - t - span, total - t, stride)) for t in ends]


def sparse_tuples(num_made: int, num_new: int, window: int, scale: int = 0) -> list[tuple[int, ...]]:
    """vid2vid's sparse rule: each scale sees every window^scale-th frame, counted from the first synthesised one.

    The scale keeps a queue of these frames. Of the queue before the chunk the newest ``window - 1`` remain; the
    chunk's frames join; the oldest leave until the rest divides into tuples that do not overlap.

    Args:
        num_made: all frames synthesised before this chunk, kept or not.
        num_new: frames of this chunk.
        window: frames per tuple.
        scale: the frames of a tuple lie window^scale apart.

    Returns:
        Tuples of frame numbers, oldest first; 0 is the first synthesised frame. Empty where the chunk adds none.

    Source:
        The option sparse_D of vid2vid's published implementation.
    """
    stride = window**scale
    queued = range(0, num_made, stride)[-(window - 1) :]
    queue = [*queued, *range(num_made + -num_made % stride, num_made + num_new, stride)]
    first = len(queue) % window
    return [tuple(queue[i : i + window]) for i in range(first, len(queue), window)]
