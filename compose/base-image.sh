#!/bin/sh
# Makes the base image of Sconce's containers with mmdebstrap and `docker import`, for machines that reach a Debian
# mirror but no container registry. The tag is the one that compose/Dockerfile names, so that nothing else changes.
#
#   compose/base-image.sh            makes debian:bookworm-slim unless the engine has it
#   compose/base-image.sh --again    makes it in any case
#
# SCONCE_MIRROR names another Debian mirror. The packages that the images add are in it from the start, because a
# container may reach no mirror where this machine does.
set -eu

tag=debian:bookworm-slim
mirror=${SCONCE_MIRROR:-http://deb.debian.org/debian}
packages=ca-certificates,etcd-client,etcd-server,fuse3,tini

if [ "${1:-}" != --again ] && docker image inspect "$tag" >/dev/null 2>&1; then
    echo "base image: $tag is there"
    exit 0
fi
if ! command -v mmdebstrap >/dev/null; then
    echo "base image: mmdebstrap is missing; install it: apt-get install mmdebstrap" >&2
    exit 1
fi
echo "base image: making $tag from $mirror (about two minutes)"
mmdebstrap --quiet --variant=minbase --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    bookworm - "$mirror" |
    docker import --change 'CMD ["/bin/sh"]' --message 'mmdebstrap' - "$tag" >/dev/null
docker image inspect --format 'base image: {{index .RepoTags 0}}, {{.Size}} bytes' "$tag"
