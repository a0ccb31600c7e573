"""Every value has a default, a description in the schema, and a line in the README, and the README has no others."""

import json
import re
import sys

chart = sys.argv[1]
with open(f"{chart}/values.schema.json", encoding="utf-8") as file:
    schema = json.load(file)
with open(f"{chart}/README.md", encoding="utf-8") as file:
    readme = set(re.findall(r"^\| `([A-Za-z.]+)` \|", file.read(), re.MULTILINE))


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
problems += [f"{name} is not in README.md" for name in sorted(names - readme)]
problems += [f"{name} is in README.md only" for name in sorted(readme - names)]
for problem in problems:
    print(problem, file=sys.stderr)
sys.exit(bool(problems))
