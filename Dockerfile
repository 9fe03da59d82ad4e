# Two images from one file. The build context is the repository; bundles and data are mounted, never copied in.
#
#   docker build --target cpu -t fastv2v:cpu .
#   docker build --target gpu -t fastv2v:gpu .
#
# Versions are those of constraints.txt, which the tests ran with.
ARG PYTHON=3.11

# What a deployment on a processor needs: numpy, OpenCV, both CPU engines; no torch.
FROM python:${PYTHON}-slim AS cpu
WORKDIR /opt/fastv2v
COPY . .
RUN pip install --no-cache-dir -c constraints.txt -r requirements-runtime.txt \
        openvino tqdm tyro ffmpeg-python imageio-ffmpeg \
    && pip install --no-cache-dir --no-deps . \
    && useradd --create-home runner
USER runner
WORKDIR /data
ENTRYPOINT ["fastv2v"]
CMD ["doctor"]

# Everything, with the CUDA build of torch and TensorRT; the host gives the driver (NVIDIA's container toolkit).
FROM python:${PYTHON}-slim AS gpu
ARG TENSORRT=tensorrt-cu13==11.4.0.106
# An index of wheels for another CUDA, as pytorch.org names it; empty: the usual one.
ARG TORCH_INDEX=
# A compiler for the engine torch-compiled, and what opencv-python links to.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/fastv2v
COPY . .
RUN if [ -n "${TORCH_INDEX}" ]; then \
        pip install --no-cache-dir -c constraints.txt --index-url "${TORCH_INDEX}" torch torchvision; \
    fi \
    && pip install --no-cache-dir -c constraints.txt ".[raft]" "${TENSORRT}" \
    && useradd --create-home runner
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER runner
WORKDIR /data
ENTRYPOINT ["fastv2v"]
CMD ["doctor"]
