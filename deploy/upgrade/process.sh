#!/bin/sh
# Upgrades one service among those that were started by hand. PIDFILE has the number of the old process, and then that of
# the new one; the program and its arguments start the new one. LOG is where it writes. Where the old one is gone, as
# after an upgrade that failed, the new one is started all the same.
#
#   export LOG=/var/log/tether.log
#   sh deploy/upgrade/process.sh /run/tether/arbiter.pid tether-arbiter --config /etc/tether/tether.toml
#   sh deploy/upgrade/process.sh --beside /run/tether/gateway.pid tether-gateway --config /etc/tether/tether.toml
#
# With --beside, for gateways with `gateway.handover`, the new one takes over the sockets and the old one then leaves by
# itself: nobody is refused. The others leave first; workers, sessions and leases wait for them.
set -eu
patience=${PATIENCE:-120}
health=grpc.health.v1.Health

give_up() { echo "upgrade: $*" >&2; exit 1; }

beside=
if [ "$1" = --beside ]; then beside=yes; shift; fi
[ $# -ge 2 ] || give_up "expected [--beside] PIDFILE PROGRAM [ARGUMENT ...]"
[ "${LOG:-}" ] || give_up "set LOG to the file where the new process writes"
pidfile=$1
shift
old=$(cat "$pidfile")
case $old in
'' | 0* | 1 | *[!0-9]*) give_up "$pidfile says \`$old\`, which is no process of ours" ;;
esac

runs() { kill -0 "$1" 2>/dev/null; }

# The kernel keeps 15 letters of a name.
comm=$(cat "/proc/$old/comm" 2>/dev/null || true)
if [ "$comm" ] && [ "$comm" != "$(basename "$1" | cut -c 1-15)" ]; then
    give_up "process $old of $pidfile is \`$comm\` and not \`$1\`: where that one is gone, start it by hand"
fi

# Waits for something: eventually WHAT COMMAND...
eventually() {
    what=$1 left=$((patience * 10))
    shift
    until "$@"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || give_up "not within $patience s: $what"
        sleep 0.1
    done
}

begin() {
    "$@" </dev/null >>"$LOG" 2>&1 &
    new=$!
}

has_left() { ! runs "$old"; }

# Where the new one gives up instead, the old one goes on.
has_taken_over() {
    runs "$new" || give_up "the new process has ended; the old one goes on"
    has_left
}

# As a process, whether or not it is the one that leads.
answers() {
    runs "$new" || give_up "the new process has ended"
    "$@" "--health=$health" 2>/dev/null
}

if [ "$beside" ]; then
    begin "$@"
    eventually "the old process leaves" has_taken_over
    health=
else
    # One that is gone cannot be asked.
    if runs "$old"; then kill -TERM "$old" || true; fi
    eventually "the old process leaves" has_left
    begin "$@"
fi
echo "$new" >"$pidfile"
eventually "the new process answers" answers "$@"
echo "upgrade: $1 is now process $new"
