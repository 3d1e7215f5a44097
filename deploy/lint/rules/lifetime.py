"""How pods are asked whether they live, and how long they are given to end."""

from ..cluster import seconds

# What each probe asks for: whether the process answers, and whether it serves. A service that drains or stands by lives.
ASKS = {"startupProbe": "liveness", "readinessProbe": "readiness", "livenessProbe": "liveness"}

# The port for it, which speaks plain text whatever the others do.
ADMIN = "admin"

# How long each program takes for its calls under way once it is told to stop, where no setting says so.
DRAINS = {"tether-arbiter": 5, "tether-discovery": 1, "tether-agent": 1}

# Of `gateway.drain`, where it is not set, and of what follows it.
GATEWAY_DRAIN, NOTICE, LAST_WORDS = "10s", "100ms", 2
NODE_TTL, STOP_GRACE = "20s", "10s"


def probes(cluster):
    for workload in cluster.workloads:
        for container in workload.containers:
            who = f"{workload}, {container.name}"
            there = dict(container.probes())
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                if kind not in there:
                    yield f"{who}: no {kind}"
            own = [port["containerPort"] for port in container.ports] + [port.get("name") for port in container.ports]
            for kind, probe in there.items():
                action = next((probe[one] for one in ("grpc", "httpGet", "tcpSocket") if one in probe), None)
                if action is None:
                    yield f"{who}: its {kind} runs a program, which costs a process each time: ask by grpc"
                elif action["port"] not in own:
                    yield f"{who}: its {kind} asks at {action['port']}, which is none of its ports"
            if container.program.startswith("tether-"):
                yield from tethers_probes(who, container, there)


def tethers_probes(who, container, there):
    """Those of Tether's programs: by gRPC, at the admin port, each for what it is."""
    admin = next((port["containerPort"] for port in container.ports if port.get("name") == ADMIN), None)
    if admin is None:
        yield f"{who}: no port `{ADMIN}`, at which probes are answered"
    for kind, probe in there.items():
        if "grpc" not in probe:
            yield f"{who}: its {kind} does not ask by grpc, and hears of an open port alone"
        elif probe["grpc"]["port"] != admin:
            yield f"{who}: its {kind} asks at {probe['grpc']['port']}, and not at the port `{ADMIN}`: where others speak TLS it fails"
        elif probe["grpc"].get("service") != ASKS[kind]:
            yield f"{who}: its {kind} must ask for `{ASKS[kind]}`: else it is killed while it drains or stands by, or sent calls before it serves"


def grace(cluster):
    """Longer than the hook, what the program takes itself, and a moment."""
    for workload in cluster.workloads:
        given = workload.pod.get("terminationGracePeriodSeconds", 30)
        for container in workload.containers:
            taken = before_stop(cluster, container) + after_stop(cluster, workload, container)
            if given <= taken:
                yield f"{workload}, {container.name}: takes {taken:g}s to end, and has {given}s (terminationGracePeriodSeconds)"


def before_stop(cluster, container):
    """How long its preStop hook may take."""
    hook = container.spec.get("lifecycle", {}).get("preStop", {})
    if "sleep" in hook:
        return hook["sleep"]["seconds"]
    if "exec" in hook:
        return int(container.env().get("DRAIN_SECONDS", 0)) + longest_stop(cluster)
    return 0


def longest_stop(cluster):
    """The longest time that a worker of any pool has to end."""
    templates = [one for file in cluster.pools() for one in file.get("template", {}).values()]
    return max((seconds(one.get("stop", {}).get("grace", STOP_GRACE)) for one in templates), default=0)


def after_stop(cluster, workload, container):
    """How long its program takes after SIGTERM."""
    if container.program == "tether-gateway":
        said = cluster.settings_read(workload, container).get("gateway", {})
        times = [said.get("drain", GATEWAY_DRAIN), said.get("drain_notice", NOTICE), said.get("session_drain", "0s")]
        return sum(map(seconds, times)) + LAST_WORDS
    return DRAINS.get(container.program, 0)


# From the order to start a worker until it is ready, as is allowed for here.
START = 10


def drain(cluster):
    """Each worker that is replaced takes its whole grace, and no more at a time than their pool's rollout allows."""
    for workload in cluster.workloads:
        for container in workload.containers:
            env = container.env()
            slots, given = int(env.get("TETHER_AGENT__RESOURCES__SLOT", 0)), int(env.get("DRAIN_SECONDS", 0))
            if not container.is_agent or not slots:
                continue
            for file in cluster.pools():
                for name, pool in file["pool"].items():
                    rollout = pool.get("rollout", {})
                    at_once = rollout.get("surge", 1) + rollout.get("max_unavailable", 0)
                    stop = file.get("template", {}).get(pool["template"], {}).get("stop", {})
                    each = seconds(stop.get("grace", STOP_GRACE)) + START
                    taken = -(-slots // at_once) * each
                    if given < taken:
                        yield f"{workload}: its {slots} workers of the pool {name} leave within {taken:g}s, and DRAIN_SECONDS is {given}"


def lease(cluster):
    """A node that cannot tell anybody that it ends loses its lease before it is killed, and its workers end in good order."""
    for workload in cluster.workloads:
        for container in workload.containers:
            if not container.is_agent:
                continue
            said = cluster.settings_read(workload, container).get("lease", {})
            given = workload.pod.get("terminationGracePeriodSeconds", 30)
            ttl = said.get("node_ttl", NODE_TTL)
            if seconds(ttl) >= given:
                yield f"{workload}: lease.node_ttl ({ttl}) is not shorter than its {given}s to end"
