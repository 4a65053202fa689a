#!/usr/bin/env bash
# [Task]: T014 [From]: specs/requirements.md
# For the suites' own install.sh to source: what a machine may lack, from Debian's packages and from
# npm's lock files. What apt-get and npm say is kept to ourselves; progress goes to standard error.
set -euo pipefail

fail() {
    echo "$*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null
}

# from_debian PACKAGE NAME: install a package, which people call NAME.
from_debian() {
    has apt-get || fail "$2 is missing, and so is apt-get: install $2 by hand."
    local as_root=(env)
    if ((EUID != 0)); then
        has sudo || fail "$2 is missing: install it as root."
        as_root=(sudo env)
    fi
    echo "Installing $2." >&2
    # An outdated list of packages may do, so the first may fail.
    "${as_root[@]}" apt-get update >/dev/null 2>&1 || true
    "${as_root[@]}" DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends "$1" >/dev/null 2>&1 ||
        fail "$2 can't be installed: run 'apt-get install $1' to see why."
}

# from_npm FOLDER NAME: install what the folder's lock file lists. Node itself is only looked for.
from_npm() {
    has node || fail "Node.js is missing: install version 20 or newer."
    local version major
    version=$(node --version)
    major=${version#v}
    major=${major%%.*}
    ((major >= 20)) || fail "Node.js ${version} is too old: install version 20 or newer."
    has npm || fail "npm is missing: install it, as it comes with Node.js."
    cd "$1"
    # npm writes this file when it has finished.
    if [[ ! node_modules/.package-lock.json -nt package-lock.json ]]; then
        echo "Installing $2." >&2
        npm ci --no-audit --no-fund >/dev/null 2>&1 ||
            fail "$2 can't be installed: run 'npm ci' in ${PWD} to see why."
    fi
}
