"""Runs mediapipe in a Python of its own: frames come in through a pipe, what was found goes out. No project imports.

mediapipe's wheels bring another OpenCV and an older protobuf along than ONNX and TensorBoard need, so they get an
environment to themselves, and this file is run by its Python.

In: one line of JSON ``{"frames", "height", "width", "complexity", "lead"}``, then that many raw RGB frames. Frames
follow each other; the first ``lead`` of them are looked at and not answered. Out: for each frame one line of JSON with
the points found (x and y in parts of the frame, and how sure), then the person mask, one byte a pixel. Again from the
start until the input ends.
"""

import importlib
import json
import os
import sys


def main() -> None:
    """Answer until the input ends."""
    # What libraries print must not come between the answers.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    import numpy as np

    Holistic = importlib.import_module("mediapipe.python.solutions.holistic").Holistic

    def points(found: object, is_sure: bool = False) -> list[list[float]] | None:
        if found is None:
            return None
        return [[p.x, p.y, p.visibility if is_sure else 1.0] for p in found.landmark]  # type: ignore[attr-defined]

    out.write(b"ready\n")
    out.flush()
    source = sys.stdin.buffer
    while line := source.readline():
        asked = json.loads(line)
        shape = asked["height"], asked["width"], 3
        # A new tracker for every request, so that its answers depend on nothing before.
        with Holistic(model_complexity=asked["complexity"], enable_segmentation=True) as finder:
            for number in range(asked["frames"]):
                data = source.read(shape[0] * shape[1] * 3)
                result = finder.process(np.frombuffer(data, np.uint8).reshape(shape))
                if number < asked["lead"]:
                    continue
                answer = {
                    "body": points(result.pose_landmarks, is_sure=True),
                    "left_hand": points(result.left_hand_landmarks),
                    "right_hand": points(result.right_hand_landmarks),
                    "face": points(result.face_landmarks),
                }
                mask = result.segmentation_mask
                grey = np.zeros(shape[:2], np.uint8) if mask is None else np.rint(np.clip(mask, 0, 1) * 255)
                out.write(json.dumps(answer).encode() + b"\n" + grey.astype(np.uint8).tobytes())
                out.flush()


if __name__ == "__main__":
    main()
