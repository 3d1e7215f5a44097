"""`python -m lint [--tether PROGRAM]`, in deploy/: what is wrong with the files for Kubernetes and Nomad."""

import argparse
import sys

from . import kubernetes


def main():
    parser = argparse.ArgumentParser(prog="lint", description=__doc__)
    parser.add_argument("--tether", help="the program `tether`, which is asked whether settings can be used")
    tether = parser.parse_args().tether
    found = kubernetes.check(tether)
    print(f"Kubernetes versions: {', '.join(kubernetes.checks.versions())}; rules: {len(kubernetes.rules.ALL)}; findings: {found}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
