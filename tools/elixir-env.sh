#!/bin/bash
# Sees to it that `mix` is there, for the Elixir client. Installs Debian's where it is missing and that is allowed.
set -euo pipefail

say() { echo "elixir-env: $*"; }
give_up() { say "$*" >&2; exit 1; }

if ! command -v mix >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        give_up "no \`mix\`; install Elixir 1.14 or newer (Debian: elixir) and try again"
    fi
    say "installing elixir"
    apt-get -qq update >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends elixir >/dev/null
fi

version=$(elixir --short-version)
case $version in
0.* | 1.[0-9].* | 1.1[0-3].*) give_up "this is Elixir $version; install 1.14 or newer" ;;
esac
say "Elixir $version is there"
