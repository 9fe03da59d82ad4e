"""Work on a video in pieces, side by side and so that it can be stopped and gone on with. Torch-free."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.prepare.survey import Frame, Progress
from fastv2v.run import write_bytes

Found = dict[str, NDArray[Any]]
"""What was made of a piece, as named arrays."""


@dataclass(frozen=True)
class Piece:
    """Frames of one shot that follow each other."""

    name: str
    """Under which its result is kept."""
    frames: tuple[int, ...]
    """Numbers of its frames in the video."""
    lead: tuple[int, ...] = ()
    """Numbers of frames right before it, for what depends on the past."""


def cut_into_pieces(runs: Iterable[Sequence[int]], length: int, lead: int = 0) -> tuple[Piece, ...]:
    """Divide runs of frames. The pieces depend on the video alone, so that the result does on nothing else.

    Args:
        runs: numbers of frames that belong together, ascending.
        length: frames of one piece, at most.
        lead: how many of the frames before a piece come with it, as far as its run has them.
    """
    return tuple(
        Piece(f"{run[start]:08d}", tuple(run[start : start + length]), tuple(run[max(0, start - lead) : start]))
        for run in runs
        for start in range(0, len(run), length)
    )


def work_through(
    stage: str,
    pieces: Sequence[Piece],
    frames: Iterable[Frame],
    work: Callable[[Piece], Callable[[list[Frame]], Found]],
    kept: Path,
    executor: Executor,
    side_by_side: int,
    progress: Progress,
) -> dict[str, Found]:
    """Hand the frames of every piece to ``work``, and keep each result on disk as soon as it is there.

    Args:
        stage: its name, for ``progress`` and for the folder.
        pieces: in order of their frames.
        frames: all frames of the video from number 0, read only as far as they are needed.
        work: what is done with a piece: a function of its frames, those of its lead first, that the executor can take.
        kept: folder of results; what is found there is not made again.
        executor: who works.
        side_by_side: how many pieces are held in memory at most.
        progress: told how many frames are done.

    Returns:
        The result of every piece by its name.
    """
    folder = kept / stage
    done = {piece.name: _load(folder / f"{piece.name}.npz") for piece in pieces}
    found = {name: result for name, result in done.items() if result is not None}
    todo = [piece for piece in pieces if piece.name not in found]
    total = sum(len(piece.frames) for piece in pieces)
    count = total - sum(len(piece.frames) for piece in todo)
    progress(stage, count, total)
    waiting: deque[tuple[Piece, Future[Found]]] = deque()

    def settle() -> None:
        nonlocal count
        piece, future = waiting.popleft()
        result = found[piece.name] = future.result()
        buffer = io.BytesIO()
        np.savez(buffer, **result)  # type: ignore[arg-type]
        write_bytes(folder / f"{piece.name}.npz", buffer.getvalue())
        count += len(piece.frames)
        progress(stage, count, total)

    try:
        for piece, pictures in _with_frames(todo, frames):
            if len(waiting) >= side_by_side:
                settle()
            waiting.append((piece, executor.submit(work(piece), pictures)))
        while waiting:
            settle()
    except BaseException:
        for _, future in waiting:
            future.cancel()
        raise
    return found


def _with_frames(pieces: Sequence[Piece], frames: Iterable[Frame]) -> Iterator[tuple[Piece, list[Frame]]]:
    """Each piece with its frames, reading the video once and holding what one piece and the next lead need."""
    source = enumerate(frames)
    held: dict[int, Frame] = {}
    for piece in pieces:
        wanted = (*piece.lead, *piece.frames)
        held = {number: frame for number, frame in held.items() if number >= wanted[0]}
        while wanted[-1] not in held:
            number, frame = next(source)
            if number >= wanted[0]:
                held[number] = frame
        yield piece, [held[number] for number in wanted]


def _load(path: Path) -> Found | None:
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def process_pool(num_workers: int) -> ProcessPoolExecutor:
    """Processes that share the cores out among themselves."""
    # Spawned, not forked: the caller may hold threads that do not survive a fork.
    return ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"), initializer=_use_one_thread)


def _use_one_thread() -> None:
    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for torch, where a piece of work loads it
