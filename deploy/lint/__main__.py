"""`python -m lint [--tether PROGRAM]`, in deploy/: what is wrong with the files for Kubernetes and Nomad."""

import argparse
import sys

from . import kubernetes, nomad


def main():
    parser = argparse.ArgumentParser(prog="lint", description=__doc__)
    parser.add_argument("--tether", help="the program `tether`, which is asked whether settings can be used")
    tether = parser.parse_args().tether
    found = kubernetes.check(tether) + nomad.check(tether)
    versions, rules = ", ".join(kubernetes.checks.versions()), len(kubernetes.rules.ALL) + len(nomad.RULES)
    print(f"{found} findings, by {rules} rules and the schemas of Kubernetes {versions}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
