# lingraft in a container, for processors and for NVIDIA cards:
#
#   make image                lingraft:cpu
#   make image TORCH=cuda     lingraft:cuda
#   make image-test           runs `make test` inside
#
# Another BASE needs apt, and Python 3.11.5 or later as python3, with venv. CUDA's libraries come with torch's wheels: of the
# machine only the driver is needed, which NVIDIA's container toolkit mounts.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS installed
# gcc, g++: torch.compile and Triton compile while they run. tini: process 1, which collects what others leave behind.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ gcc libgomp1 make tini \
    && rm -rf /var/lib/apt/lists/*
# The home folder is everybody's: `docker run --user` and Kubernetes may run it as anyone.
RUN useradd --uid 1000 --create-home --home-dir /user lingraft \
    && chmod 1777 /user \
    && install --directory --owner=lingraft --group=lingraft /lingraft /study \
    && install --directory --owner=lingraft --group=lingraft --mode=1777 /runs
USER lingraft
ENV HOME=/user USER=lingraft PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HF_HOME=/runs/.cache/huggingface LINGRAFT_CACHE=/runs/.cache/lingraft \
    PATH=/lingraft/.venv/bin:$PATH
WORKDIR /lingraft

# The locked versions, first and alone: they stay in Docker's cache while lingraft changes.
# torch for cards is what PyPI has; an index such as https://download.pytorch.org/whl/cu126 has builds for older drivers.
ARG TORCH=cpu
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu
ARG CUDA_INDEX=https://pypi.org/simple
COPY --chown=lingraft requirements.lock requirements-nodeps.lock ./
RUN case "$TORCH" in cpu) index=$CPU_INDEX;; cuda) index=$CUDA_INDEX;; *) echo "TORCH=$TORCH: cpu or cuda" >&2; exit 2;; esac \
    && python3 -m venv .venv \
    && .venv/bin/python -m pip install --quiet --no-deps --index-url "$index" "$(grep '^torch==' requirements.lock)" \
    && .venv/bin/python -m pip install --quiet -r requirements.lock \
    && .venv/bin/python -m pip install --quiet --no-deps -r requirements-nodeps.lock
# Fused kernels for cards.
RUN if [ "$TORCH" = cuda ]; then .venv/bin/python -m pip install --quiet --no-deps 'liger-kernel>=0.6,<1'; fi
COPY --chown=lingraft LICENSE Makefile README.md pyproject.toml ./
COPY --chown=lingraft recipes recipes
COPY --chown=lingraft src src
RUN make install

FROM installed AS test
COPY --chown=lingraft . .
RUN make test

FROM installed AS lingraft
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME /runs
WORKDIR /study
ENTRYPOINT ["tini", "--", "lingraft"]
CMD ["--help"]
