"""docs/operations.md names every reason and metric that the code has, and no other."""

import pathlib
import re
import sys

GUIDE = pathlib.Path("docs/operations.md")
# Words of the code that look like reasons and are none: they are Kubernetes' own.
NO_REASONS = {
    "ConfigMap", "ContainerCreating", "IfNotPresent", "OnRootMismatch", "PodInitializing", "PodScheduled", "ProgressDeadlineExceeded", "Progressing",
    "ReadWriteOnce", "ReplicaFailure", "RollingUpdate", "RuntimeDefault", "StatefulSet",
}
# Reasons that are one word stand where a reason is expected; those of several words anywhere in the code.
PLACES = [
    r"Reason::(?:yes|no|unknown)\(\s*\"([A-Za-z]+)\"",
    r"\(\"([A-Z][A-Za-z]+)\", \"[^\"]*\"\)",
    r"=> \"([A-Z][A-Za-z]+)\"",
    r"Some\(\((?:true|false), \"([A-Z][A-Za-z]+)\"",
    r"reason: \"([A-Z][A-Za-z]+)\"",
    r"\"([A-Z][a-z]+(?:[A-Z][a-z]+)+)\"",
]
# Phases that are reasons of the condition Succeeded as well, made by {:?}.
PHASES = {"Pending", "Running", "Suspended", "Finishing", "Succeeded", "Failed", "Cancelled"}
problems = []


def code(folder):
    """The sources without their tests."""
    for path in sorted(pathlib.Path(folder).rglob("*.rs")):
        if not path.stem.endswith("tests") and path.stem != "fixture":
            yield re.split(r"^\s*#\[cfg\(test\)\]\s*\n\s*mod \w+ \{", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[0]


def compare(what, documented, real):
    for name in sorted(real - documented):
        problems.append(f"{what} {name} is not in {GUIDE}")
    for name in sorted(documented - real):
        problems.append(f"{what} {name} is in {GUIDE} only")


def cells(title):
    """The backquoted words in the tables below a title, but for those of the last column, which says what to do."""
    section = GUIDE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    words = set()
    for row in re.findall(r"^\| (.*) \|$", section, re.MULTILINE):
        words.update(re.findall(r"`([^`]+)`", " ".join(re.split(r" ?\| ?", row)[:3])))
    return words


def reasons():
    found = set(PHASES)
    for text in code("operator/src"):
        for place in PLACES:
            found.update(re.findall(place, text))
    return found - NO_REASONS


def metrics():
    found = set()
    for folder, prefix in (("operator/src/metrics.rs", "longshore"), ("worker-sidecar/src/metrics.rs", "longshore_sidecar")):
        text = pathlib.Path(folder).read_text(encoding="utf-8").split("#[cfg(test)]")[0]
        found.update(f"{prefix}_{name}" for name in re.findall(r"(?:register\w*|counter)\(\s*\"([a-z_]+)\"", text))
    return found


words = cells("Reasons") | cells("Metrics")
compare("the reason or category", {word for word in words if word[0].isupper()}, reasons())
# Counters and units have their suffix only where they are read.
plain = {re.sub(r"_total$", "", word) for word in words if word.startswith("longshore_")}
compare("the metric", plain, {name + "_seconds" if name == "longshore_reconcile_duration" else name for name in metrics()})
for problem in problems:
    print(problem, file=sys.stderr)
sys.exit(bool(problems))
