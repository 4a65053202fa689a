#!/usr/bin/env bash
# [Task]: T057 [From]: specs/requirements.md
# Writes specs/openapi.json, and the types that the example's client has of it.
cd "$(dirname "$0")/.."
source scripts/install.sh

.venv/bin/python -m scripts.dev openapi >specs/openapi.json
from_npm examples/better-auth "what makes the client"
npm --silent run client >/dev/null
