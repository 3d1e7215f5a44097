"""Policies cover every pod, name ports that are there, and open both ends of each way."""

from ..cluster import selects

EVERYBODY = (None, {})


def policies(cluster, direction):
    return [one for one in cluster.of("NetworkPolicy") if direction in one["spec"].get("policyTypes", [])]


def is_denial(policy):
    spec = policy["spec"]
    return spec.get("podSelector") in EVERYBODY and not spec.get("ingress") and not spec.get("egress")


def covered(cluster):
    for direction in ("Ingress", "Egress"):
        if not any(is_denial(one) for one in policies(cluster, direction)):
            yield f"no NetworkPolicy denies everybody all {direction}"
        for workload in cluster.workloads:
            own = [one for one in policies(cluster, direction) if one["spec"].get("podSelector") not in EVERYBODY]
            if not any(selects(one["spec"]["podSelector"], workload.labels) for one in own):
                yield f"{workload} has no NetworkPolicy of its own for {direction}"
    for policy in cluster.of("NetworkPolicy"):
        if policy["spec"].get("podSelector") not in EVERYBODY and not cluster.chosen(policy["spec"]["podSelector"]):
            yield f"NetworkPolicy {policy['metadata']['name']} chooses nobody"
        for rule in policy["spec"].get("ingress", []) + policy["spec"].get("egress", []):
            if not rule.get("from") and not rule.get("to") and not rule.get("ports"):
                yield f"NetworkPolicy {policy['metadata']['name']} has a rule that allows everything"


def ports(cluster):
    """Ports that are opened are there, and those of Services are opened to somebody."""
    for policy in policies(cluster, "Ingress"):
        chosen = cluster.chosen(policy["spec"].get("podSelector"))
        for rule in policy["spec"].get("ingress", []):
            for port in rule.get("ports", []):
                if "endPort" in port or not chosen:
                    continue
                for workload in chosen:
                    if workload.port(port["port"]) is None:
                        yield f"NetworkPolicy {policy['metadata']['name']} opens the port {port['port']}, which {workload} has not got"
    for service in cluster.of("Service"):
        for workload in cluster.chosen({"matchLabels": service["spec"].get("selector", {})}):
            for port in service["spec"]["ports"]:
                number = workload.port(port.get("targetPort", port["port"]))
                if number is not None and not any(opens(rule, workload, number) for rule in incoming(cluster, workload)):
                    yield f"Service {service['metadata']['name']}: no NetworkPolicy lets anybody to its port {port['port']}"


def incoming(cluster, workload):
    return [
        rule
        for policy in policies(cluster, "Ingress")
        if selects(policy["spec"].get("podSelector"), workload.labels)
        for rule in policy["spec"].get("ingress", [])
    ]


def outgoing(cluster, workload):
    return [
        rule
        for policy in policies(cluster, "Egress")
        if selects(policy["spec"].get("podSelector"), workload.labels)
        for rule in policy["spec"].get("egress", [])
    ]


def opens(rule, workload, number):
    """Whether a rule has the port of this number."""
    for port in rule.get("ports", []):
        first = workload.port(port["port"]) if isinstance(port["port"], str) else port["port"]
        if first is not None and first <= number <= port.get("endPort", first):
            return True
    return not rule.get("ports")


def names(peers, workload):
    """Whether any of the peers is this workload, of the same namespace."""
    return any("namespaceSelector" not in peer and selects(peer.get("podSelector"), workload.labels) for peer in peers)


# Who calls whom, at which port: of each program, all that it is configured to reach. Workers have theirs from a range.
WAYS = [
    ("tether-arbiter", "etcd", 2379),
    ("tether-discovery", "etcd", 2379),
    ("etcd", "etcd", 2380),
    ("tether-agent", "tether-arbiter", 7438),
    ("tether-agent", "tether-gateway", 7437),
    ("tether-arbiter", "tether-agent", 7439),
    ("tether-gateway", "tether-arbiter", 7438),
    ("tether-gateway", "tether-discovery", 7440),
    ("tether-gateway", "tether-agent", 7439),
    ("tether-gateway", "tether-agent", 40000),
]


def ways(cluster):
    """Each way that a program goes is open at both ends."""
    def running(program):
        return [one for one in cluster.workloads if any(container.program == program for container in one.containers)]

    for caller, called, port in WAYS:
        for here in running(caller):
            for there in running(called):
                way = f"{here.name} to {there.name}:{port}"
                out = [rule for rule in outgoing(cluster, here) if names(rule.get("to", []), there)]
                if not any(opens(rule, there, port) for rule in out if not_by_name(rule)):
                    yield f"{way} is not let out"
                into = [rule for rule in incoming(cluster, there) if names(rule.get("from", []), here)]
                if not any(opens(rule, there, port) for rule in into):
                    yield f"{way} is not let in"


def not_by_name(rule):
    """Names of ports are those of the pods that a policy is for, which of what goes out are not those at its other end."""
    return all(isinstance(port["port"], int) for port in rule.get("ports", []))
