"""Pictures whose motion is known, and PSNR, for tests that need no package but numpy and OpenCV."""

import cv2
import numpy as np


def psnr_db(frame: np.ndarray, reference: np.ndarray) -> float:
    """PSNR of 8-bit pictures in dB, at most 100."""
    error = float(np.mean((frame.astype(float) - reference) ** 2))
    return min(100.0, 10 * np.log10(255**2 / error)) if error else 100.0


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random RGB picture, (H, W, 3) float32 in [0, 255]."""
    noise = np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)
    layers = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (1.5, 4, 10))
    return cv2.normalize(layers, None, 0, 255, cv2.NORM_MINMAX)


def moving_texture(num_frames: int, step: tuple[float, float], size: tuple[int, int] = (128, 192)) -> list[np.ndarray]:
    """Frames of one texture shifted by ``step`` (x, y) pixels a frame."""
    picture = texture(size[0] + 120, size[1] + 120)
    x, y = np.meshgrid(np.arange(size[1], dtype=np.float32), np.arange(size[0], dtype=np.float32))
    return [
        cv2.remap(picture, x + 60 - step[0] * k, y + 60 - step[1] * k, cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
        for k in range(num_frames)
    ]


def square_over_background(num_frames: int, step: int) -> list[np.ndarray]:
    """A bright textured square moving right over a dark still background."""
    background = (texture(96, 160, seed=1) * 0.4).astype(np.uint8)
    square = (texture(40, 40, seed=2) * 0.4 + 140).astype(np.uint8)
    frames = [background.copy() for _ in range(num_frames)]
    for k, frame in enumerate(frames):
        frame[28:68, 30 + step * k : 70 + step * k] = square
    return frames


def two_scenes() -> tuple[np.ndarray, np.ndarray]:
    """Two pictures that have nothing in common."""
    noise = np.random.default_rng(3).random((2, 192, 256, 3), dtype=np.float32)
    first, second = (cv2.normalize(cv2.GaussianBlur(x, (0, 0), 5), None, 0, 255, cv2.NORM_MINMAX) for x in noise)
    return first.astype(np.uint8), second.astype(np.uint8)


def numbered(number: int, size: tuple[int, int] = (4, 6)) -> np.ndarray:
    return np.full((*size, 3), number, dtype=np.uint8)
