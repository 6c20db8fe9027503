#!/usr/bin/env bash
# Restores the dump in a folder into an empty server beside it, and counts: drill.sh FOLDER.
#
# It fails where MLflow would find no table, no version of them or no experiment: that is what a
# restore is for. The server listens on a socket in the folder alone.
set -euo pipefail
dump=$(ls "$1"/*.dump)
data=$1/data
export PGHOST=$1 PGUSER=postgres PGDATABASE=mlflow
unset PGPASSWORD PGSSLMODE PGSSLROOTCERT
initdb --username=postgres --auth=trust --pgdata="$data" > /dev/null
trap 'pg_ctl --pgdata="$data" --mode=immediate stop > /dev/null' EXIT
pg_ctl --pgdata="$data" --wait --options="-c listen_addresses= -c unix_socket_directories=$1" \
    --log="$1/server.log" start > /dev/null
createdb mlflow
pg_restore --exit-on-error --no-owner --no-privileges --dbname=mlflow "$dump"
count() { psql --no-psqlrc --tuples-only --no-align --command "SELECT count(*) FROM $1"; }
version=$(count alembic_version)
experiments=$(count experiments)
runs=$(count runs)
[ "$version" -ge 1 ] && [ "$experiments" -ge 1 ] || {
    echo "$dump: restored, but version $version and experiments $experiments" >&2
    exit 1
}
echo "$(basename "$dump"): $experiments experiments, $runs runs"
