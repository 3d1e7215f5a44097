"""What the environment says to the services."""

# Not settings, and known to the programs.
KNOWN = {"TETHER_CONFIG", "TETHER_RUNTIME_DIR", "TETHER_LOG", "TETHER_LOG_FORMAT", "TETHER_HISTORY", "TETHER_GATEWAY", "TETHER_STORE"}


def variables(cluster):
    """Each is one that a program reads. Whether a setting is one, and can be used, says `tether config check`."""
    for workload in cluster.workloads:
        for container in workload.containers:
            for name in container.env():
                if name.startswith("TETHER_") and "__" not in name and name not in KNOWN:
                    yield f"{workload}, {container.name}: nobody reads the variable {name}"
            for name, value in container.env().items():
                if "$(" in value:
                    yield f"{workload}, {container.name}: {name} wants a variable that is not set before it: {value}"
