# lingraft in a container, for processors and for NVIDIA cards:
#
#   make image                lingraft:cpu
#   make image TORCH=cuda     lingraft:cuda
#   make image-test           runs `make test` inside (tests/Dockerfile)
#
# Another BASE needs apt, and Python 3.11.5 or later as python3, with venv. CUDA's libraries come with torch's wheels: of the
# machine only the driver is needed, which NVIDIA's container toolkit mounts.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# gcc, g++: torch.compile and Triton compile while they run. tini: process 1, which collects what others leave behind.
# wget: by it KubeRay asks Ray's nodes whether they live.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ gcc libgomp1 make tini wget \
    && rm -rf /var/lib/apt/lists/*
# The home folder is everybody's: `docker run --user` and Kubernetes may run the image as anyone. User 1000 needs no entry
# either, and some bases have one of another name.
RUN install --directory --owner=1000 --group=1000 /lingraft \
    && install --directory --owner=1000 --group=1000 --mode=1777 /runs /user
# A number: where Kubernetes wants no root (runAsNonRoot), it refuses a name.
USER 1000:1000
ENV HOME=/user USER=lingraft PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HF_HOME=/runs/.cache/huggingface LINGRAFT_CACHE=/runs/.cache/lingraft \
    PATH=/lingraft/.venv/bin:$PATH
WORKDIR /lingraft

# The locked versions, first and alone: they stay in Docker's cache while lingraft changes.
# torch for processors comes from PyTorch's documented index, no other has it for Linux; torch for cards from where pip
# looks for everything, or from CUDA_INDEX, such as PyTorch's index of builds for an older driver.
ARG TORCH=cpu
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu
ARG CUDA_INDEX=
COPY --chown=1000:1000 requirements.lock requirements-nodeps.lock ./
RUN case "$TORCH" in cpu) index=$CPU_INDEX;; cuda) index=$CUDA_INDEX;; *) echo "TORCH=$TORCH: cpu or cuda" >&2; exit 2;; esac \
    && python3 -m venv .venv \
    && .venv/bin/python -m pip install --quiet --no-deps ${index:+--index-url "$index"} "$(grep '^torch==' requirements.lock)" \
    && .venv/bin/python -m pip install --quiet -r requirements.lock \
    && .venv/bin/python -m pip install --quiet --no-deps -r requirements-nodeps.lock
# Ray's dashboard, through which KubeRay hands over jobs and asks for health; for cards fused kernels.
RUN .venv/bin/python -m pip install --quiet --constraint requirements.lock 'ray[default]' \
    && if [ "$TORCH" = cuda ]; then .venv/bin/python -m pip install --quiet --no-deps 'liger-kernel>=0.6,<1'; fi
COPY --chown=1000:1000 LICENSE Makefile README.md pyproject.toml ./
COPY --chown=1000:1000 recipes recipes
COPY --chown=1000:1000 src src
# Who has a strict umask has a checkout that is not everybody's to read.
RUN chmod --recursive a+rX recipes src && make install

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME /runs
# Where `runs`, the default of --runs, is the volume.
WORKDIR /
ENTRYPOINT ["tini", "--", "lingraft"]
CMD ["--help"]
