#!/bin/sh
# Runs the pool of this folder until Ctrl-C; needs cargo and Python 3.8 or newer.
set -eu
cd "$(dirname "$0")"

exec cargo run --quiet --package tether -- run -f tether.toml "$@"
