"""How many there are, and how they are replaced."""

from ..cluster import selects


def selectors(cluster):
    """A selector that does not match the template is refused by the API server; one that matches another's takes its pods."""
    for workload in cluster.workloads:
        selector = workload.spec.get("selector", {})
        if not selector.get("matchLabels"):
            yield f"{workload} selects by no label"
        elif not selects(selector, workload.labels):
            yield f"{workload} does not select its own pods"
        for other in cluster.workloads:
            if other is not workload and selects(selector, other.labels):
                yield f"{workload} selects the pods of {other} too"


def strategy(cluster):
    for workload in cluster.workloads:
        rolling = workload.spec.get("strategy", {}).get("rollingUpdate", {})
        if workload.kind == "Deployment" and rolling:
            surge, missing = rolling.get("maxSurge", "25%"), rolling.get("maxUnavailable", "25%")
            if str(surge) in ("0", "0%") and str(missing) in ("0", "0%"):
                yield f"{workload} could replace nothing: maxSurge and maxUnavailable are both 0"


def budgets(cluster):
    """Each workload of several pods has one budget, which lets a machine be drained."""
    for workload in cluster.workloads:
        chosen = [one for one in cluster.of("PodDisruptionBudget") if selects(one["spec"].get("selector"), workload.labels)]
        names = [one["metadata"]["name"] for one in chosen]
        if workload.replicas > 1 and not chosen:
            yield f"{workload} has {workload.replicas} pods and no PodDisruptionBudget"
        if len(chosen) > 1:
            yield f"{workload} has several PodDisruptionBudgets, and then no pod is evicted: {', '.join(names)}"
    for budget in cluster.of("PodDisruptionBudget"):
        name, spec = budget["metadata"]["name"], budget["spec"]
        chosen = cluster.chosen(spec.get("selector"))
        if not chosen:
            yield f"PodDisruptionBudget {name} chooses nobody"
        for workload in chosen:
            if may_leave(spec, workload.replicas) < 1:
                yield f"PodDisruptionBudget {name} lets none of the {workload.replicas} pods of {workload} go: no machine can be drained"


def may_leave(budget, replicas):
    """How many of so many pods may be missing."""
    def count(value):
        share = str(value).endswith("%")
        # Kubernetes rounds both up.
        return -(-replicas * int(str(value)[:-1]) // 100) if share else int(value)

    if "maxUnavailable" in budget:
        return count(budget["maxUnavailable"])
    return replicas - count(budget.get("minAvailable", 1))


def quorum(cluster):
    """Members of etcd: an odd number, all of them known to each other, and a majority left by the budget."""
    for workload in cluster.workloads:
        arguments = [one for container in workload.containers for one in container.spec.get("args", [])]
        known = next((one.split("=", 1)[1] for one in arguments if one.startswith("--initial-cluster=")), None)
        if known is None:
            continue
        members = [one.split("=", 1)[0] for one in known.split(",")]
        if workload.replicas % 2 == 0:
            yield f"{workload} has {workload.replicas} members, which bear no more losses than one less"
        if members != [f"{workload.name}-{number}" for number in range(workload.replicas)]:
            yield f"{workload} has {workload.replicas} pods, and --initial-cluster names {', '.join(members)}"
        for budget in cluster.of("PodDisruptionBudget"):
            if not selects(budget["spec"].get("selector"), workload.labels):
                continue
            if may_leave(budget["spec"], workload.replicas) > (workload.replicas - 1) // 2:
                yield f"PodDisruptionBudget {budget['metadata']['name']} lets the majority of {workload} go"


def spread(cluster):
    """Pods of which one loss is to be borne are not all on one machine."""
    for workload in cluster.workloads:
        terms = workload.pod.get("topologySpreadConstraints", [])
        apart = workload.pod.get("affinity", {}).get("podAntiAffinity", {})
        terms = terms + apart.get("requiredDuringSchedulingIgnoredDuringExecution", [])
        over = [term for term in terms if term["topologyKey"] == "kubernetes.io/hostname"]
        if workload.replicas > 1 and not over:
            yield f"{workload} has {workload.replicas} pods, which may all be on one machine"
        for term in terms:
            if not selects(term.get("labelSelector"), workload.labels):
                yield f"{workload} is spread among pods that are not its own ({term['topologyKey']})"
