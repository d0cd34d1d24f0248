#!/bin/sh
# Classify an image with a Tokenfold server: examples/client.sh PHOTO [LEVEL [SERVER]]
set -eu
image=$1
level=${2:-balanced}
server=${3:-http://localhost:8000}
curl --silent --show-error --fail-with-body \
    -F "image=@$image" -F "level=$level" -F top_k=3 "$server/v1/classify"
