#!/usr/bin/env bash
# [Task]: T033 [From]: specs/requirements.md
# Installs what the fault suite lacks: PgBouncer from Debian's packages, as a program only. What
# apt-get says is kept to ourselves.
set -euo pipefail

fail() {
    echo "$*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null
}

# Debian keeps it where only root's PATH looks.
PATH=$PATH:/usr/sbin
if has pgbouncer; then
    exit 0
fi
has apt-get || fail "PgBouncer is missing, and so is apt-get: install PgBouncer by hand."
as_root=(env)
if ((EUID != 0)); then
    has sudo || fail "PgBouncer is missing: install it as root."
    as_root=(sudo env)
fi
echo "Installing PgBouncer."
# An outdated list of packages may do, so the first may fail.
"${as_root[@]}" apt-get update >/dev/null 2>&1 || true
"${as_root[@]}" DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes --no-install-recommends pgbouncer >/dev/null 2>&1 ||
    fail "PgBouncer can't be installed: run 'apt-get install pgbouncer' to see why."
