# cocu on processors: the pipeline, Ray's head and workers, and the Prefect server run from this image.
#   docker build -f docker/cpu.Dockerfile -t cocu:cpu .
FROM python:3.11-slim

ARG UV_VERSION=0.13.9
# The build of torch without CUDA; the default one brings gigabytes that nothing here can use.
ENV UV_TORCH_BACKEND=cpu \
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

ENV COCU_CACHE=/cache/cocu \
    HF_HOME=/cache/huggingface \
    PREFECT_HOME=/prefect \
    DO_NOT_TRACK=1 \
    RAY_USAGE_STATS_ENABLED=0

CMD ["cocu", "--help"]
