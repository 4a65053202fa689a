#!/usr/bin/env bash
# [Task]: T033 [From]: specs/requirements.md
# Installs what the fault suite lacks: PgBouncer and nginx, as programs only.
cd "$(dirname "$0")/../.."
source scripts/install.sh

# Debian keeps it where only root's PATH looks.
PATH=$PATH:/usr/sbin
has pgbouncer || from_debian pgbouncer PgBouncer
has nginx || from_debian nginx-light nginx
