#!/bin/sh
# Before this node's end: its workers are replaced elsewhere, each pool within its `rollout`. What is left after
# DRAIN_SECONDS, as there is no room for it, is asked to stop, which the end of the container would not do.
exec tether node drain "$TETHER_AGENT__NODE" --wait --stop --timeout "${DRAIN_SECONDS}s"
