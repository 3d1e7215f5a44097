#!/bin/sh
# Before this node's end: its workers are replaced elsewhere, each pool within its `rollout`. What is left after
# DRAIN_SECONDS, as there is no room for it, is asked to stop, which the end of the container would not do.
node=$TETHER_AGENT__NODE
until=$(($(date +%s) + DRAIN_SECONDS))

# `up, drained` once the last one has left.
is_drained() { tether nodes | grep -Eq "^$node +up, drained( |$)"; }

# WORKER PHASE PID NODE
workers() { tether ps | awk -v node="$node" '$4 == node { print $1 }'; }

tether node drain "$node" || exit 0
until is_drained || [ "$(date +%s)" -ge "$until" ]; do sleep 1; done

for worker in $(workers); do tether stop "$worker"; done
while [ -n "$(workers)" ]; do sleep 1; done
