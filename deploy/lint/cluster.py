"""The objects of a cluster as the rules look at them."""

import re
import tomllib
from dataclasses import dataclass
from functools import cached_property

WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")

# What a variable has that is told to a pod: any value that may stand there.
TOLD = {
    "metadata.name": "pod-0",
    "metadata.namespace": "tether",
    "metadata.uid": "00000000-0000-4000-8000-000000000000",
    "status.podIP": "10.0.0.1",
    "status.hostIP": "10.0.0.2",
    "spec.nodeName": "machine-1",
}

_UNITS = {"": 1, "m": 0.001, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity(text):
    """A quantity of Kubernetes as a number."""
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text)).groups()
    return float(number) * _UNITS[unit]


def seconds(text):
    """A duration of Tether's configuration in seconds; of a compound one, the sum."""
    units = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "day": 86400, "days": 86400}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([0-9.]+)\s*([a-z]+)", text))


def selects(selector, labels):
    """Whether a selector chooses what has these labels; one that says nothing chooses all."""
    selector = selector or {}
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for wanted in selector.get("matchExpressions", []):
        there, value = wanted["key"] in labels, labels.get(wanted["key"])
        holds = {
            "In": there and value in wanted.get("values", []),
            "NotIn": value not in wanted.get("values", []),
            "Exists": there,
            "DoesNotExist": not there,
        }[wanted["operator"]]
        if not holds:
            return False
    return True


@dataclass(frozen=True)
class Container:
    """A container that runs for as long as its pod does."""

    spec: dict
    is_sidecar: bool

    @property
    def name(self):
        return self.spec["name"]

    @property
    def ports(self):
        return self.spec.get("ports", [])

    @property
    def program(self):
        """The first word of its command, or nothing where its image says that."""
        return (self.spec.get("command") or [""])[0]

    @property
    def is_agent(self):
        return self.program == "tether-agent"

    def probes(self):
        """Kind and content of each probe."""
        kinds = ("startupProbe", "readinessProbe", "livenessProbe")
        return [(kind, self.spec[kind]) for kind in kinds if kind in self.spec]

    def env(self, told=None):
        """Its environment, with `$(NAME)` filled in."""
        told, env = told or TOLD, {}
        for variable in self.spec.get("env", []):
            path = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            value = variable.get("value", "") if path is None else told.get(path, "told")
            env[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda found: env.get(found[1], found[0]), str(value))
        return env


class Workload:
    """Something that makes pods of one kind."""

    def __init__(self, manifest):
        self.manifest = manifest
        self.kind, self.name = manifest["kind"], manifest["metadata"]["name"]
        self.spec = manifest["spec"]
        self.template = self.spec["template"]
        self.pod = self.template["spec"]
        self.labels = self.template.get("metadata", {}).get("labels", {})
        self.annotations = self.template.get("metadata", {}).get("annotations", {})
        self.replicas = self.spec.get("replicas", 1)

    def __str__(self):
        return f"{self.kind} {self.name}"

    @cached_property
    def containers(self):
        """Those that run for as long as the pod does, native sidecars among them."""
        sidecars = [one for one in self.pod.get("initContainers", []) if one.get("restartPolicy") == "Always"]
        return [Container(one, True) for one in sidecars] + [Container(one, False) for one in self.pod["containers"]]

    @property
    def all_containers(self):
        """With those that end before the others start."""
        return self.pod.get("initContainers", []) + self.pod["containers"]

    def ports(self):
        return [port for container in self.containers for port in container.ports]

    def port(self, wanted):
        """The number of a port that is named or numbered, where a container has it."""
        for port in self.ports():
            if wanted in (port.get("name"), port["containerPort"]):
                return port["containerPort"]
        return None


class Cluster:
    """All objects of one rendering."""

    def __init__(self, objects):
        self.objects = [one for one in objects if one]
        self.workloads = [Workload(one) for one in self.objects if one["kind"] in WORKLOADS]

    def of(self, kind):
        return [one for one in self.objects if one["kind"] == kind]

    def named(self, kind, name):
        return next((one for one in self.of(kind) if one["metadata"]["name"] == name), None)

    def chosen(self, selector):
        """The workloads whose pods a selector chooses."""
        return [one for one in self.workloads if selects(selector, one.labels)]

    def mounted(self, workload, path):
        """The file of a ConfigMap that containers of a workload find at `path`."""
        for container in workload.containers:
            for mount in container.spec.get("volumeMounts", []):
                folder, _, name = path.rpartition("/")
                if mount["mountPath"] != folder:
                    continue
                volume = next((one for one in workload.pod.get("volumes", []) if one["name"] == mount["name"]), {})
                config = self.named("ConfigMap", volume.get("configMap", {}).get("name"))
                if config and name in config.get("data", {}):
                    return config["data"][name]
        return None

    def settings(self, workload, container):
        """The text of the configuration that a service of Tether is given, or nothing where it is given none."""
        path = container.env().get("TETHER_CONFIG")
        return None if path is None else self.mounted(workload, path)

    def settings_read(self, workload, container):
        return tomllib.loads(self.settings(workload, container) or "")

    def pools(self):
        """Every file of pools: a ConfigMap's file in TOML with a table `pool`."""
        files = [text for one in self.of("ConfigMap") for name, text in one.get("data", {}).items() if name.endswith(".toml")]
        return [read for read in map(tomllib.loads, files) if "pool" in read]
