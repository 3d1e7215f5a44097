"""What is Tether's own: agents, their hooks, their memory, their directories."""

import posixpath

from ..cluster import quantity


def sidecar(cluster):
    """An agent beside something else is a native sidecar, else its workers end whenever that does, or start too late."""
    for workload in cluster.workloads:
        agents = [container for container in workload.containers if container.is_agent]
        if len(agents) > 1:
            yield f"{workload} has {len(agents)} agents"
        for agent in agents:
            if not agent.is_sidecar and len(workload.pod["containers"]) > 1:
                yield f"{workload}: its agent must be an initContainer with `restartPolicy: Always`"
        for container in workload.pod.get("initContainers", []):
            program = (container.get("command") or [""])[0]
            if program == "tether-agent" and container.get("restartPolicy") != "Always":
                yield f"{workload}: its agent must have `restartPolicy: Always`, or nothing else of its pod ever starts"
        for agent in agents:
            if "--init" not in agent.spec["command"] + agent.spec.get("args", []):
                yield f"{workload}: its agent needs `--init`: nobody else ends what a killed shim leaves"
            if workload.pod.get("shareProcessNamespace"):
                yield f"{workload}: with shareProcessNamespace its agent is not the first process, which ends what is left"
            if workload.labels.get("tether/agent") != "true":
                yield f"{workload} has an agent and no label `tether/agent`, by which the policies know it"


def hooks(cluster):
    """A pod of a StatefulSet comes back by the same name, which stays drained until it is said otherwise."""
    for workload in cluster.workloads:
        for container in workload.containers:
            if not container.is_agent:
                continue
            lifecycle = container.spec.get("lifecycle", {})
            if "preStop" not in lifecycle:
                yield f"{workload}: its agent is not drained before its end: no preStop"
            elif workload.kind == "StatefulSet" and "postStart" not in lifecycle:
                yield f"{workload}: its agent is drained before its end and never opened again: no postStart"
            for needed in ("DRAIN_SECONDS", "TETHER_AGENT__NODE", "TETHER_GATEWAY"):
                if needed not in container.env():
                    yield f"{workload}: its agent's hooks need the variable {needed}"


def memory(cluster):
    """A worker that takes too much must fail before its container does, which would take all the others along."""
    ceilings = [
        limits["data"]
        for file in cluster.pools()
        for template in file.get("template", {}).values()
        if isinstance((limits := template.get("process", {}).get("resource_limits", {})).get("data"), int)
    ]
    for workload in cluster.workloads:
        for container in workload.containers:
            limit = container.spec.get("resources", {}).get("limits", {}).get("memory")
            if limit is None:
                yield f"{workload}, {container.name}: no limit on memory"
                continue
            if not container.is_agent:
                continue
            if container.spec["resources"].get("requests", {}).get("memory") != limit:
                yield f"{workload}: its agent asks for less memory than its limit: the machine may be short of what was promised"
            slots = int(container.env().get("TETHER_AGENT__RESOURCES__SLOT", 0))
            worker, agent = (workload.annotations.get(f"tether/{who}-memory") for who in ("worker", "agent"))
            if not slots or worker is None or agent is None:
                yield f"{workload}: nobody says how many workers it has and what they take: TETHER_AGENT__RESOURCES__SLOT, tether/worker-memory, tether/agent-memory"
                continue
            needed = slots * quantity(worker) + quantity(agent)
            if needed > quantity(limit):
                yield f"{workload}: {slots} workers of {worker} and its agent's {agent} are more than its limit of {limit}"
            if ceilings and max(ceilings) > quantity(worker):
                yield f"{workload}: a pool lets a worker take {max(ceilings)} bytes, and tether/worker-memory is {worker}"
    for file in cluster.pools():
        for name, template in file.get("template", {}).items():
            if "memory" in template.get("limits", {}):
                yield f"template {name}: `limits.memory` needs a cgroup, which the restricted profile does not give"
            data = template.get("process", {}).get("resource_limits", {}).get("data")
            if data is None:
                yield f"template {name}: nothing limits the memory of a worker (process.resource_limits.data)"


def runtime_directory(cluster):
    """Kubernetes lets everybody write into an emptyDir, and Tether's sockets are refused there: it makes one of its own below."""
    for workload in cluster.workloads:
        volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
        for container in workload.containers:
            path = container.env().get("TETHER_RUNTIME_DIR")
            if not container.program.startswith("tether-"):
                continue
            if path is None:
                yield f"{workload}, {container.name}: no TETHER_RUNTIME_DIR, and the rest cannot be written"
                continue
            mounts = container.spec.get("volumeMounts", [])
            over = [mount for mount in mounts if posixpath.dirname(path) == mount["mountPath"]]
            if not over or "emptyDir" not in volumes.get(over[0]["name"], {}):
                yield f"{workload}, {container.name}: TETHER_RUNTIME_DIR ({path}) is no directory just below an emptyDir"
