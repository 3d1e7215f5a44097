"""The base is clean, and each rule finds the faults that are planted for it."""

import copy
import re
import shutil
import tempfile
import unittest
from pathlib import Path

from lint import checks, kubernetes, render, rules
from lint.cluster import Cluster, quantity, seconds, selects

BASE = render.plainly(kubernetes.BASE)


class Planting:
    """The objects of the base, to plant a fault in."""

    def __init__(self):
        self.objects = copy.deepcopy(BASE)

    def find(self, kind, name):
        return next(one for one in self.objects if (one["kind"], one["metadata"]["name"]) == (kind, name))

    def of(self, kind, name):
        return self.find(kind, name)["spec"]

    def pod(self, kind, name):
        return self.of(kind, name)["template"]["spec"]

    def container(self, kind, name):
        return self.pod(kind, name)["containers"][0]

    def beam(self):
        return self.pod("StatefulSet", "beam")

    def agent(self):
        return self.container("StatefulSet", "workers-digits")

    def variable(self, container, name):
        return next(one for one in container["env"] if one["name"] == name)

    def without(self, kind, name):
        self.objects.remove(self.find(kind, name))

    def policy(self, name):
        return self.of("NetworkPolicy", name)

    def file(self, name, old, new):
        """Another text in a file of a ConfigMap."""
        for one in self.objects:
            text = one.get("data", {}).get(name)
            if text is not None:
                assert re.search(old, text), f"{name} has no {old}"
                one["data"][name] = re.sub(old, new, text)


ARBITER, GATEWAY, DISCOVERY = ("StatefulSet", "tether-arbiter"), ("Deployment", "tether-gateway"), ("Deployment", "tether-discovery")
ETCD, BEAM, WORKERS = ("StatefulSet", "tether-etcd"), ("StatefulSet", "beam"), ("StatefulSet", "workers-digits")


def role(plant, **rule):
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"], **rule}
    plant.objects.append({"kind": "Role", "metadata": {"name": "r"}, "rules": [rule]})


# The rule, a part of what it says, and the fault.
FAULTS = [
    ("selectors", "does not select its own pods", lambda p: p.of(*GATEWAY)["selector"]["matchLabels"].update({"app.kubernetes.io/component": "gatewy"})),
    ("selectors", "selects the pods of", lambda p: p.of(*GATEWAY)["selector"].update(matchLabels={"app.kubernetes.io/name": "tether"})),
    ("selectors", "selects by no label", lambda p: p.of(*GATEWAY).update(selector={})),
    ("rollout", "both 0", lambda p: p.of(*GATEWAY)["strategy"]["rollingUpdate"].update(maxSurge=0)),
    ("rollout", "both 0", lambda p: p.of(*GATEWAY)["strategy"].update(rollingUpdate={"maxSurge": "0%", "maxUnavailable": "0%"})),
    ("budgets", "lets none of the 2 pods", lambda p: p.find("PodDisruptionBudget", "beam").update(spec={"minAvailable": 2, "selector": {"matchLabels": {"app.kubernetes.io/name": "beam"}}})),
    ("budgets", "lets none of the 3 pods", lambda p: p.of("PodDisruptionBudget", "tether-arbiter").update(maxUnavailable=0)),
    ("budgets", "no PodDisruptionBudget", lambda p: p.without("PodDisruptionBudget", "tether-gateway")),
    ("budgets", "chooses nobody", lambda p: p.of("PodDisruptionBudget", "beam").update(selector={"matchLabels": {"app": "baem"}})),
    ("budgets", "several PodDisruptionBudgets", lambda p: p.of("PodDisruptionBudget", "beam").update(selector={})),
    ("quorum", "names tether-etcd-0, tether-etcd-1, tether-etcd-2", lambda p: p.of(*ETCD).update(replicas=5)),
    ("quorum", "bear no more losses", lambda p: p.of(*ETCD).update(replicas=4)),
    ("quorum", "the majority of", lambda p: p.of("PodDisruptionBudget", "tether-etcd").update(maxUnavailable=2)),
    ("spread", "on one machine", lambda p: p.pod(*GATEWAY).pop("topologySpreadConstraints")),
    ("spread", "not its own", lambda p: p.pod(*GATEWAY)["topologySpreadConstraints"][0].update(labelSelector={"matchLabels": {"app": "x"}})),
    ("references", "the service account teher", lambda p: p.pod(*GATEWAY).update(serviceAccountName="teher")),
    ("references", "mounts the volume rnu", lambda p: p.container(*GATEWAY)["volumeMounts"][1].update(name="rnu")),
    ("references", "which nobody mounts", lambda p: p.container(*GATEWAY)["volumeMounts"].pop()),
    ("references", "the ConfigMap other", lambda p: p.pod(*GATEWAY)["volumes"][0]["configMap"].update(name="other")),
    ("references", "gives it `/etc/tether/gateway.toml`", lambda p: p.variable(p.container(*GATEWAY), "TETHER_CONFIG").update(value="/etc/tether/gateway.toml")),
    ("references", "gives it `/etc/tether-node/darin.sh`", lambda p: p.agent()["lifecycle"]["preStop"]["exec"].update(command=["sh", "/etc/tether-node/darin.sh"])),
    ("ports", "15 letters at most", lambda p: p.container(*GATEWAY)["ports"][0].update(name="grpc-of-a-gateway")),
    ("ports", "has no name", lambda p: p.container(*GATEWAY)["ports"][0].pop("name")),
    ("ports", "two ports are called grpc", lambda p: p.beam()["containers"][0]["ports"][0].update(name="grpc")),
    ("ports", "have one address", lambda p: p.beam()["containers"][0]["ports"][0].update(containerPort=9464)),
    ("services", "has no port gprc", lambda p: p.of("Service", "tether-gateway")["ports"][0].update(targetPort="gprc")),
    ("services", "chooses the pods of 0", lambda p: p.of("Service", "tether-gateway").update(selector={"app": "x"})),
    ("services", "chooses the pods of 5", lambda p: p.of("Service", "tether-gateway").update(selector={"app.kubernetes.io/name": "tether"})),
    ("services", "headless", lambda p: p.of("Service", "tether-arbiter").pop("clusterIP")),
    ("services", "which is not there", lambda p: p.of(*ARBITER).update(serviceName="arbiter")),
    ("services", "does not choose its pods", lambda p: p.of(*ARBITER).update(serviceName="beam")),
    ("addresses", "there is no Service tether-gatewy", lambda p: p.variable(p.agent(), "TETHER_GATEWAY").update(value="tether-gatewy:7437")),
    ("addresses", "has no such port", lambda p: p.variable(p.agent(), "TETHER_GATEWAY").update(value="tether-gateway:7438")),
    ("addresses", "there is no pod tether-arbiter-2", lambda p: p.of(*ARBITER).update(replicas=2)),
    ("addresses", "`tether-etcd-0.tether-etcd:2378`", lambda p: p.file("tether.toml", "etcd-0.tether-etcd:2379", "etcd-0.tether-etcd:2378")),
    ("probes", "no startupProbe", lambda p: p.container(*GATEWAY).pop("startupProbe")),
    ("probes", "no readinessProbe", lambda p: p.container(*GATEWAY).pop("readinessProbe")),
    ("probes", "no livenessProbe", lambda p: p.beam()["initContainers"][0].pop("livenessProbe")),
    ("probes", "asks at 7348", lambda p: p.container(*GATEWAY)["readinessProbe"]["grpc"].update(port=7348)),
    ("probes", "runs a program", lambda p: p.container(*GATEWAY).update(livenessProbe={"exec": {"command": ["true"]}})),
    ("probes", "its livenessProbe must ask for `liveness`", lambda p: p.agent()["livenessProbe"]["grpc"].pop("service")),
    ("probes", "its readinessProbe must ask for `readiness`", lambda p: p.container(*ARBITER)["readinessProbe"]["grpc"].update(service="liveness")),
    ("probes", "where others speak TLS it fails", lambda p: p.container(*GATEWAY)["readinessProbe"]["grpc"].update(port=7437)),
    ("probes", "does not ask by grpc", lambda p: p.container(*GATEWAY).update(livenessProbe={"tcpSocket": {"port": "grpc"}})),
    ("probes", "no port `admin`", lambda p: p.container(*GATEWAY)["ports"].pop()),
    ("grace", "takes 27.1s to end, and has 27s", lambda p: p.pod(*GATEWAY).update(terminationGracePeriodSeconds=27)),
    ("grace", "has 45s", lambda p: p.file("tether.toml", 'drain = "20s"', 'drain = "20s"\nsession_drain = "6h"')),
    ("grace", "has 300s", lambda p: p.variable(p.agent(), "DRAIN_SECONDS").update(value="280")),
    ("grace", "has 30s", lambda p: p.pod(*WORKERS).pop("terminationGracePeriodSeconds")),
    ("drain", "leave within 120s", lambda p: p.file("digits.toml", "surge = 2", "surge = 1") or p.variable(p.agent(), "DRAIN_SECONDS").update(value="100")),
    ("lease", "lease.node_ttl (300s)", lambda p: p.file("tether.toml", 'node_ttl = "20s"', 'node_ttl = "300s"')),
    ("lease", "lease.node_ttl (20s) is not shorter than its 20s", lambda p: p.file("tether.toml", 'node_ttl = "20s"\n', "") or p.pod(*WORKERS).update(terminationGracePeriodSeconds=20)),
    ("sidecar", "nothing else of its pod ever starts", lambda p: p.beam()["initContainers"][0].pop("restartPolicy")),
    ("sidecar", "must be an initContainer", lambda p: p.beam()["containers"].append({**p.beam()["initContainers"].pop(), "restartPolicy": None})),
    ("sidecar", "has 2 agents", lambda p: p.pod(*WORKERS)["containers"].append(p.beam()["initContainers"][0])),
    ("sidecar", "needs `--init`", lambda p: p.agent().update(command=["tether-agent"])),
    ("sidecar", "shareProcessNamespace", lambda p: p.beam().update(shareProcessNamespace=True)),
    ("sidecar", "no label `tether/agent`", lambda p: p.of(*WORKERS)["template"]["metadata"]["labels"].pop("tether/agent")),
    ("hooks", "not drained", lambda p: p.agent()["lifecycle"].pop("preStop")),
    ("hooks", "never opened again", lambda p: p.agent()["lifecycle"].pop("postStart")),
    ("hooks", "need the variable DRAIN_SECONDS", lambda p: p.agent()["env"].remove(p.variable(p.agent(), "DRAIN_SECONDS"))),
    ("memory", "4 workers of 1536Mi", lambda p: p.agent()["resources"].update(requests={"memory": "6Gi"}, limits={"memory": "6Gi"})),
    ("memory", "no limit on memory", lambda p: p.container(*GATEWAY)["resources"].pop("limits")),
    ("memory", "asks for less memory", lambda p: p.agent()["resources"]["requests"].update(memory="1Gi")),
    ("memory", "nobody says how many workers", lambda p: p.of(*WORKERS)["template"]["metadata"].pop("annotations")),
    ("memory", "a pool lets a worker take", lambda p: p.file("digits.toml", "1_610_612_736", "3_610_612_736")),
    ("memory", "nothing limits the memory", lambda p: p.file("digits.toml", "data = 1_610_612_736", "nofile = 1024")),
    ("memory", "needs a cgroup", lambda p: p.file("digits.toml", r"\[template.digits.recycle\]", "[template.digits.limits]\nmemory = '1GiB'\n[template.digits.recycle]")),
    ("runtime directory", "no directory just below an emptyDir", lambda p: p.variable(p.agent(), "TETHER_RUNTIME_DIR").update(value="/run/tether")),
    ("runtime directory", "no TETHER_RUNTIME_DIR", lambda p: p.agent()["env"].remove(p.variable(p.agent(), "TETHER_RUNTIME_DIR"))),
    ("restricted", "does not enforce", lambda p: p.find("Namespace", "tether")["metadata"].pop("labels")),
    ("restricted", "runAsNonRoot", lambda p: p.pod(*GATEWAY)["securityContext"].pop("runAsNonRoot")),
    ("restricted", "runs as root", lambda p: p.agent()["securityContext"].update(runAsUser=0)),
    ("restricted", "seccompProfile", lambda p: p.pod(*GATEWAY)["securityContext"].pop("seccompProfile")),
    ("restricted", "allowPrivilegeEscalation", lambda p: p.agent()["securityContext"].pop("allowPrivilegeEscalation")),
    ("restricted", "privileged", lambda p: p.agent()["securityContext"].update(privileged=True)),
    ("restricted", "capabilities are not dropped", lambda p: p.agent()["securityContext"].pop("capabilities")),
    ("restricted", "capabilities are added", lambda p: p.agent()["securityContext"]["capabilities"].update(add=["SYS_ADMIN"])),
    ("restricted", "readOnlyRootFilesystem", lambda p: p.agent()["securityContext"].update(readOnlyRootFilesystem=False)),
    ("restricted", "hostPort", lambda p: p.agent()["ports"][0].update(hostPort=7439)),
    ("restricted", "hostPID", lambda p: p.beam().update(hostPID=True)),
    ("restricted", "of a kind that is not allowed", lambda p: p.pod(*GATEWAY)["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
    ("tokens", "is given a token", lambda p: p.pod(*GATEWAY).pop("automountServiceAccountToken")),
    ("tokens", "has a role and no token", lambda p: p.objects.append({"kind": "RoleBinding", "metadata": {"name": "b"}, "subjects": [{"name": "tether"}]})),
    ("tokens", "enableServiceLinks", lambda p: p.pod(*GATEWAY).pop("enableServiceLinks")),
    ("roles", "has a `*`", lambda p: role(p, resources=["*"])),
    ("roles", "may change something", lambda p: role(p, verbs=["get", "delete"])),
    ("roles", "reads secrets", lambda p: role(p, resources=["secrets"])),
    ("roles", "beyond its namespace", lambda p: p.objects.append({"kind": "ClusterRole", "metadata": {"name": "r"}})),
    ("images", "may be another one tomorrow", lambda p: p.container(*GATEWAY).update(image="registry.example:5000/tether")),
    ("images", "may be another one tomorrow", lambda p: p.container(*GATEWAY).update(image="tether:latest")),
    ("network", "denies everybody all Ingress", lambda p: p.without("NetworkPolicy", "default-deny")),
    ("network", "denies everybody all Egress", lambda p: p.policy("default-deny").update(policyTypes=["Ingress"])),
    ("network", "no NetworkPolicy of its own", lambda p: p.without("NetworkPolicy", "gateway")),
    ("network", "chooses nobody", lambda p: p.policy("gateway")["podSelector"]["matchLabels"].update({"app.kubernetes.io/component": "gatewy"})),
    ("network", "allows everything", lambda p: p.policy("gateway")["egress"].append({})),
    ("network ports", "opens the port gprc", lambda p: p.policy("gateway")["ingress"][0].update(ports=[{"port": "gprc"}])),
    ("network ports", "no NetworkPolicy lets anybody to its port 4000", lambda p: p.policy("beam").pop("ingress")),
    ("network ways", "tether-gateway to tether-discovery:7440 is not let in", lambda p: p.policy("discovery").pop("ingress")),
    ("network ways", "tether-gateway to beam:40000 is not let out", lambda p: p.policy("gateway")["egress"][2]["ports"].pop()),
    ("network ways", "tether-arbiter to tether-etcd:2379 is not let out", lambda p: p.policy("arbiter")["egress"][0].update(ports=[{"port": "client"}])),
    ("variables", "nobody reads the variable TETHER_RUNDIR", lambda p: p.agent()["env"].append({"name": "TETHER_RUNDIR", "value": "/x"})),
    ("variables", "wants a variable that is not set", lambda p: p.agent()["env"].remove(p.variable(p.agent(), "POD_IP"))),
]


class Rules(unittest.TestCase):
    def test_the_base_breaks_none(self):
        self.assertEqual(rules.broken(Cluster(copy.deepcopy(BASE))), [])

    def test_each_planted_fault_is_found_by_its_rule(self):
        for rule, said, fault in FAULTS:
            with self.subTest(rule=rule, said=said):
                plant = Planting()
                fault(plant)

                found = [one for one in rules.broken(Cluster(plant.objects)) if one.startswith(f"{rule}: ")]

                self.assertTrue(any(said in one for one in found), found)

    def test_every_rule_has_a_fault_planted(self):
        self.assertEqual({name for name, _ in rules.ALL}, {rule for rule, _, _ in FAULTS})


# The overlay, the rule, a part of what it says, the file below deploy/kubernetes, and what is written there instead.
OVERLAY_FAULTS = [
    ("single", "budgets", "no PodDisruptionBudget", "overlays/single/kustomization.yaml", "{name: beam, count: 1}", "{name: beam, count: 2}"),
    ("production", "spread", "not its own", "overlays/production/kustomization.yaml", "component: etcd}", "component: etdc}"),
    ("production", "network ports", "no NetworkPolicy lets anybody to its port 7443", "components/tls/kustomization.yaml", "ports: [{port: grpcs}]", "ports: [{port: grpc}]"),
    ("production", "tokens", "has a role and no token", "components/endpointslices/kustomization.yaml", "value: true}", "value: false}"),
]


@unittest.skipUnless(render.has_kubectl(), "there is no kubectl, and overlays are not rendered")
class Overlays(unittest.TestCase):
    def test_none_breaks_a_rule(self):
        for folder in kubernetes.folders()[1:]:
            with self.subTest(overlay=folder.name):
                self.assertEqual(rules.broken(Cluster(render.with_kubectl(folder))), [])

    def test_each_fault_planted_in_their_files_is_found(self):
        for overlay, rule, said, file, old, new in OVERLAY_FAULTS:
            with self.subTest(overlay=overlay, rule=rule), tempfile.TemporaryDirectory() as folder:
                copied = Path(shutil.copytree(kubernetes.HERE, Path(folder) / "kubernetes"))
                text = (copied / file).read_text()
                self.assertEqual(text.count(old), 1, f"{file}: {old}")
                (copied / file).write_text(text.replace(old, new))

                found = rules.broken(Cluster(render.with_kubectl(copied / "overlays" / overlay)))

                self.assertTrue(any(one.startswith(f"{rule}: ") and said in one for one in found), found)

    def test_a_fault_is_planted_in_each(self):
        self.assertEqual({folder.name for folder in kubernetes.folders()[1:]}, {overlay for overlay, *_ in OVERLAY_FAULTS})


class Schemas(unittest.TestCase):
    def test_a_field_that_there_is_not_is_refused_by_each_version(self):
        plant = Planting()
        plant.agent()["livenessProb"] = {}

        found = list(checks.schemas(Cluster([plant.find(*WORKERS)])))

        self.assertEqual(len(found), checks.VERSIONS, found)
        self.assertTrue(all("livenessProb" in one for one in found), found)

    def test_a_kind_without_a_schema_is_told(self):
        found = list(checks.schemas(Cluster([{"apiVersion": "v1", "kind": "Pot", "metadata": {"name": "x"}}])))

        self.assertEqual(len(found), checks.VERSIONS, found)


class Reading(unittest.TestCase):
    @unittest.skipUnless(render.has_kubectl(), "there is no kubectl")
    def test_the_base_read_directly_is_what_kubectl_makes_of_it(self):
        made = render.with_kubectl(kubernetes.BASE)

        def plain(objects):
            """Without what the direct reading leaves out: the namespace, and the hashes of ConfigMaps."""
            text = {one["kind"] + one["metadata"]["name"]: one for one in map(unhashed, objects)}
            return {name: {**one, "metadata": {**one["metadata"], "namespace": None}} for name, one in text.items()}

        self.assertEqual(plain(made), plain(copy.deepcopy(BASE)))

    def test_quantities_durations_and_selectors_are_read(self):
        self.assertEqual([quantity("1Gi"), quantity("500m"), quantity(2)], [2**30, 0.5, 2])
        self.assertEqual([seconds("1m 30s"), seconds("100ms"), seconds("6h")], [90, 0.1, 21600])
        term = {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["x"]}, {"key": "b", "operator": "Exists"}]}
        self.assertTrue(selects(term, {"b": ""}))
        self.assertFalse(selects(term, {"a": "x", "b": ""}))


def unhashed(one):
    """With ConfigMaps called as they were before kustomize has added the hash of what is in them."""
    def names(value):
        if isinstance(value, dict):
            return {key: names(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [names(inner) for inner in value]
        return re.sub(r"^(tether|tether-node|tether-pools)-[0-9a-z]{10}$", r"\1", value) if isinstance(value, str) else value

    return names(one)


if __name__ == "__main__":
    unittest.main()
