# CPU:   docker build --tag magicvideo .
# CUDA:  docker build --tag magicvideo:cuda --build-arg DEVICE=cuda .
#
#   docker run --rm --volume "$PWD:/videos" magicvideo generate "red heart, white background"
#   docker run --rm --gpus all --volume "$PWD:/videos" magicvideo:cuda generate "red heart, white background"

ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# "cpu" takes torch's CPU build, "cuda" the one with NVIDIA's libraries
ARG DEVICE=cpu
# further extras: docker build --build-arg EXTRAS=train,evaluate
ARG EXTRAS=train

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /app

# torch first: it changes less often than the source, so its layer is reused
COPY constraints.txt ./
RUN version="$(sed -n 's/^torch==//p' constraints.txt)" \
    && case "${DEVICE}" in \
         cpu) pip install --constraint constraints.txt --index-url https://download.pytorch.org/whl/cpu \
                --extra-index-url https://pypi.org/simple "torch==${version}+cpu" ;; \
         cuda) pip install --constraint constraints.txt "torch==${version}" ;; \
         *) echo "DEVICE is cpu or cuda, not ${DEVICE}" >&2; exit 1 ;; \
       esac

COPY pyproject.toml README.md CHANGELOG.md LICENSE NOTICE ./
COPY recipes recipes
COPY src src
RUN pip install --constraint constraints.txt ".[${EXTRAS}]" \
    && useradd --create-home --uid 1000 magicvideo \
    && mkdir /videos \
    && chown 1000 /videos

USER 1000
WORKDIR /videos
ENTRYPOINT ["magicvideo"]
CMD ["--help"]
