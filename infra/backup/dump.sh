#!/usr/bin/env bash
# Dumps MLflow's database into a folder: dump.sh FOLDER. libpq's variables say where it is.
set -euo pipefail
name=mlflow-$(date -u +%Y%m%dT%H%M%SZ).dump
pg_dump --format=custom --no-owner --no-privileges --file="$1/unfinished"
# A dump that can be listed is whole.
pg_restore --list "$1/unfinished" > /dev/null
chmod 644 "$1/unfinished"
mv "$1/unfinished" "$1/$name"
