#!/bin/sh
# Replace the replicas of compose.scale.yml one by one with replicas of the present settings and image: no request is lost.
#
#     sh deploy/update.sh                                  what `up` was told by the shell or by .env, it needs again
#     sh deploy/update.sh -f deploy/compose.tls.yml        with further files of Compose
#
# COMPOSE=docker-compose is for the older command. A new replica that does not become healthy is removed, and the others stay.

set -eu
cd "$(dirname "$0")/.."
PATIENCE_S=180

files="$*"
compose() {
    # shellcheck disable=SC2086 # words, not one argument
    ${COMPOSE:-docker compose} --project-directory . -f deploy/compose.scale.yml $files "$@"
}

replicas() {
    compose ps -q vit-serve
}

wait_until_healthy() {
    waited=0
    while status=$(docker inspect --format '{{.State.Health.Status}}' "$1") && [ "$status" = starting ] && [ $waited -lt $PATIENCE_S ]; do
        sleep 1
        waited=$((waited + 1))
    done
    [ "$status" = healthy ]
}

before=$(replicas)
count=$(echo "$before" | wc -l)
[ -n "$before" ] || { echo "no replica runs: start them with \`up\`" >&2; exit 1; }

for old in $before; do
    known=$(replicas)
    compose up -d --no-deps --no-recreate --scale vit-serve=$((count + 1)) vit-serve
    for new in $(replicas); do
        case "$known" in *"$new"*) continue ;; esac
        if ! wait_until_healthy "$new"; then
            echo "the new replica $new did not become healthy; its log:" >&2
            docker logs --tail 20 "$new" >&2
            docker rm --force "$new" > /dev/null
            exit 1
        fi
    done
    docker stop "$old" > /dev/null # not ready, then accepting no more, then gone
    docker rm "$old" > /dev/null
    echo "replaced $old"
done
