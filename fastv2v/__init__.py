"""Real-time video-to-video synthesis: train a teacher, distil it, deploy the student.

Importing this package is instant and loads neither torch nor any stage.
"""

__version__ = "0.1.0"
