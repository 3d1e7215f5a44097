"""Checks that others make: schemas of Kubernetes, and Tether's own of its configuration."""

import functools
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

import kubernetes_validate

# How many minor versions of Kubernetes are supported upstream.
VERSIONS = 3


def versions():
    """The last minor versions that there are schemas of."""
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    found = {re.fullmatch(r"v1\.(\d+)\.0-local-strict", path.name) for path in folder.iterdir()}
    return [f"1.{minor}" for minor in sorted(int(one[1]) for one in found if one)[-VERSIONS:]]


def schemas(cluster):
    """What the schemas refuse, unknown fields too."""
    for one in cluster.objects:
        yield from refused(json.dumps(one))


# Most objects of an overlay are those of the base, and to look at one takes its time.
@functools.cache
def refused(text):
    """What the schema of each version refuses of one object."""
    one, found = json.loads(text), []
    for version in versions():
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            place = ".".join(map(str, error.path))
            found.append(f"schema {version}: {one['kind']} {one['metadata']['name']}: {place}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError:
            found.append(f"schema {version}: there is no {one['apiVersion']} {one['kind']}")
    return found


def configurations(cluster, tether):
    """What `tether config check` says of each service's file and environment."""
    for workload in cluster.workloads:
        for container in workload.containers:
            text = cluster.settings(workload, container)
            if text is None:
                continue
            wrong = config_check(tether, text, container.env())
            if wrong:
                yield f"configuration: {workload}, {container.name}: {wrong}"


def config_check(tether, text, env):
    """Why a configuration cannot be used, or what of it was passed over; nothing where all is well."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tether.toml"
        path.write_text(text)
        env = {"PATH": os.environ["PATH"], **env, "TETHER_CONFIG": str(path)}
        said = subprocess.run([tether, "config", "check"], env=env, capture_output=True, text=True, timeout=60)
    return said.stderr.strip() or (f"status {said.returncode}" if said.returncode else "")
