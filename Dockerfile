# sdpipe in a container. On a CPU:
#   docker build -t sdpipe .
#   docker run --rm -v "$PWD:/images" sdpipe generate "red apple" --model emoji --out apple.png
# On an NVIDIA GPU:
#   docker build -t sdpipe:cuda --build-arg TORCH=https://download.pytorch.org/whl/cu128 .
#   docker run --rm --gpus all -v "$PWD:/images" -v models:/models sdpipe:cuda generate "a castle"
FROM python:3.12-slim

ARG TORCH=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir torch --index-url "$TORCH"

COPY pyproject.toml README.md LICENSE /src/
COPY sdpipe /src/sdpipe
RUN pip install --no-cache-dir "/src[show]"

# Downloaded models outlive the container in the volume.
RUN useradd --create-home --uid 1000 sdpipe && mkdir /models /images && chown sdpipe /models /images
ENV HF_HOME=/models
VOLUME /models
USER sdpipe
WORKDIR /images
ENTRYPOINT ["sdpipe"]
CMD ["--help"]
