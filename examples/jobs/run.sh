#!/bin/sh
# Runs the pool of this folder until Ctrl-C; needs cargo and Python 3.11 or newer.
set -eu
cd "$(dirname "$0")"

../../tools/python-env.sh
exec cargo run --quiet --package tether -- run -f tether.toml "$@"
