#!/usr/bin/env bash
# [Task]: T062 [From]: specs/requirements.md
# Installs what the suite of the container lacks: debootstrap, as a program only.
cd "$(dirname "$0")/../.."
source scripts/install.sh

((EUID == 0)) || fail "A Debian folder can be made by root alone: run 'make container' as root."
has debootstrap || from_debian debootstrap debootstrap
