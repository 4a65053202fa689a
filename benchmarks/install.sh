#!/usr/bin/env bash
# [Task]: T041 [From]: specs/requirements.md
# Installs what the benchmarks lack: wrk from Debian's packages, Fastify's packages from npm's lock
# file. Node itself it only looks for. What apt-get and npm say is kept to ourselves.
set -euo pipefail
cd "$(dirname "$0")/fastify"

fail() {
    echo "$*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null
}

has node || fail "Node.js is missing: install version 20 or newer."
version=$(node --version)
major=${version#v}
major=${major%%.*}
((major >= 20)) || fail "Node.js ${version} is too old: install version 20 or newer."
has npm || fail "npm is missing: install it, as it comes with Node.js."

if ! has wrk; then
    has apt-get || fail "wrk is missing, and so is apt-get: install wrk by hand."
    as_root=(env)
    if ((EUID != 0)); then
        has sudo || fail "wrk is missing: install it as root."
        as_root=(sudo env)
    fi
    echo "Installing wrk." >&2
    # An outdated list of packages may do, so the first may fail.
    "${as_root[@]}" apt-get update >/dev/null 2>&1 || true
    "${as_root[@]}" DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends wrk >/dev/null 2>&1 ||
        fail "wrk can't be installed: run 'apt-get install wrk' to see why."
fi

# npm writes this file when it has finished.
if [[ ! node_modules/.package-lock.json -nt package-lock.json ]]; then
    echo "Installing Fastify." >&2
    npm ci --no-audit --no-fund >/dev/null 2>&1 ||
        fail "Fastify can't be installed: run 'npm ci' in ${PWD} to see why."
fi
