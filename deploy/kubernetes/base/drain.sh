#!/bin/sh
# Before this node's end: its workers are replaced elsewhere, each pool within its `rollout`. What is left after
# DRAIN_SECONDS, as there is no room for it, is asked to stop, which the end of the container would not do.
node=$TETHER_AGENT__NODE
until=$(($(date +%s) + DRAIN_SECONDS))

# The column STATE is `up, drained` once the last one has left.
is_drained() { tether nodes | grep -Eq "^$node +up, drained( |$)"; }

tether node drain "$node" || exit 0
until is_drained; do
    if [ "$(date +%s)" -ge "$until" ]; then break; fi
    sleep 1
done

tether ps | awk -v node="$node" '{ for (i = 2; i <= NF; i++) if ($i == node) print $1 }' | while read -r worker; do
    tether stop "$worker" &
done
wait
