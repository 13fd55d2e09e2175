# syntax=docker/dockerfile:1
FROM python:3.13-slim AS build

WORKDIR /build
RUN python -m venv /opt/agent-runner
ENV PATH=/opt/agent-runner/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1

# The dependencies change less often than the code, and so get a layer of their own.
COPY requirements.lock .
RUN --mount=type=cache,target=/root/.cache/pip pip install --require-hashes -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY migrations migrations
RUN pip install --no-build-isolation --no-deps .


FROM python:3.13-slim

# By name, too: the embedded Postgres looks its user up.
RUN useradd --uid 10001 --create-home --home-dir /home/agent-runner agent-runner \
    && install -d -o agent-runner -g agent-runner /data
COPY --from=build /opt/agent-runner /opt/agent-runner
COPY agents /home/agent-runner/agents

USER agent-runner
WORKDIR /home/agent-runner
ENV PATH=/opt/agent-runner/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    DATA_DIR=/data \
    LOG_FORMAT=json
EXPOSE 8000
VOLUME /data

HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + (os.environ.get('PORT') or '8000') + '/healthz', timeout=4)"]

CMD ["agent-runner", "serve"]
