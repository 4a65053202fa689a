#!/usr/bin/env bash
# [Task]: T031 [From]: specs/requirements.md
# Installs what the end-to-end suite lacks: Chromium from Debian's packages, the example's packages
# from npm's lock file. Node itself it only looks for. What apt-get and npm say is kept to ourselves.
set -euo pipefail
cd "$(dirname "$0")/../../examples/better-auth"

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

if ! has chromium && ! has chromium-browser && ! has google-chrome; then
    has apt-get || fail "Chromium is missing, and so is apt-get: install Chromium by hand."
    as_root=(env)
    if ((EUID != 0)); then
        has sudo || fail "Chromium is missing: install it as root."
        as_root=(sudo env)
    fi
    echo "Installing Chromium."
    # An outdated list of packages may do, so the first may fail.
    "${as_root[@]}" apt-get update >/dev/null 2>&1 || true
    "${as_root[@]}" DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends chromium >/dev/null 2>&1 ||
        fail "Chromium can't be installed: run 'apt-get install chromium' to see why."
fi

# npm writes this file when it has finished.
if [[ ! node_modules/.package-lock.json -nt package-lock.json ]]; then
    echo "Installing the example's packages."
    npm ci --no-audit --no-fund >/dev/null 2>&1 ||
        fail "The example's packages can't be installed: run 'npm ci' in ${PWD} to see why."
fi
