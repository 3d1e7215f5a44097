#!/bin/sh
# Upgrades what docker-compose.yml runs, one container after the other, to the images that TETHER_TAG (and ETCD_IMAGE)
# name, without a failed call or a dead worker:
#
#   TETHER_TAG=0.2.0 sh deploy/upgrade/compose.sh                     # all of it, in this order
#   TETHER_TAG=0.2.0 sh deploy/upgrade/compose.sh gateway agent      # some
#
# Put the tag into .env too, or the next `docker-compose up` goes back. Images have to be there or to be pulled.
# COMPOSE is the program, and CLIENTS_LEARN how many seconds clients of a name may need to hear of its new addresses.
set -eu
compose=${COMPOSE:-docker-compose}
learn=${CLIENTS_LEARN:-40}
patience=${PATIENCE:-300}

say() { echo "upgrade: $*"; }
give_up() { say "$*" >&2; exit 1; }

# Those of a service that run.
containers() { $compose ps --quiet "$1"; }

# Waits for something: eventually WHAT COMMAND...
eventually() {
    what=$1 left=$patience
    shift
    until "$@"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || give_up "not within $patience s: $what"
        sleep 1
    done
}

is_healthy() { [ "$(docker inspect --format '{{.State.Health.Status}}' "$1")" = healthy ]; }

all_healthy() {
    all=$(containers "$1")
    # An engine that does not answer has none.
    [ -n "$all" ] || return 1
    for one in $all; do is_healthy "$one" || return 1; done
}

# The image that a service is to have, as the configuration names it.
wanted() {
    $compose config | awk -v service="$1:" '
        /^[^ ]/ { part = $1 }
        part == "services:" && /^  [^ ]/ { name = $1 }
        name == service && /^    image:/ { gsub(/["\047]/, "", $2); print $2; exit }'
}

id_of() { docker image inspect --format '{{.Id}}' "$1" 2>/dev/null; }

# Those of a service that have another image than this one, by its name or by what it was then.
outdated() {
    for one in $(containers "$1"); do
        has=$(docker inspect --format '{{.Config.Image}} {{.Image}}' "$one")
        [ "$has" = "$2 $3" ] || echo "$one"
    done
}

# A service with one container, which others can do without for as long as it takes to start: it is exchanged.
exchange() {
    say "$1: another in its place"
    $compose up --detach --no-deps --no-build "$1"
    eventually "$1 is healthy" all_healthy "$1"
}

# A service whose containers share its name: a new one beside each old one, and then the old one leaves.
replace() {
    service=$1
    image=$(wanted "$service")
    [ -n "$image" ] || give_up "no image is named for $service"
    id_of "$image" >/dev/null || docker pull "$image" >/dev/null
    all=$(containers "$service" | wc -w)
    [ "$all" -gt 0 ] || give_up "no container of $service runs: start it with \`$compose up\`"
    old=$(outdated "$service" "$image" "$(id_of "$image")")
    many=$(echo "$old" | wc -w)
    # An upgrade that was begun before has left some of the new ones, and not more than there were old ones.
    count=$((all - many))
    [ "$count" -gt "$many" ] || count=$many
    say "$service: $count of $image, beside $many old"
    $compose up --detach --no-deps --no-build --no-recreate --scale "$service=$((count + many))" "$service"
    eventually "every $service is healthy" all_healthy "$service"
    if [ "$service" = gateway ]; then
        say "$service: $learn s for clients to hear of the new addresses"
        sleep "$learn"
    fi
    for one in $old; do
        if [ "$service" = agent ]; then empty "$one"; fi
        say "$service: $one leaves"
        # SIGTERM: what is under way ends first.
        docker stop --time 60 "$one" >/dev/null
        docker rm "$one" >/dev/null
        if [ "$service" = agent ]; then forget "$node"; fi
    done
}

# Asks a gateway, from an agent's container, which has the program.
tether() { docker exec "$(containers agent | tail -n 1)" tether "$@"; }

# A worker is a process of its agent's container and ends with it, so all of them move before: each is replaced
# elsewhere before it ends, as its pool's `rollout` says.
empty() {
    node=$(docker inspect --format '{{.Config.Hostname}}' "$1")
    say "agent: the workers of $node move"
    tether node drain "$node"
    eventually "$node is empty" is_drained "$node"
}

# A node that is away is kept for the order that it has.
forget() { tether node uncordon "$1" >/dev/null; }

is_drained() { tether nodes | grep -Eq "^$1 +up, drained( |$)"; }

upgrade() {
    case $1 in
    gateway | agent | discovery) replace "$1" ;;
    *) exchange "$1" ;;
    esac
}

if [ $# = 0 ]; then
    set -- etcd-1 etcd-2 etcd-3 arbiter-1 arbiter-2 discovery gateway agent app
fi
for service; do upgrade "$service"; done
say "done"
