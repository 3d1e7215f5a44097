#!/bin/sh
# In the image that builds: static programs, stripped, in /programs. Does nothing where they are there already.
set -eu
if [ -d /programs ]; then exit 0; fi

target=$(rustc -vV | sed -n 's/^host: //p')
# With a target of its own the flag is for the programs, and not for what builds them.
export RUSTFLAGS="-C target-feature=+crt-static"
cargo build --locked --profile dist --target "$target" --bin tether --bin tether-agent --bin tether-gateway
# No call passes through these two, and they are a third smaller so.
cargo build --locked --profile small --target "$target" --bin tether-arbiter --bin tether-discovery
mkdir /programs
for program in dist/tether dist/tether-agent dist/tether-gateway small/tether-arbiter small/tether-discovery; do
    cp "target/$target/$program" /programs/
done
