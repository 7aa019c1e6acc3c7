# cocu on NVIDIA GPUs: as cpu.Dockerfile, with the CUDA build of torch.
#   docker build -f docker/gpu.Dockerfile -t cocu:gpu .
#
# The base is not a CUDA image. torch's wheels bring the CUDA 13 libraries they were built against, so
# those of a base would lie there twice; the host gives its driver (R580 or newer) through the NVIDIA
# Container Toolkit. Every node of a Ray cluster needs the same Python: the base is that of cpu.Dockerfile.
#
# There is no GPU build of faiss. Those that can be installed trail the locked faiss, and would have to
# match torch's CUDA. On a GPU, stage `expand` searches with torch: exact, and the same rows.
FROM python:3.11-slim

ARG UV_VERSION=0.13.9
ARG TORCH_BACKEND=cu130
ENV UV_TORCH_BACKEND=${TORCH_BACKEND} \
    UV_SYSTEM_PYTHON=1 \
    UV_NO_CACHE=1 \
    PYTHONUNBUFFERED=1

# The libraries first, at the versions that were tested together: they change less often than the code.
WORKDIR /opt/cocu
COPY pyproject.toml requirements.lock ./
RUN pip install --no-cache-dir "uv==${UV_VERSION}" \
    && uv pip install --requirement pyproject.toml --constraint requirements.lock

COPY LICENSE README.md ./
COPY configs/ configs/
COPY storage/ storage/
COPY curation/ curation/
COPY training/ training/
COPY evaluation/ evaluation/
COPY flows/ flows/
RUN uv pip install --no-deps .
COPY --chmod=755 docker/join-cluster.sh /usr/local/bin/join-cluster

# A volume takes the owner of the folder it is first laid over.
RUN useradd --create-home --uid 1000 cocu \
    && mkdir /store /cache /prefect \
    && chown cocu /store /cache /prefect
USER 1000
WORKDIR /home/cocu

# What CUDA base images set: which devices and which parts of the driver the container sees.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    COCU_CACHE=/cache/cocu \
    HF_HOME=/cache/huggingface \
    PREFECT_HOME=/prefect \
    DO_NOT_TRACK=1 \
    RAY_USAGE_STATS_ENABLED=0

CMD ["cocu", "--help"]
