#!/bin/bash
# Run in the machine; each line it prints is a word and what was seen.
set -eu

until_true() { # WHAT COMMAND: looks until the command succeeds
    local what=$1 left=600
    shift
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || { echo "not seen: $what"; systemctl status tether.service beam@greedy.service --no-pager -l; exit 1; }
        sleep 0.1
    done
}
ready() { # PID OF BEFORE: whether another process is a ready worker, which is `pid` from then on
    local found
    found=$(tether --output json ps | python3 -c 'import json, sys
for worker in json.load(sys.stdin):
    if worker["phase"] == "ready":
        print(worker["pid"])')
    [ -n "$found" ] && [ "$found" != "$1" ] && pid=$found
}
group_of() { sed -n s/^0:://p "/proc/$1/cgroup"; }
died_of() { tether --output json events | grep "$1"; }
daemon() { pgrep -x grandchild; }
gone() { [ ! -d "/proc/$1" ]; }
shown() { systemctl show --property="$1" --value tether.service; }

install-tether
systemctl start tether.service
echo "level: $(tether nodes)" | tr '\n' ' '
echo
systemctl start beam@greedy.service
until_true "a worker that is ready" ready none
group=$(group_of "$pid")
agent=$(shown MainPID)
below=$(daemon)
echo "group: $group"
echo "max: $(cat "/sys/fs/cgroup$group/memory.max")"
echo "oom-group: $(cat "/sys/fs/cgroup$group/memory.oom.group")"

touch /opt/go
until_true "a death for want of memory" died_of OOM_KILLED
until_true "the end of its daemon" gone "$below"
echo "daemon: gone"
echo "death: $(died_of OOM_KILLED | head -n 1)"
same=$([ "$(shown MainPID)" = "$agent" ] && echo same || echo another)
echo "agent: $same, $(shown NRestarts) restarts, $(shown ActiveState), $(shown Result)"

until_true "the next worker" ready "$pid"
next=$pid
group=$(group_of "$next")
systemctl restart tether.service
until_true "the worker with the next agent" ready none
echo "restarted: $([ "$pid" = "$next" ] && echo same || echo another) process, $([ "$(group_of "$pid")" = "$group" ] && echo same || echo another) group"

below=$(daemon)
echo 1 >"/sys/fs/cgroup$group/cgroup.kill"
until_true "the end of both" gone "$next"
until_true "the end of its daemon" gone "$below"
until_true "another worker" ready "$next"
echo "cgroup-kill: both gone, another started"

systemctl stop beam@greedy.service
sh -e /opt/end.sh
left=$(ps -eo args= | grep -E '^(tether-|/usr/bin/tether|/usr/bin/python3)' || true)
left=$left$(find /run/tether -maxdepth 1 -type s)$(find /sys/fs/cgroup -name 'tether-*')
echo "left: ${left:-nothing}"
