#!/bin/sh
# Makes Sconce's container images from this checkout with binaries that are built here, so that no container registry
# is needed: `make images`. Where a registry is reached, `docker compose build` does without this script.
#
# BIN names a directory with binaries that are built already.
set -eu
cd "$(dirname "$0")/.."

if ! docker info >/dev/null 2>&1; then
    echo "images: no Docker engine answers; start it, or install one: apt-get install docker.io" >&2
    exit 1
fi
compose/base-image.sh
if [ -z "${BIN:-}" ] || [ "$BIN" = target/release ]; then
    make --no-print-directory build
fi
prebuilt=compose/prebuilt
mkdir -p "$prebuilt"
trap 'rm -rf "$prebuilt"' EXIT
for name in fs-router volume-router storage-router sconce supervise; do
    install -m 755 "${BIN:-target/release}/$name" "$prebuilt/$name"
    strip --strip-debug "$prebuilt/$name" 2>/dev/null || true # smaller images; backtraces keep their function names
done
for image in etcd sconce; do
    docker build --quiet --file compose/Dockerfile --build-arg BUILD=debian:bookworm-slim \
        --target "$image" --tag "sconce/$image:latest" . >/dev/null
    docker image inspect --format '{{index .RepoTags 0}}: {{.Size}} bytes' "sconce/$image:latest"
done
