"""The jobs are clean, and each rule finds the faults that are planted for it."""

import os
import unittest

from lint import checks, nomad

TEXTS = nomad.files()
AGENT, COUNTED, GATEWAY, ARBITER, CLIENT = (
    "agent.nomad.hcl",
    "agent-counted.nomad.hcl",
    "gateway.nomad.hcl",
    "arbiter.nomad.hcl",
    "client.hcl",
)

# The rule, a part of what it says, the file, and what is written there in the place of what.
FAULTS = [
    ("syntax", "client.hcl", CLIENT, "client {", "client ["),
    ("syntax", "agent.nomad.hcl", AGENT, 'type = "system"', "type = system job"),
    ("keys", "knows no `chauffeur`", AGENT, "driver =", "chauffeur ="),
    ("keys", "knows no block `discnonect`", COUNTED, "disconnect {", "discnonect {"),
    ("keys", "`config` knows no `cmd`", GATEWAY, "command  ", "cmd  "),
    ("keys", "`client` knows no `max_kill_time`", CLIENT, "max_kill_timeout", "max_kill_time"),
    ("keys", "`file` knows no block `jbo`", GATEWAY, 'job "tether-gateway"', 'jbo "tether-gateway"'),
    ("ports", "names the port gprc", GATEWAY, 'port     = "grpc"', 'port     = "gprc"'),
    ("ports", "wants the port rpc", ARBITER, "${NOMAD_ADDR_grpc}", "${NOMAD_ADDR_rpc}"),
    ("services", "a check of the type grpc", GATEWAY, 'type     = "http"', 'type     = "grpc"'),
    ("services", "not one of Nomad's own", GATEWAY, 'provider = "nomad"', 'provider = "consul"'),
    ("probes", "not asked for /health/readiness", GATEWAY, "/health/readiness", "/health/liveness"),
    ("probes", "not asked for /health/readiness", ARBITER, 'port     = "admin"', 'port     = "grpc"'),
    ("services", "tether-arbter, which no job registers", AGENT, '"tether-arbiter" }}', '"tether-arbter" }}'),
    ("variables", "shop is used and not declared", ARBITER, "${var.store}", "${var.shop}"),
    ("variables", "image is declared and not used", ARBITER, "= var.image", '= "tether"'),
    ("variables", "there is no file `agnet.sh`", AGENT, 'file("agent.sh")', 'file("agnet.sh")'),
    ("kinds", "refuses `stop_on_client_after` in a job", AGENT, "    network {", '    disconnect {\n      stop_on_client_after = "15s"\n    }\n    network {'),
    ("kinds", "refuses `lost_after` beside", COUNTED, "stop_on_client_after =", 'lost_after = "1h"\n      stop_on_client_after ='),
    ("kinds", "is not rescheduled", AGENT, "    network {", "    reschedule {\n      attempts = 0\n    }\n    network {"),
    ("kinds", "`update.canary` does nothing", AGENT, "stagger      =", "canary = 1\n    stagger ="),
    ("kinds", "has 2 tasks", AGENT, '    task "agent" {', '    task "worker" {\n      driver = "raw_exec"\n    }\n    task "agent" {'),
    ("kinds", "at a signal", GATEWAY, 'change_mode = "noop"', 'change_mode = "signal"'),
    ("kinds", "an absolute path", AGENT, '"/bin/sh"', '"sh"'),
    ("times", "is no belt", COUNTED, '"15s"\n      replace', '"20s"\n      replace'),
    ("times", "is no belt", ARBITER, 'node_ttl = "20s"', 'node_ttl = "15s"'),
    ("times", "a client grants 30s", CLIENT, '  max_kill_timeout = "5m"\n', ""),
    ("times", "takes 22s to end, and has 20s", GATEWAY, '= "30s"', '= "20s"'),
    ("times", "takes 200s to end, and has 180s", AGENT, '= "120"', '= "190"'),
]


def planted(name, old, new):
    assert old in TEXTS[name], f"{name} has no {old!r}"
    return {**TEXTS, name: TEXTS[name].replace(old, new, 1)}


class Rules(unittest.TestCase):
    def test_the_jobs_break_none(self):
        self.assertEqual(nomad.broken(TEXTS), [])

    def test_each_planted_fault_is_found_by_its_rule(self):
        for rule, said, name, old, new in FAULTS:
            with self.subTest(rule=rule, said=said):
                found = [one for one in nomad.broken(planted(name, old, new)) if one.startswith(f"{rule}: ")]

                self.assertTrue(any(said in one for one in found), found)

    def test_every_rule_has_a_fault_planted(self):
        self.assertEqual({"syntax"} | {name for name, _ in nomad.RULES}, {fault[0] for fault in FAULTS})

    def test_both_jobs_of_agents_run_the_same(self):
        trees, _ = nomad.read(TEXTS)
        one, other = (next(task for _, _, task in nomad.tasks(trees[name])) for name in (AGENT, COUNTED))

        self.assertEqual([(block.kind, block.keys) for block in one.walk()], [(block.kind, block.keys) for block in other.walk()])


@unittest.skipUnless(os.environ.get("TETHER_BIN"), "TETHER_BIN is not set")
class Settings(unittest.TestCase):
    TETHER = f"{os.environ.get('TETHER_BIN')}/tether"

    def test_the_jobs_give_what_can_be_used(self):
        self.assertEqual(list(nomad.configurations(TEXTS, self.TETHER)), [])

    def test_a_slip_in_a_template_or_a_variable_is_found(self):
        for said, name, old, new in [
            ("drian", GATEWAY, "          drain =", "          drian ="),
            ("TETHER_AGENT__NOD=", AGENT, "TETHER_AGENT__NODE ", "TETHER_AGENT__NOD "),
        ]:
            found = list(nomad.configurations(planted(name, old, new), self.TETHER))

            self.assertTrue(found and said in found[0], found)

    def test_a_service_that_nobody_serves_is_waited_for_and_not_passed_over(self):
        trees, _ = nomad.read(TEXTS)
        for name in (AGENT, GATEWAY):
            _, _, task = next(iter(nomad.tasks(trees[name])))
            text = next(one.get("data") for one in task.of("template") if one.get("destination") == "local/tether.toml")

            wrong = checks.config_check(self.TETHER, nomad.rendered(text, instances=0), {"TETHER_AGENT__NODE": "client-1"})

            self.assertIn("nobody serves as tether-arbiter", wrong)


if __name__ == "__main__":
    unittest.main()
