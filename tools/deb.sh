#!/bin/bash
# Makes a Debian package of programs that were built, with their units: tools/deb.sh PROGRAMS FOLDER, where PROGRAMS is
# target/release or the like. Prints its path.
set -euo pipefail

say() { echo "deb: $*" >&2; }
give_up() { say "$*"; exit 1; }

[ $# = 2 ] || give_up "which programs, and where to? for example \`tools/deb.sh target/release target/deb\`"
programs=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
cd "$(dirname "$0")/.."
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
architecture=$(dpkg --print-architecture)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
chmod 755 "$tree"

put() { install -D --mode="$1" --target-directory="$tree/$2" "${@:3}"; }
for name in tether tether-gateway tether-arbiter tether-discovery tether-agent; do
    [ -x "$programs/$name" ] || give_up "no \`$programs/$name\`: run \`cargo build --release --bins\`"
    put 755 usr/bin "$programs/$name"
done
strip "$tree"/usr/bin/*
put 644 usr/lib/systemd/system deploy/systemd/*.service deploy/systemd/*.socket deploy/systemd/*.slice
install -D --mode=644 deploy/systemd/sysusers.conf "$tree/usr/lib/sysusers.d/tether.conf"
install -D --mode=644 deploy/systemd/tmpfiles.conf "$tree/usr/lib/tmpfiles.d/tether.conf"
put 644 etc/tether deploy/systemd/tether.toml
put 644 usr/share/doc/tether LICENSE-APACHE LICENSE-MIT CHANGELOG.md docs/how-to/systemd.md

"$tree/usr/bin/tether" shell "$tree/shell"
put 644 usr/share/man/man1 "$tree"/shell/*.1
put 644 usr/share/man/man8 "$tree"/shell/*.8
gzip --best --no-name "$tree"/usr/share/man/man?/*
install -D --mode=644 "$tree/shell/tether.bash" "$tree/usr/share/bash-completion/completions/tether"
install -D --mode=644 "$tree/shell/_tether" "$tree/usr/share/zsh/vendor-completions/_tether"
install -D --mode=644 "$tree/shell/tether.fish" "$tree/usr/share/fish/vendor_completions.d/tether.fish"
rm -r "$tree/shell"

put 755 DEBIAN deploy/deb/postinst deploy/deb/prerm deploy/deb/postrm
echo /etc/tether/tether.toml >"$tree/DEBIAN/conffiles"
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@SIZE@/$(du -sk "$tree" | cut -f 1)/" \
    deploy/deb/control >"$tree/DEBIAN/control"
package=$out/tether_${version}_$architecture.deb
dpkg-deb --root-owner-group "-Z${DEB_COMPRESSION:-xz}" --build "$tree" "$package" >/dev/null
echo "$package"
