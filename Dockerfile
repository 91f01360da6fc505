# Detection and adaptation from the command line, on the CPU or on CUDA:
#   docker build -t glip-adapt .
#   docker build -t glip-adapt:cuda --build-arg DEVICE=cuda .
#   docker run --rm -v "$PWD":/data glip-adapt detect photos/ --classes "raccoon" --trunk mm-grounding-dino-t
#   docker run --rm --gpus all -v "$PWD":/data glip-adapt:cuda adapt photos/
# The files of the host keep their owner with --user "$(id -u):$(id -g)". Weights that are downloaded stay in /data/.cache.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY glip_adapt ./glip_adapt
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG DEVICE=cpu
# torch for CUDA brings the libraries of CUDA as packages, so that the host needs a driver and nothing else.
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu
COPY --from=wheel /wheels /wheels
# pyproject.toml says which versions fit.
# hadolint ignore=DL3013
RUN case "$DEVICE" in \
        cpu) pip install --no-cache-dir --index-url "$CPU_INDEX" torch torchvision ;; \
        cuda) pip install --no-cache-dir torch torchvision ;; \
        *) echo "DEVICE is $DEVICE; expected cpu or cuda" >&2; exit 2 ;; \
    esac \
    && pip install --no-cache-dir /wheels/*.whl \
    && rm -r /wheels
ENV HF_HOME=/data/.cache/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /data
ENTRYPOINT ["glip-adapt"]
CMD ["--help"]
