# CPU:   docker build -t pspexp .
# CUDA:  docker build -t pspexp:cuda --build-arg BASE=nvidia/cuda:12.6.3-base-ubuntu24.04 --build-arg TORCH_INDEX=https://pypi.org/simple .
# Run:   docker run --rm -v "$PWD:/workspace" pspexp experiment=quickstart
#        docker run --rm --gpus all --shm-size 2g -v "$PWD:/workspace" pspexp:cuda experiment=quickstart
# The user in the container has the id UID and must be able to write to /workspace: --build-arg UID="$(id -u)"
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

# Where torch and torchvision come from; the packages on PyPI bring CUDA's libraries along.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=lite,export
ARG UID=10001

# Images of CUDA have no Python. Versions are those of the base's distribution.
# hadolint ignore=DL3008
RUN if ! python3 -m venv --help > /dev/null 2>&1; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*; \
    fi \
    && useradd --non-unique --uid "${UID}" --create-home pspexp \
    && mkdir /workspace && chown pspexp /workspace \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

WORKDIR /opt/pspexp
COPY constraints.txt ./
RUN python -m pip install --no-cache-dir --constraint constraints.txt --index-url "${TORCH_INDEX}" torch torchvision
COPY . .
RUN python -m pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

USER ${UID}
WORKDIR /workspace
ENTRYPOINT ["pspexp"]
CMD ["--help"]
