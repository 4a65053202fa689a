#!/usr/bin/env bash
# [Task]: T041 [From]: specs/requirements.md
# Installs what the benchmarks lack: wrk, Fastify's packages, and an environment for the baselines:
# this project's, with httptools.
cd "$(dirname "$0")/.."
source scripts/install.sh

uv=$(uv --version >/dev/null 2>&1 && echo uv || echo "$PWD/.uv/bin/uv")
UV_PROJECT_ENVIRONMENT=benchmarks/.venv "$uv" sync --locked --quiet --inexact
"$uv" pip install --quiet --python benchmarks/.venv/bin/python httptools==0.9.0

has wrk || from_debian wrk wrk
from_npm benchmarks/fastify Fastify
