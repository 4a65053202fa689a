# [Task]: T062 [From]: specs/requirements.md
# The service as an image; docs/production.md says how to build and run it.

# Tags, not digests: a rebuild gets the distribution's security fixes, which a digest would keep out until somebody
# changes it. Where builds must be the same to the byte, pin both images by digest in a build of your own.
# One base for both stages: the environment that is made in one finds its Python in the other.
FROM python:3.13-slim-trixie AS base
WORKDIR /app

FROM base AS build
COPY --from=ghcr.io/astral-sh/uv:0.13.9 /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
# Without the sources, whose changes leave what is installed as it is.
COPY pyproject.toml uv.lock ./
# The name of an optional extra in pyproject.toml.
ARG EXTRA=""
RUN --mount=type=cache,target=/root/.cache/uv \
    uv sync --locked --no-dev ${EXTRA:+--extra="$EXTRA"}

FROM base
# By number, for orchestrators that must know it is not root; the SQLite file lies in a folder of its own.
RUN groupadd --gid 10001 tasks \
    && useradd --uid 10001 --gid tasks --no-log-init --shell /usr/sbin/nologin tasks \
    && install --directory --owner tasks --group tasks /data
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    PORT=8000 \
    DATABASE_URL=sqlite:////data/tasks.db
COPY --from=build /app/.venv .venv
# What .dockerignore lets through.
COPY . .
# Readable whatever the umask of the checkout was, and compiled, which the user who runs it may not.
RUN chmod -R a+rX ./* && python -m compileall -q ./*
USER 10001:10001
EXPOSE 8000
# http.client, since urllib would ask a proxy that the environment names.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "import http.client, os; probe = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=2); probe.request('GET', '/health'); raise SystemExit(probe.getresponse().status != 200)"]
# A list, without a shell in between: SIGTERM reaches the service.
CMD ["python", "-m", "serve"]
