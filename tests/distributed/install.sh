#!/usr/bin/env bash
# [Task]: T050 [From]: specs/requirements.md
# Installs what the suite of the cluster lacks: PostgreSQL 15 of Debian's, and Citus beside it.
cd "$(dirname "$0")/../.."
source scripts/install.sh

# The build of Citus calls what older ones have not.
[[ $(/usr/lib/postgresql/15/bin/postgres --version 2>/dev/null) =~ \ 15\.([0-9]+) ]] &&
    ((BASH_REMATCH[1] >= 20)) || from_debian postgresql-15 "PostgreSQL 15"
[[ -e /usr/lib/postgresql/15/lib/citus.so ]] && exit
# A build of it may lie beside the project.
[[ -x ../shared/citus/install ]] || fail "Citus is missing: install version 13 for PostgreSQL 15, as" \
    "https://docs.citusdata.com/en/stable/installation/multi_node_debian.html says."
((EUID == 0)) || fail "Citus is missing: run ../shared/citus/install as root."
echo "Installing Citus." >&2
../shared/citus/install >/dev/null
