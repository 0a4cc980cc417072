# GPU by default:  docker build -t tversky-seg .
# CPU only:        docker build -t tversky-seg:cpu --build-arg TORCH_INDEX=<PyTorch's index of CPU builds> .
# Train:           docker run --gpus all --shm-size 2g -v "$PWD/data:/app/data" -v "$PWD/runs:/app/runs" tversky-seg
FROM python:3.11-slim

ARG TORCH_INDEX=""
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml setup.py Makefile README.md LICENSE ./
COPY src ./src
RUN python -m venv .venv \
    && if [ -n "$TORCH_INDEX" ]; then .venv/bin/python -m pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.6,<2.14"; fi \
    && PIP_NO_CACHE_DIR=1 make .venv/.base
COPY . .
ENV PATH="/app/.venv/bin:$PATH" PYTHONUNBUFFERED=1
ENTRYPOINT ["python"]
CMD ["train.py"]
