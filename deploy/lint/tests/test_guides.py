"""The commands of the guides that stand behind a `$`, run as they are written.

Those that need a cluster stand in blocks of another kind, and nobody runs them here.
"""

import re
import subprocess
import unittest

from lint import kubernetes, nomad, render

from .test_programs import DEADLINE, Serving, until

ROOT = kubernetes.HERE.parent.parent
GUIDES = ["docs/how-to/kubernetes.md", "docs/how-to/nomad.md"]

# What runs these tests.
OURSELVES = "cargo xtask k8s-lint"


def commands(guide):
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / guide).read_text(), re.DOTALL)
    return [line[2:].split(" #")[0] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


class Guides(Serving):
    def test_every_command_ends_well(self):
        env = self.world.pods["workers-digits-0"].env
        until("all nodes are up", lambda: (len(rows := self.world.rows("nodes")) == 3, rows))
        for guide in GUIDES:
            for command in commands(guide):
                if command == OURSELVES or (command.startswith("kubectl ") and not render.has_kubectl()):
                    continue
                with self.subTest(guide=guide, command=command):
                    ended = subprocess.run(command, shell=True, cwd=ROOT, env=env, capture_output=True, text=True, timeout=DEADLINE)

                    self.assertEqual(ended.returncode, 0, ended.stderr)


class Reading(unittest.TestCase):
    def test_commands_are_found(self):
        self.assertIn("tether ps digits", commands(GUIDES[0]))
        self.assertIn("tether nodes", commands(GUIDES[1]))

    def test_each_job_of_nomad_is_given_the_variables_that_it_has(self):
        trees, _ = nomad.read(nomad.files())
        lines = re.findall(r"^nomad job run (.*?) ?(\S+\.hcl)$", (ROOT / GUIDES[1]).read_text(), re.MULTILINE)

        self.assertEqual(len(lines), 4)
        for given, name in lines:
            with self.subTest(job=name):
                declared = sorted(variable.name for variable in trees[name].of("variable"))
                self.assertEqual(sorted(re.findall(r"-var (\w+)=\S", given)), declared)


if __name__ == "__main__":
    unittest.main()
