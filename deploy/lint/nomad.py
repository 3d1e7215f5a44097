"""Everything that is looked at of deploy/nomad."""

import re
from pathlib import Path

import hcl2

from .checks import config_check
from .cluster import seconds
from .nomad_keys import BLOCKS, CONFIGS, NAMED
from .rules.lifetime import GATEWAY_DRAIN, LAST_WORDS, NODE_TTL, STOP_GRACE

HERE = Path(__file__).parent.parent / "nomad"

# Nomad's own for what a client may be asked to wait, where it does not say.
MAX_KILL = "30s"

# What stands for a variable of Nomad's where a program is to read it.
AT_RUN_TIME = {"ADDR": "10.0.0.1:7000", "IP": "10.0.0.1", "PORT": "7000"}


def files():
    return {path.name: path.read_text() for path in sorted(HERE.glob("*.hcl"))}


def plain(value):
    """A value without the marks of the parser: strings without quotes, heredocs without their ends."""
    if not isinstance(value, str):
        return value
    heredoc = re.fullmatch(r'"?<<-?(\w+)\n(.*?)\n\s*\1\s*"?', value, re.DOTALL)
    if heredoc:
        return heredoc[2]
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return value[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return value


class Block:
    """A block: its kind, its name, its keys, its blocks."""

    def __init__(self, kind, name, inner):
        self.kind, self.name, self.keys, self.blocks = kind, name, {}, []
        for key, value in inner.items():
            if key.startswith("__"):
                continue
            if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
                self.blocks += [made for one in value for made in blocks(key, one)]
            else:
                self.keys[key] = plain(value)

    def of(self, kind):
        return [block for block in self.blocks if block.kind == kind]

    def get(self, key, otherwise=None):
        return self.keys.get(key, otherwise)

    def walk(self):
        yield self
        for block in self.blocks:
            yield from block.walk()


def blocks(kind, inner):
    if kind not in NAMED:
        return [Block(kind, "", inner)]
    return [Block(kind, plain(name), one) for name, one in inner.items() if not name.startswith("__")]


def read(texts):
    """Each file as a block without a name; what cannot be parsed, as sentences."""
    trees, wrong = {}, []
    for name, text in texts.items():
        try:
            trees[name] = Block("", "", hcl2.loads(text))
        except Exception as error:  # The parser's own errors have no common ancestor but this.
            wrong.append(f"syntax: {name}: {str(error).splitlines()[0]}")
    return trees, wrong


def broken(texts):
    """What is wrong with these files: `rule: sentence`."""
    trees, wrong = read(texts)
    return wrong + [f"{rule}: {name}: {sentence}" for name, tree in trees.items() for rule, find in RULES for sentence in find(tree, trees)]


def keys(tree, _):
    """No key and no block that its block does not know."""
    def look(block, around):
        if block.kind == "config":
            driver = f"plugin {around.name}" if around.kind == "plugin" else around.get("driver")
            known, inner = CONFIGS.get(driver, "").split(), []
        elif block.kind == "env":
            known, inner = list(block.keys), []
        else:
            known, inner = (words.split() for words in BLOCKS[block.kind])
        for key in block.keys:
            if key not in known:
                yield f"`{block.kind or 'file'}` knows no `{key}`"
        for one in block.blocks:
            if one.kind not in inner:
                yield f"`{block.kind or 'file'}` knows no block `{one.kind}`"
            else:
                yield from look(one, block)

    yield from look(tree, tree)


def groups(tree):
    return [(job, group) for job in tree.of("job") for group in job.of("group")]


def tasks(tree):
    return [(job, group, task) for job, group in groups(tree) for task in group.of("task")]


def ports(tree, _):
    for _, group in groups(tree):
        known = {port.name for network in group.of("network") for port in network.of("port")}
        for service in group.of("service"):
            for block in (service, *service.of("check")):
                if block.get("port", next(iter(known), None)) not in known:
                    yield f"`{block.kind}` names the port {block.get('port')}, which its group has not got"
        for block in group.walk():
            for value in block.keys.values():
                for name in re.findall(r"\$\{NOMAD_(?:ADDR|IP|PORT)_(\w+)\}", str(value)):
                    if name not in known:
                        yield f"`{block.kind}` wants the port {name}, which its group has not got"


def services(tree, trees):
    """Checks that Nomad's own services know, and services that somebody registers."""
    registered = {one.get("name") for other in trees.values() for _, group in groups(other) for one in group.of("service")}
    for _, group in groups(tree):
        for service in group.of("service"):
            if service.get("provider") != "nomad":
                yield f"the service {service.get('name')} is not one of Nomad's own (provider)"
            for check in service.of("check"):
                if check.get("type") not in ("tcp", "http"):
                    yield f"a check of the type {check.get('type')}: Nomad's own services know tcp and http alone"
        for block in group.walk():
            for name in re.findall(r'nomadService [^}]*?"([\w-]+)"\s*}}', str(block.get("data", ""))):
                if name not in registered:
                    yield f"a template asks for the service {name}, which no job registers"


def probes(tree, _):
    """Each group is asked for its readiness, which an open port does not tell."""
    for _, group in groups(tree):
        asked = [(check.get("type"), check.get("port"), check.get("path")) for one in group.of("service") for check in one.of("check")]
        if ("http", "admin", "/health/readiness") not in asked:
            yield f"the group {group.name} is not asked for /health/readiness at its port admin"


def variables(tree, _):
    declared = {variable.name for variable in tree.of("variable")}
    used = {name for block in tree.walk() for value in block.keys.values() for name in re.findall(r"\bvar\.(\w+)", str(value))}
    for name in sorted(declared ^ used):
        yield f"the variable {name} is {'used and not declared' if name in used else 'declared and not used'}"
    for block in tree.walk():
        for value in block.keys.values():
            for path in re.findall(r'^\$\{file\("(.*)"\)\}$', str(value)):
                if not (HERE / path).is_file():
                    yield f"there is no file `{path}`"


def kinds(tree, _):
    """What Nomad refuses of a job of this type, and tasks that are to be Tether's workers."""
    for job, group in groups(tree):
        if len(group.of("task")) != 1:
            yield f"the group {group.name} has {len(group.of('task'))} tasks: workers are the agent's, and no tasks"
        if job.get("type") == "system":
            if group.of("reschedule"):
                yield "a job of the type system is not rescheduled"
            for disconnect in group.of("disconnect"):
                if disconnect.get("stop_on_client_after"):
                    yield "Nomad refuses `stop_on_client_after` in a job of the type system"
            for update in job.of("update"):
                for key in sorted(set(update.keys) - {"max_parallel", "stagger"}):
                    yield f"`update.{key}` does nothing in a job of the type system"
        for disconnect in group.of("disconnect"):
            if disconnect.get("stop_on_client_after") and disconnect.get("lost_after"):
                yield "Nomad refuses `lost_after` beside `stop_on_client_after`"
    for _, _, task in tasks(tree):
        for template in task.of("template"):
            if template.get("change_mode") == "signal":
                yield f"the task {task.name}: no program of Tether's reads its configuration again at a signal"
        for config in task.of("config"):
            if task.get("driver") == "raw_exec" and not str(config.get("command")).startswith("/"):
                yield f"the task {task.name}: raw_exec wants an absolute path, not `{config.get('command')}`"


def times(tree, trees):
    """The belt before the braces; and time to end that the client grants."""
    client = next((one for other in trees.values() for one in other.of("client")), None)
    longest = seconds(client.get("max_kill_timeout", MAX_KILL)) if client else seconds(MAX_KILL)
    ttl = min((seconds(found) for other in trees.values() for found in said(other, "node_ttl")), default=seconds(NODE_TTL))
    for _, group, task in tasks(tree):
        for disconnect in group.of("disconnect"):
            after = disconnect.get("stop_on_client_after")
            if after and seconds(after) >= ttl:
                yield f"`stop_on_client_after` ({after}) is no belt: the lease (node_ttl) is over before, after {ttl:g}s"
        given = seconds(task.get("kill_timeout", "5s"))
        if given > longest:
            yield f"the task {task.name}: kill_timeout is {given:g}s, and a client grants {longest:g}s (max_kill_timeout)"
        needed = ending(task)
        if given <= needed:
            yield f"the task {task.name}: takes {needed:g}s to end, and has {given:g}s (kill_timeout)"


def said(block, key):
    """Every value that templates below this block give a key of the configuration."""
    texts = [str(one.get("data", "")) for one in block.walk() if one.kind == "template"]
    return [found for text in texts for found in re.findall(rf'(?m)^\s*{key}\s*=\s*"(.*?)"', text)]


def ending(task):
    """How long its program takes to end."""
    env = {key: value for one in task.of("env") for key, value in one.keys.items()}
    if "DRAIN_SECONDS" in env:
        return int(env["DRAIN_SECONDS"]) + seconds(STOP_GRACE)
    if task.name == "gateway":
        return seconds(next(iter(said(task, "drain")), GATEWAY_DRAIN)) + LAST_WORDS
    return {"arbiter": 5, "discovery": 1}.get(task.name, 0)


RULES = [
    ("keys", keys),
    ("ports", ports),
    ("services", services),
    ("probes", probes),
    ("variables", variables),
    ("kinds", kinds),
    ("times", times),
]


def configurations(texts, tether):
    """What `tether config check` says of each task's file and environment, with two of each service that it asks for."""
    trees, _ = read(texts)
    for name, tree in trees.items():
        defaults = {variable.name: variable.get("default") for variable in tree.of("variable")}
        for _, _, task in tasks(tree):
            env = {key: filled(value, defaults) for one in task.of("env") for key, value in one.keys.items()}
            env.pop("PATH", None)
            for template in task.of("template"):
                if template.get("destination") == "local/tether.toml":
                    wrong = config_check(tether, filled(rendered(template.get("data")), defaults), env)
                    if wrong:
                        yield f"configuration: {name}: {task.name}: {wrong}"


def rendered(text, instances=2):
    """A template as so many instances of each service make it."""
    def of_each(found):
        each, _, nobody = found[2].partition("{{ else }}")
        count = min(instances, 1) if re.match(r"1\b", found[1]) else instances
        filled_in = [each.replace("{{ .Address }}", f"10.0.0.{n + 1}").replace("{{ .Port }}", "7000") for n in range(count)]
        return "".join(filled_in) or nobody

    return re.sub(r"{{ range nomadService (.*?) }}(.*?){{ end }}", of_each, text)


def filled(text, defaults):
    """Variables of the job and of Nomad as what may stand there."""
    text = re.sub(r"\$\{var\.(\w+)\}", lambda found: str(defaults[found[1]]), str(text))
    text = re.sub(r"\$\{NOMAD_(ADDR|IP|PORT)_\w+\}", lambda found: AT_RUN_TIME[found[1]], text)
    text = re.sub(r"\$\{NOMAD_\w+_DIR\}", "/alloc", text)
    return re.sub(r"\$\{(?:node|attr|meta)\.[\w.]+\}", "client-1", text)


def check(tether):
    """Says what it looked at and what it found; the number of findings."""
    texts = files()
    findings = broken(texts)
    if tether:
        findings += configurations(texts, tether)
    print(f"nomad: {len(texts)} files, {len(findings)} findings")
    for finding in findings:
        print(f"  {finding}")
    return len(findings)
