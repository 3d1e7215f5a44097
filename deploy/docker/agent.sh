#!/bin/sh
# The first process of an agent's container. Its node is called as the container, which other containers can reach by
# that name too.
set -eu
node=$(hostname)
export TETHER_AGENT__NODE="$node"
export TETHER_AGENT__WORKER_HOST="$node"
export TETHER_LISTEN__AGENT="[\"$node:7439\"]"
# As the first process it inherits and ends what a killed shim leaves. With an argument, such as --health, it is another.
if [ $# = 0 ]; then set -- --init; fi
exec tether-agent "$@"
