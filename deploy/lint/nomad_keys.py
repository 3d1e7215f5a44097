"""What may stand in which block: of Nomad's job specification, what these files use, and no more.

Nomad's own parser knows them all; it is a program of 120 MB, and not here. A key that is not in this list is either
misspelt or to be added.
"""

# Block: its keys, its blocks.
BLOCKS = {
    "": ("", "variable job client plugin"),
    "variable": ("type description default", ""),
    "job": ("type datacenters node_pool priority", "update group constraint"),
    "update": (
        "max_parallel stagger canary auto_promote auto_revert min_healthy_time healthy_deadline progress_deadline",
        "",
    ),
    "group": ("count shutdown_delay", "constraint disconnect network reschedule restart service spread task"),
    "constraint": ("attribute operator value", ""),
    "disconnect": ("lost_after stop_on_client_after replace reconcile", ""),
    "network": ("mode", "port"),
    "port": ("static to host_network", ""),
    "reschedule": ("attempts interval delay delay_function max_delay unlimited", ""),
    "restart": ("attempts interval delay mode", ""),
    "service": ("provider name port tags address_mode", "check"),
    "check": ("type port path interval timeout", "check_restart"),
    "check_restart": ("limit grace", ""),
    "spread": ("attribute weight", ""),
    "task": ("driver user kill_timeout kill_signal shutdown_delay leader", "config env template resources"),
    "template": ("data destination change_mode perms splay", ""),
    "resources": ("cpu memory memory_max", ""),
    "client": ("max_kill_timeout", ""),
    "plugin": ("", "config"),
}

# Blocks that have a name of their own, and so one more level.
NAMED = {"variable", "job", "group", "port", "task", "plugin"}

# `config`, by the driver or the plugin that it is for.
CONFIGS = {
    "docker": "image command args network_mode readonly_rootfs cap_drop ports",
    "raw_exec": "command args work_dir cgroup_v2_override oom_score_adj",
    "plugin docker": "allow_privileged",
    "plugin raw_exec": "enabled",
}
