#!/bin/bash
# Makes the root of a Debian 12 with all that containers of docker-compose.yml need beyond our programs, once, and says
# where it is: for machines that reach no registry. Takes two minutes, and `debootstrap`, which `cargo xtask` fetches.
set -euo pipefail

say() { echo "image-root: $*" >&2; }
give_up() { say "$*"; exit 1; }

packages=python3,elixir,prometheus,etcd-client,ca-certificates
here=$(cd "$(dirname "$0")/.." && pwd)
grounds=${TETHER_GROUNDS:-$here/target/grounds}
root=$grounds/images-$(echo "$packages" | cksum | cut -d ' ' -f 1)

mkdir -p "$grounds"
exec 9>"$grounds/images.lock"
flock 9
if [ ! -d "$root" ]; then
    [ "$(id -u)" = 0 ] || give_up "only root can make it"
    # The last folder has what debootstrap calls, where the machine does not.
    PATH=$here/target/tools/bin:$PATH:$here/target/tools/debootstrap/usr/bin
    command -v debootstrap >/dev/null || give_up "no \`debootstrap\`; \`cargo xtask ground\` fetches it"
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' | sed -n '/^Debian /{s///p;q}')
    [ -n "$mirror" ] || give_up "apt-get knows no Debian archive"
    say "making $root"
    rm -rf "$root.new"
    debootstrap --variant=minbase --include="$packages" bookworm "$root.new" "$mirror" >"$grounds/images.log" 2>&1 ||
        give_up "debootstrap failed: $(tail -n 3 "$grounds/images.log")"
    rm -rf "$root.new"/var/cache/apt/archives/*.deb "$root.new"/var/lib/apt/lists/* "$root.new"/usr/share/{doc,man,locale}/*
    mv "$root.new" "$root"
fi
echo "$root"
