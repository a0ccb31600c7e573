"""documented.py CHART VALUES: every value has a default in values.yaml, a description in the schema, and a line in the README which gives
that default; none of the three has others. VALUES is values.yaml as JSON."""

import json
import re
import sys

chart = sys.argv[1]
with open(sys.argv[2], encoding="utf-8") as file:
    values = json.load(file)
with open(f"{chart}/values.schema.json", encoding="utf-8") as file:
    schema = json.load(file)
with open(f"{chart}/README.md", encoding="utf-8") as file:
    readme = dict(re.findall(r"^\| `([A-Za-z.]+)` \| (.*?) \|", file.read(), re.MULTILINE))
# Where the default is too long for a cell, the README says it in words.
IN_WORDS = {"operator.resources"}


def leaves(node, path):
    for part in node.get("allOf", []):
        node = {**schema["definitions"][part["$ref"].rsplit("/", 1)[1]], **node}
    if "description" not in node and path:
        yield ".".join(path), "has no description"
    properties = node.get("properties")
    if properties is None:
        yield ".".join(path), None
        return
    if node.get("additionalProperties") is not False:
        yield ".".join(path), "accepts unknown values"
    for name, inner in properties.items():
        yield from leaves(inner, [*path, name])


problems, names = [], set()
for name, problem in leaves(schema, []):
    if problem:
        problems.append(f"{name} {problem}")
    elif name != "global":
        names.add(name)


def default(name):
    at = values
    for part in name.split("."):
        if not isinstance(at, dict) or part not in at:
            return None
        at = at[part]
    return at


def defaults(at, path):
    """Values that are no groups of others."""
    inner = ".".join(path)
    if inner in names or not isinstance(at, dict) or (path and not at):
        yield inner
    else:
        for name, value in at.items():
            yield from defaults(value, [*path, name])


problems += [f"{name} is not in README.md" for name in sorted(names - readme.keys())]
problems += [f"{name} is in README.md only" for name in sorted(readme.keys() - names)]
problems += [f"{name} has no default in values.yaml" for name in sorted(names) if default(name) is None]
problems += [f"{name} is in values.yaml, but not in values.schema.json" for name in defaults(values, []) if name not in names]
for name in sorted(readme.keys() & names - IN_WORDS):
    value = default(name)
    text = "`" + (value if isinstance(value, str) and value else json.dumps(value)) + "`"
    if readme[name] != text:
        problems.append(f"README.md says that {name} is {readme[name]}, values.yaml says {text}")
for problem in problems:
    print(problem, file=sys.stderr)
sys.exit(bool(problems))
