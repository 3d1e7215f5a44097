"""Every rule, in one list: its name, and what finds the sentences that say where it is broken."""

from . import configuration, lifetime, network, programs, references, rollout, security

ALL = [
    ("selectors", rollout.selectors),
    ("rollout", rollout.strategy),
    ("budgets", rollout.budgets),
    ("quorum", rollout.quorum),
    ("spread", rollout.spread),
    ("references", references.references),
    ("ports", references.ports),
    ("services", references.services),
    ("addresses", references.addresses),
    ("probes", lifetime.probes),
    ("grace", lifetime.grace),
    ("drain", lifetime.drain),
    ("lease", lifetime.lease),
    ("sidecar", programs.sidecar),
    ("hooks", programs.hooks),
    ("memory", programs.memory),
    ("runtime directory", programs.runtime_directory),
    ("restricted", security.restricted),
    ("tokens", security.tokens),
    ("roles", security.roles),
    ("images", security.images),
    ("network", network.covered),
    ("network ports", network.ports),
    ("network ways", network.ways),
    ("variables", configuration.variables),
]


def broken(cluster):
    """What each rule finds: `rule: sentence`."""
    return [f"{name}: {sentence}" for name, rule in ALL for sentence in rule(cluster)]
