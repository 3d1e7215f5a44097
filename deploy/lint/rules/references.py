"""What is named is there."""

import re

from ..cluster import TOLD, selects

NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def references(cluster):
    """ConfigMaps, accounts and volumes. Secrets are made by others, and so are the account `default` and claims."""
    for workload in cluster.workloads:
        account = workload.pod.get("serviceAccountName")
        if account and not cluster.named("ServiceAccount", account):
            yield f"{workload} runs as the service account {account}, which is not there"
        volumes = {volume["name"] for volume in workload.pod.get("volumes", [])}
        claims = {claim["metadata"]["name"] for claim in workload.spec.get("volumeClaimTemplates", [])}
        mounted = {mount["name"] for one in workload.all_containers for mount in one.get("volumeMounts", [])}
        for name in sorted(mounted - volumes - claims):
            yield f"{workload} mounts the volume {name}, which is not there"
        for name in sorted((volumes | claims) - mounted):
            yield f"{workload} has the volume {name}, which nobody mounts"
        for volume in workload.pod.get("volumes", []):
            name = volume.get("configMap", {}).get("name")
            if name and not cluster.named("ConfigMap", name):
                yield f"{workload} wants the ConfigMap {name}, which is not there"
        for container in workload.containers:
            path = container.env().get("TETHER_CONFIG")
            if path and cluster.settings(workload, container) is None:
                yield f"{workload}, {container.name}: no ConfigMap gives it `{path}`"
            for word in hook_commands(container):
                if word.startswith("/") and cluster.mounted(workload, word) is None:
                    yield f"{workload}, {container.name}: no ConfigMap gives it `{word}`"


def hook_commands(container):
    """The words of the commands of its hooks."""
    hooks = container.spec.get("lifecycle", {}).values()
    return [word for hook in hooks for word in hook.get("exec", {}).get("command", [])]


def ports(cluster):
    for workload in cluster.workloads:
        seen_names, seen_numbers = set(), set()
        for port in workload.ports():
            name, number = port.get("name"), (port["containerPort"], port.get("protocol", "TCP"))
            if name is None:
                yield f"{workload}: the port {number[0]} has no name, by which others could find it"
                continue
            if len(name) > 15 or not NAME.fullmatch(name) or "--" in name or not re.search("[a-z]", name):
                yield f"{workload}: `{name}` is no name of a port: 15 letters at most, small ones, digits and `-`"
            if name in seen_names:
                yield f"{workload}: two ports are called {name}"
            if number in seen_numbers:
                yield f"{workload}: two containers listen at {number[0]}, and have one address"
            seen_names.add(name)
            seen_numbers.add(number)


def services(cluster):
    for service in cluster.of("Service"):
        name, spec = service["metadata"]["name"], service["spec"]
        chosen = cluster.chosen({"matchLabels": spec["selector"]}) if spec.get("selector") else []
        if len(chosen) != 1:
            yield f"Service {name} chooses the pods of {len(chosen)} workloads"
        for workload in chosen:
            for port in spec["ports"]:
                if workload.port(port.get("targetPort", port["port"])) is None:
                    yield f"Service {name}: {workload} has no port {port.get('targetPort', port['port'])}"
    for workload in cluster.workloads:
        if workload.kind != "StatefulSet":
            continue
        service = cluster.named("Service", workload.spec.get("serviceName"))
        if service is None:
            yield f"{workload} has its names from the Service {workload.spec.get('serviceName')}, which is not there"
        elif service["spec"].get("clusterIP") != "None":
            yield f"{workload}: its Service {workload.spec['serviceName']} has to be headless, or its pods have no names"
        elif not selects({"matchLabels": service["spec"].get("selector", {})}, workload.labels):
            yield f"{workload}: its Service {workload.spec['serviceName']} does not choose its pods"


# `name:port`, `pod.service:port`, wherever it stands in a text.
ADDRESS = re.compile(r"(?<![\w.$)-])((?:[a-z][a-z0-9-]*\.)?[a-z][a-z0-9-]*):([0-9]{2,5})\b")


def addresses(cluster):
    """Each address in a configuration, an environment or an argument leads to a Service that has that port."""
    for workload in cluster.workloads:
        for container in workload.containers:
            env = container.env({**TOLD, "metadata.name": f"{workload.name}-0"})
            texts = [*env.values(), *container.spec.get("args", [])]
            texts = [text.replace("$(POD_NAME)", f"{workload.name}-0") for text in texts]
            texts += [without_comments(cluster.settings(workload, container) or "")]
            for host, port in sorted({found for text in texts for found in ADDRESS.findall(text)}):
                wrong = leads_nowhere(cluster, host, int(port))
                if wrong:
                    yield f"{workload}, {container.name}: `{host}:{port}` leads nowhere: {wrong}"


def without_comments(text):
    return re.sub(r"(?m)^\s*#.*$", "", text)


def leads_nowhere(cluster, host, port):
    """Why, or nothing."""
    pod, _, name = host.rpartition(".")
    service = cluster.named("Service", name)
    if service is None:
        return f"there is no Service {name}"
    if pod:
        sets = [one for one in cluster.workloads if one.spec.get("serviceName") == name]
        if pod not in {f"{one.name}-{number}" for one in sets for number in range(one.replicas)}:
            return f"there is no pod {pod}"
        # Names of pods lead to the pods themselves, whatever the Service says of ports.
        return None if any(one.port(port) for one in sets) else f"no container of {pod} has that port"
    if port not in [one["port"] for one in service["spec"]["ports"]]:
        return f"the Service {name} has no such port"
    return None
