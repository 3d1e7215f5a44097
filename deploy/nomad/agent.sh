#!/bin/sh
# The agent as a task of Nomad, which has no hook before the end of a task: asked to stop, its node is drained first.
here=$NOMAD_TASK_DIR
hook() { TETHER_GATEWAY=$(tr -d '[:space:]' <"$here/gateway") sh "$here/$1"; }

tether-agent &
agent=$!

end() {
    trap '' TERM INT
    hook drain.sh
    kill -TERM "$agent"
}
trap end TERM INT

hook open.sh &
# A signal ends `wait` before its time.
while kill -0 "$agent" 2>/dev/null; do
    wait "$agent"
    status=$?
done
exit "$status"
