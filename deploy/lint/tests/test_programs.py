"""What the manifests start, started here with their settings: it answers their probes, and their hooks do what they are for.

Needs etcd on the PATH and, in TETHER_BIN, the folder of Tether's programs.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import unittest
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lint import checks, kubernetes, nomad, render
from lint.cluster import TOLD, Cluster

DEADLINE = 30
BIN = os.environ.get("TETHER_BIN", "")

# In the place of the digits worker: takes connections, and no more.
WORKER = """
import os, socket
host, port = os.environ["TETHER_LISTEN"].rsplit(":", 1)
server = socket.create_server((host, int(port)))
while True:
    server.accept()
"""


def until(what, holds):
    """Waits until it holds, and fails with the last thing seen."""
    end = time.monotonic() + DEADLINE
    while not (seen := holds())[0]:
        if time.monotonic() > end:
            raise AssertionError(f"{what}: {seen[1]}")
        time.sleep(0.1)


def health(address, service):
    """As the kubelet asks: SERVING, another status, or the error's code."""
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=2)
        except grpc.RpcError as error:
            return error.code().name
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def connects(host, port):
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError as error:
        return str(error)
    return "SERVING"


class Pod:
    """A container of the manifests as a process of this machine, at a loopback address of its own."""

    def __init__(self, world, workload, container, ip, ordinal=0, command=None):
        self.workload, self.container, self.ip = workload, container, ip
        self.name = f"{workload.name}-{ordinal}"
        told = {**TOLD, "metadata.name": self.name, "status.podIP": ip}
        folder = world.folder / self.name
        folder.mkdir()
        here = [("0.0.0.0", ip), ("/run/tether", str(folder)), *world.places]
        text = world.local(world.settings, here)
        (folder / "tether.toml").write_text(text)
        env = {name: world.local(value, here) for name, value in container.env(told).items()}
        # As in a container of the restricted profile: what holds workers together is the first process.
        env.update(TETHER_AGENT__NO_CGROUPS="true", TETHER_AGENT__NO_NAMESPACES="true")
        self.env = {**env, "PATH": f"{BIN}:{os.environ['PATH']}", "TETHER_CONFIG": str(folder / "tether.toml")}
        self.log = folder / "log"
        with self.log.open("w") as log:
            command = command or container.spec["command"]
            self.process = subprocess.Popen(command, env=self.env, cwd=folder, stdout=log, stderr=log)

    def answer(self, probe):
        """What the kubelet would be told."""
        if "grpc" in probe:
            asked = probe["grpc"]
            return health(f"{self.ip}:{asked['port']}", asked.get("service", ""))
        return connects(self.ip, self.workload.port(probe["tcpSocket"]["port"]))

    def hook(self, name):
        """Runs a hook as it is written, its file found where this checkout has it."""
        command = self.container.spec["lifecycle"][name]["exec"]["command"]
        words = [word.replace("/etc/tether-node", str(kubernetes.BASE)) for word in command]
        return subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=2 * DEADLINE)


class World:
    """One of each, and two pods of workers."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="tether-lint-"))
        pid = os.getpid()
        self.net = f"127.{100 + pid % 100}.{pid // 100 % 250}"
        cluster = Cluster(render.plainly(kubernetes.BASE))
        names = ["tether-etcd", "tether-arbiter", "tether-discovery", "tether-gateway"]
        self.ips = {name: f"{self.net}.{number + 1}" for number, name in enumerate(names)}
        self.places = [(f"{name}-0.{name}:", f"{ip}:") for name, ip in self.ips.items()]
        self.places += [(f"{name}:", f"{ip}:") for name, ip in self.ips.items()]
        # That of one of each; the base's differs by the members of etcd and the arbiters that it names.
        self.settings = (kubernetes.HERE / "overlays/single/tether.toml").read_text()
        self.processes, self.pods = [], {}
        self.workloads = {workload.name: workload for workload in cluster.workloads}

    def start(self):
        self.start_etcd(self.ips["tether-etcd"])
        workloads = self.workloads
        for name in ("tether-arbiter", "tether-discovery", "tether-gateway"):
            workload = workloads[name]
            self.add(Pod(self, workload, workload.containers[0], self.ips[name]))
        workers = workloads["workers-digits"]
        for ordinal in (0, 1):
            self.add(Pod(self, workers, workers.containers[0], f"{self.net}.{10 + ordinal}", ordinal))
        beam = workloads["beam"]
        self.add(Pod(self, beam, beam.containers[0], f"{self.net}.20"))

    @staticmethod
    def local(text, places):
        for old, new in places:
            text = text.replace(old, new)
        return text

    def add(self, pod):
        self.pods[pod.name] = pod
        self.processes.append(pod.process)

    def start_etcd(self, ip):
        data, client, peer = self.folder / "etcd", f"http://{ip}:2379", f"http://{ip}:2380"
        command = ["etcd", "--data-dir", str(data), "--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        with (self.folder / "etcd.log").open("w") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        until("etcd answers", lambda: ((said := connects(ip, 2379)) == "SERVING", said))

    def tether(self, *words):
        env = {**self.pods["workers-digits-0"].env}
        return subprocess.run(["tether", *words], env=env, capture_output=True, text=True, timeout=DEADLINE, check=True).stdout

    def rows(self, command):
        """What a command lists: the first word of each line, and the whole line."""
        return {line.split()[0]: line for line in self.tether(command).splitlines()[1:]}

    def on(self, node):
        return [line for line in self.rows("ps").values() if line.split()[3] == node]

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()
        # Here an agent is not the first process of a container, whose end would be that of its workers.
        for left in Path("/proc").glob("[0-9]*"):
            try:
                pidfd = os.pidfd_open(int(left.name))
            except OSError:
                continue
            # The environment is looked at once nobody else can have this process's id.
            with contextlib.suppress(OSError):
                if str(self.folder).encode() in (left / "environ").read_bytes():
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        shutil.rmtree(self.folder, ignore_errors=True)


@unittest.skipUnless(BIN and shutil.which("etcd"), "TETHER_BIN is not set, or there is no etcd")
class Serving(unittest.TestCase):
    """A world that serves: every probe of the manifests is answered as they want it."""

    def setUp(self):
        self.world = World()
        self.addCleanup(self.world.end)
        self.world.start()
        for pod in self.world.pods.values():
            for kind, probe in pod.container.probes():
                until(f"{pod.name}, {kind}", lambda: ((said := pod.answer(probe)) == "SERVING", said + pod.log.read_text()[-500:]))


class Programs(Serving):
    def test_hooks_empty_a_node_and_open_it_again(self):
        world, first, second = self.world, "workers-digits-0", "workers-digits-1"
        until("all nodes are up", lambda: (len(rows := world.rows("nodes")) == 3, rows))
        world.tether("pool", "apply", "--file", str(self.pool_file()), "--owner", "test")
        until("three workers and a spare are ready", lambda: (str(rows := list(world.rows("ps").values())).count(" ready ") == 4, rows))
        self.assertTrue(world.on(first) and world.on(second), "both pods have workers")
        self.assertFalse(world.on("beam-0"), "the label of the pool keeps them from the application's pod")

        drained = world.pods[first].hook("preStop")

        self.assertEqual(drained.returncode, 0, drained.stderr)
        self.assertEqual(world.on(first), [])
        self.assertIn("drained", world.rows("nodes")[first])
        until("all are on the other", lambda: (len(rows := world.on(second)) == 4, rows))

        # There is no room elsewhere: they are asked to stop, each with its own grace.
        world.pods[second].env["DRAIN_SECONDS"] = "1"
        stopped = world.pods[second].hook("preStop")

        self.assertEqual(stopped.returncode, 0, stopped.stderr)
        self.assertEqual(world.on(second), [])
        self.assertIn("ORDERED_BY_OPERATOR", world.tether("events", "--pool", "digits"))

        opened = world.pods[first].hook("postStart")

        self.assertEqual(opened.returncode, 0, opened.stderr)
        until("they come back", lambda: (len(rows := world.on(first)) == 4, rows))

        world.pods[second].env["TETHER_AGENT__NODE"] = "never-heard-of"
        self.assertEqual(world.pods[second].hook("postStart").returncode, 0)

    def test_a_gateway_without_an_arbiter_is_not_ready_and_not_killed_and_all_end_in_time(self):
        pods = self.world.pods
        arbiter, gateway = pods["tether-arbiter-0"], pods["tether-gateway-0"]
        probes = dict(gateway.container.probes())
        arbiter.process.send_signal(signal.SIGTERM)
        self.assertEqual(arbiter.process.wait(arbiter.workload.pod["terminationGracePeriodSeconds"]), 0)

        until("it is not ready", lambda: ((said := gateway.answer(probes["readinessProbe"])) == "NOT_SERVING", said))

        self.assertEqual(gateway.answer(probes["livenessProbe"]), "SERVING")
        for pod in pods.values():
            pod.process.send_signal(signal.SIGTERM)
        for pod in pods.values():
            given = pod.workload.pod["terminationGracePeriodSeconds"]
            self.assertEqual(pod.process.wait(given), 0, pod.log.read_text()[-500:])

    def test_an_application_that_is_killed_finds_its_workers_when_it_is_started_again(self):
        world, file = self.world, self.pool_file()
        until("all nodes are up", lambda: (len(rows := world.rows("nodes")) == 3, rows))

        def application():
            """As the BEAM's container: an owner by its pod's name."""
            command = ["tether", "run", "--file", str(file), "--owner", "beam-0", "--ready-timeout", "30s"]
            env = world.pods["workers-digits-0"].env
            process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            world.processes.append(process)
            self.addCleanup(process.stdout.close)
            return process

        def workers():
            """Each with its process."""
            return {line.split()[0]: line.split()[2] for line in world.rows("ps").values() if " ready " in line}

        first = application()
        until("three workers and a spare are ready", lambda: (len(seen := workers()) == 4, seen))
        before = workers()

        first.kill()
        first.wait()
        second = application()
        said = []
        until("it has its workers", lambda: (said.append(second.stdout.readline()) or said[-1].startswith("ready: "), said))

        self.assertEqual(workers(), before)

    def test_the_task_of_nomad_empties_its_node_before_it_ends(self):
        world, task = self.world, "workers-digits-2"
        (world.folder / "task").mkdir()
        for path in [kubernetes.BASE / "open.sh", kubernetes.BASE / "drain.sh", nomad.HERE / "agent.sh"]:
            shutil.copy(path, world.folder / "task")
        (world.folder / "task/gateway").write_text(f"{world.ips['tether-gateway']}:7437\n")
        workload = world.pods["workers-digits-0"].workload
        command = ["env", f"NOMAD_TASK_DIR={world.folder}/task", "TETHER_AGENT__MINIMUM_GUARANTEE=G5", "sh", f"{world.folder}/task/agent.sh"]
        pod = Pod(world, workload, workload.containers[0], f"{world.net}.12", 2, command)
        world.add(pod)
        until("all nodes are up", lambda: (len(rows := world.rows("nodes")) == 4, rows))
        world.tether("pool", "apply", "--file", str(self.pool_file()), "--owner", "test")
        until("three workers and a spare are ready", lambda: (str(rows := list(world.rows("ps").values())).count(" ready ") == 4, rows))
        self.assertTrue(world.on(task), "it has workers")

        pod.process.send_signal(signal.SIGTERM)

        self.assertEqual(pod.process.wait(2 * DEADLINE), 0, pod.log.read_text()[-500:])
        self.assertEqual(world.on(task), [])
        until("they are elsewhere", lambda: (str(rows := list(world.rows("ps").values())).count(" ready ") == 4, rows))

    def pool_file(self):
        """The base's, with a worker that needs nothing, and ends quickly."""
        text = (kubernetes.BASE / "digits.toml").read_text()
        said = tomllib.loads(text)["template"]["digits"]
        for old, new in [
            (f'command = "{said["command"]}"', f'command = "{sys.executable}"'),
            ('args = ["worker.py", "--insecure"]', f"args = ['-c', '''{WORKER}''']"),
            ('cwd = "/opt/digits"', 'cwd = "/"'),
            (f'grace = "{said["stop"]["grace"]}"', 'grace = "1s"'),
            ("size = 6", "size = 3"),
        ]:
            self.assertIn(old, text)
            text = text.replace(old, new)
        path = self.world.folder / "digits.toml"
        path.write_text(text + '\n[template.digits.readiness]\nkind = "connect"\n')
        return path


@unittest.skipUnless(BIN, "TETHER_BIN is not set")
class Settings(unittest.TestCase):
    TETHER = f"{BIN}/tether"

    def test_a_slip_in_a_file_or_a_variable_is_found(self):
        text = (kubernetes.BASE / "tether.toml").read_text()
        pod = {"TETHER_AGENT__NODE": "pod-0"}

        self.assertEqual(checks.config_check(self.TETHER, text, pod), "")
        self.assertIn("drian", checks.config_check(self.TETHER, text.replace("drain", "drian"), pod))
        self.assertIn("TETHER_AGENT__NOD", checks.config_check(self.TETHER, text, {"TETHER_AGENT__NOD": "pod-0"}))
        self.assertIn("plain text", checks.config_check(self.TETHER, text.replace("insecure = true", ""), pod))


if __name__ == "__main__":
    unittest.main()
