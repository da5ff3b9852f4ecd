# docker build -t mvhlib .
# docker run --rm -v "$PWD/results:/out" mvhlib make figures OUT=/out
# docker run --rm mvhlib make test
# CLUSTER.md says how Apptainer runs the same image.
FROM python:3.11.13-slim-bookworm

# A compiler: the scan of state-space layers is built when it is first used.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev make \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /mvhlib
COPY . .

# PyTorch for CPU; for cards: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv .venv \
 && .venv/bin/python -m pip install --no-cache-dir --index-url "$TORCH_INDEX" \
      "$(grep '^torch==' constraints.txt)"
# What make would do at its first call; -e .[dev] brings the executor for SLURM too.
RUN PIP_NO_CACHE_DIR=1 make .venv/.installed

# Whoever runs it, and wherever: nothing is written but OUT.
ENV PYTHONDONTWRITEBYTECODE=1
CMD ["make", "figures", "OUT=/out"]
