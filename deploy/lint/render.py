"""Makes objects of a folder of kustomize: with `kubectl`, or, of a plain one, without."""

import functools
import shutil
import subprocess
from pathlib import Path

import yaml

# The one in C, where this PyYAML has it, is ten times as fast.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@functools.cache
def has_kubectl():
    """Whether there is one that renders what overlays are made of, which it says since it knows that."""
    if shutil.which("kubectl") is None:
        return False
    said = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True)
    return "Kustomize Version: " in said.stdout


def with_kubectl(folder):
    """What `kubectl kustomize` makes of it."""
    made = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    if made.returncode:
        raise ValueError(f"`kubectl kustomize {folder}` failed: {made.stderr.strip()}")
    return list(yaml.load_all(made.stdout, LOADER))


def plainly(folder):
    """The objects of a folder that neither patches nor builds on another: its files as they are, with ConfigMaps of files.

    What kustomize adds besides changes nothing that the rules look at: the namespace, a hash in the names of ConfigMaps,
    and where images come from, which is said in the same file.
    """
    folder = Path(folder)
    said = yaml.load((folder / "kustomization.yaml").read_text(), LOADER)
    unknown = set(said) - {"apiVersion", "kind", "namespace", "resources", "configMapGenerator", "images"}
    if unknown:
        raise ValueError(f"`{folder}` is read without kubectl, which is not there, and has {sorted(unknown)}")
    objects = [one for name in said["resources"] for one in yaml.load_all((folder / name).read_text(), LOADER)]
    for config in said.get("configMapGenerator", []):
        data = {name: (folder / name).read_text() for name in config["files"]}
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": config["name"]}, "data": data})
    images = {image["name"]: f"{image['newName']}:{image['newTag']}" for image in said.get("images", [])}
    for one in objects:
        pod = one.get("spec", {}).get("template", {}).get("spec", {})
        for container in pod.get("containers", []) + pod.get("initContainers", []):
            container["image"] = images.get(container["image"], container["image"])
    return objects
