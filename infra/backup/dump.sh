#!/usr/bin/env bash
# Dumps MLflow's database into a folder: dump.sh FOLDER. libpq's variables say where it is.
set -euo pipefail
name=mlflow-$(date -u +%Y%m%dT%H%M%SZ).dump
pg_dump --format=custom --no-owner --no-privileges --file="$1/.$name"
# A dump that can be listed is whole.
pg_restore --list "$1/.$name" > /dev/null
chmod 644 "$1/.$name"
mv "$1/.$name" "$1/$name"
