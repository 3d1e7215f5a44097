"""The `restricted` profile, and rights at the API server."""

HOST = ("hostNetwork", "hostPID", "hostIPC")
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def restricted(cluster):
    """What the API server would refuse in a namespace that is `restricted`, and a read-only root besides."""
    for namespace in cluster.of("Namespace"):
        if namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"Namespace {namespace['metadata']['name']} does not enforce the restricted profile"
    for workload in cluster.workloads:
        pod, of_pod = workload.pod, workload.pod.get("securityContext", {})
        for key in HOST:
            if pod.get(key):
                yield f"{workload} has {key}"
        for volume in pod.get("volumes", []):
            if not VOLUMES & set(volume):
                yield f"{workload}: the volume {volume['name']} is of a kind that is not allowed"
        for container in workload.all_containers:
            who, own = f"{workload}, {container['name']}", container.get("securityContext", {})
            said = {**of_pod, **own}
            if said.get("runAsNonRoot") is not True:
                yield f"{who}: runAsNonRoot is not true"
            if said.get("runAsUser") == 0:
                yield f"{who}: runs as root"
            if said.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
                yield f"{who}: seccompProfile is not RuntimeDefault"
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{who}: allowPrivilegeEscalation is not false"
            if own.get("privileged"):
                yield f"{who}: privileged"
            if "ALL" not in own.get("capabilities", {}).get("drop", []):
                yield f"{who}: capabilities are not dropped"
            if set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
                yield f"{who}: capabilities are added"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{who}: readOnlyRootFilesystem is not true"
            if any("hostPort" in port for port in container.get("ports", [])):
                yield f"{who}: hostPort"


def tokens(cluster):
    """A token for the API server where a role is bound, and nowhere else; and no variables of other Services."""
    bound = {
        subject["name"]
        for binding in cluster.of("RoleBinding") + cluster.of("ClusterRoleBinding")
        for subject in binding.get("subjects", [])
    }
    for workload in cluster.workloads:
        given = workload.pod.get("automountServiceAccountToken") is not False
        needed = workload.pod.get("serviceAccountName", "default") in bound
        if given and not needed:
            yield f"{workload} is given a token and has no use for it: automountServiceAccountToken: false"
        if needed and not given:
            yield f"{workload} has a role and no token"
        if workload.pod.get("enableServiceLinks") is not False:
            yield f"{workload}: enableServiceLinks is not false: variables such as TETHER_GATEWAY_PORT look like Tether's own"


def roles(cluster):
    """Reading, of what is named, in this namespace."""
    for kind in ("ClusterRole", "ClusterRoleBinding"):
        for one in cluster.of(kind):
            yield f"{kind} {one['metadata']['name']}: nothing of Tether's needs rights beyond its namespace"
    for role in cluster.of("Role"):
        for rule in role.get("rules", []):
            said = rule.get("apiGroups", []) + rule.get("resources", []) + rule.get("verbs", [])
            if "*" in said:
                yield f"Role {role['metadata']['name']} has a `*`"
            if set(rule.get("verbs", [])) - {"get", "list", "watch", "*"}:
                yield f"Role {role['metadata']['name']} may change something"
            if "secrets" in rule.get("resources", []):
                yield f"Role {role['metadata']['name']} reads secrets"


def images(cluster):
    for workload in cluster.workloads:
        for container in workload.all_containers:
            name = container["image"].rpartition("/")[2]
            if "@sha256:" not in name and (":" not in name or name.endswith(":latest")):
                yield f"{workload}, {container['name']}: the image {container['image']} may be another one tomorrow: give a version"
