#!/usr/bin/env bash
# [Task]: T041 [From]: specs/requirements.md
# Installs what the benchmarks lack: wrk, and Fastify's packages.
cd "$(dirname "$0")/.."
source scripts/install.sh

has wrk || from_debian wrk wrk
from_npm benchmarks/fastify Fastify
