#!/bin/bash
# Makes the root of a Debian 12 that tests boot with systemd, once, and says where it is. Takes a minute or two, and
# `debootstrap`, which `cargo xtask` fetches.
set -euo pipefail

say() { echo "ground: $*" >&2; }
give_up() { say "$*"; exit 1; }

packages=systemd,systemd-sysv,dbus,procps,python3-grpcio
here=$(cd "$(dirname "$0")/.." && pwd)
grounds=${TETHER_GROUNDS:-$here/target/grounds}
# Another list of packages is another root.
root=$grounds/bookworm-$(echo "$packages" | cksum | cut -d ' ' -f 1)

if [ ! -d "$root" ]; then
    [ "$(id -u)" = 0 ] || give_up "only root can make it"
    # The last folder has what debootstrap calls, where the machine does not.
    PATH=$here/target/tools/bin:$PATH:$here/target/tools/debootstrap/usr/bin
    command -v debootstrap >/dev/null || give_up "no \`debootstrap\`; \`cargo xtask ground\` fetches it"
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' | sed -n '/^Debian /{s///p;q}')
    [ -n "$mirror" ] || give_up "apt-get knows no Debian archive"
    mkdir -p "$grounds"
    exec 9>"$grounds/lock"
    flock 9
fi
if [ ! -d "$root" ]; then
    say "making a Debian 12 in $grounds"
    rm -rf "$root.new"
    debootstrap --variant=minbase --include="$packages" bookworm "$root.new" "$mirror" >"$grounds/debootstrap.log" 2>&1 ||
        give_up "debootstrap failed: $(tail -n 3 "$grounds/debootstrap.log")"
    rm -rf "$root.new"/var/cache/apt/archives/*.deb "$root.new"/var/lib/apt/lists/* "$root.new"/usr/share/{doc,man,locale}/*
    # Each machine that is booted from it gets its own.
    : >"$root.new/etc/machine-id"
    mv "$root.new" "$root"
fi
echo "$root"
