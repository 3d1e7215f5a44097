"""Everything that is looked at of deploy/kubernetes."""

from pathlib import Path

from . import checks, render, rules
from .cluster import Cluster

HERE = Path(__file__).parent.parent / "kubernetes"
BASE = HERE / "base"


def folders():
    """What can be applied: the base, and each overlay."""
    return [BASE, *sorted(path.parent for path in HERE.glob("overlays/*/kustomization.yaml"))]


def check(tether):
    """Says what it looked at and what it found; the number of findings."""
    found = 0
    if render.has_kubectl():
        ways = [(folder, render.with_kubectl, "by kubectl") for folder in folders()]
    else:
        ways = [(BASE, render.plainly, "read directly")]
        print("skipped: overlays are not rendered, since there is no `kubectl` that does it; the base was read directly")
    if tether is None:
        print("skipped: settings are not checked, since `tether` is not built")
    for folder, make, how in ways:
        cluster = Cluster(make(folder))
        findings = [*checks.schemas(cluster), *rules.broken(cluster)]
        if tether:
            findings += checks.configurations(cluster, tether)
        name = folder.relative_to(HERE.parent)
        print(f"{name}, {how}: {len(cluster.objects)} objects, {len(findings)} findings")
        for finding in findings:
            print(f"  {finding}")
        found += len(findings)
    return found
