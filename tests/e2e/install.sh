#!/usr/bin/env bash
# [Task]: T031 [From]: specs/requirements.md
# Installs what the end-to-end suite lacks: Chromium, the example's packages, client generators.
cd "$(dirname "$0")/../.."
source scripts/install.sh

has chromium || has chromium-browser || has google-chrome || from_debian chromium Chromium
(from_npm examples/better-auth "Better Auth's example")
(from_npm tests/e2e/clients "client generators")
