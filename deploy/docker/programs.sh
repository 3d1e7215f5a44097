#!/bin/sh
# In the image that builds: static programs, stripped, in /programs. Does nothing where they are there already.
set -eu
if [ -d /programs ]; then exit 0; fi

target=$(rustc -vV | sed -n 's/^host: //p')
# With a target of its own the flag is for the programs, and not for what builds them.
export RUSTFLAGS="-C target-feature=+crt-static"
cargo build --locked --profile dist --target "$target" \
    --bin tether --bin tether-agent --bin tether-arbiter --bin tether-discovery --bin tether-gateway
mkdir /programs
for program in tether tether-agent tether-arbiter tether-discovery tether-gateway; do
    strip -o "/programs/$program" "target/$target/dist/$program"
done
