# One node of Tether, on whatever image has the workers' Python environment.
#
#   cargo build --release --package tether
#   docker build --file deploy/docker/single.Dockerfile --build-arg BASE=my-python-image --tag tether:dev .
#
# BASE needs glibc no older than the machine's that built the binary, and useradd.
ARG BASE=debian:bookworm-slim
FROM ${BASE}

# Sockets and workers' directories are refused where others may write. A fixed uid, because the volume outlives the image.
RUN useradd --system --uid 10001 --home-dir /var/lib/tether --create-home tether \
    && install --directory --mode 0700 --owner tether --group tether /run/tether

COPY target/release/tether /usr/local/bin/tether
COPY deploy/docker/single.toml /etc/tether/tether.toml

USER tether
ENV TETHER_RUNTIME_DIR=/run/tether
VOLUME /var/lib/tether
EXPOSE 7437

# Asks the arbiter, through the gateway.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["tether", "pool", "ls"]

ENTRYPOINT ["tether"]
# The first process of the container is the zygote: it inherits and ends what a killed shim leaves behind, and
# starts `tether up` again should that be killed.
CMD ["up", "--init", "--config", "/etc/tether/tether.toml"]
