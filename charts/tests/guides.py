"""What the guides say can be done: guides.py CLUSTER OUT. Checks links, paths, make targets and commands, and writes the manifests to OUT.

CLUSTER is the command that has `kubectl` and `helm`; a command is shown to them with --help, which knows every subcommand and flag and
asks no server.
"""

import pathlib
import re
import shlex
import subprocess
import sys

CLUSTER, OUT = sys.argv[1], pathlib.Path(sys.argv[2])
GUIDES = [pathlib.Path("README.md"), pathlib.Path("charts/longshore/README.md"), *sorted(pathlib.Path("docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
MAKE = re.compile(r"(?:^|`)make ([a-z][a-z0-9-]*)", re.MULTILINE)
PATH = re.compile(r"`((?:charts|crds|docs|drivers|e2e|operator|worker-sidecar)/[\w./-]*)`")
# A file of the code map stands under the folder that its line or section names.
FILE = re.compile(r"`((?:\w+/)?\w+\.rs)`")
TARGET = re.compile(r"^([a-z][a-z0-9-]*):", re.MULTILINE)
# Commands that are not kubectl's, helm's or make's, and who runs them.
OTHERS = {
    "curl": "the scenarios run what is marked `run: outside`; the sidecar's own API is tested in worker-sidecar/tests",
    "kill": "with curl",
    "redis-cli": "drivers/src/redis/tests runs the examples of docs/wire-format-redis.md",
}
problems, manifests = [], []


def commands(block):
    """Simple commands of a shell block, also those inside of $(…)."""
    text = re.sub(r"\\\n", " ", block)
    text = re.sub(r"^\s*[A-Z]+=\$\((.*)\)\s*$", r"\1", text, flags=re.MULTILINE)
    for line in text.splitlines():
        if re.fullmatch(r"\s*([A-Z]+=\S+)?\s*", line):
            continue
        words = shlex.split(line, comments=True)
        command = []
        for word in [*words, "|"]:
            if word in ("|", "&", "&&", ";"):
                if command:
                    yield command
                command = []
            elif not re.match(r"[0-9]?>", word):
                command.append(word)


def check_command(guide, command):
    name, *arguments = command
    if name in ("kubectl", "helm"):
        asked = subprocess.run([CLUSTER, name, *arguments, "--help"], capture_output=True, text=True, timeout=60, check=False)
        if asked.returncode:
            problems.append(f"{guide}: {' '.join(command)}: {(asked.stderr or asked.stdout).strip().splitlines()[0]}")
        for file in re.findall(r"(?:docs|charts)/\S+", " ".join(arguments)):
            if not pathlib.Path(file).exists():
                problems.append(f"{guide}: {' '.join(command)}: there is no {file}")
    elif name not in ("make", "base64") and name not in OTHERS:
        problems.append(f"{guide}: nobody runs {name!r}: test it, or say in OTHERS who does")


targets = set(TARGET.findall(pathlib.Path("Makefile").read_text(encoding="utf-8")))
for guide in GUIDES:
    text = guide.read_text(encoding="utf-8")
    prose = BLOCK.sub("", text)
    for link in LINK.findall(prose):
        if "://" not in link and not (guide.parent / link).exists():
            problems.append(f"{guide}: the link {link} leads nowhere")
    for path in PATH.findall(prose):
        if guide.parent.name != "adr" and not pathlib.Path(path).exists():
            problems.append(f"{guide}: there is no {path}")
    for path in FILE.findall(prose):
        if guide.parent.name != "adr" and not any(pathlib.Path().glob(f"[c-w]*/**/src/**/{path}")):
            problems.append(f"{guide}: there is no source file {path}")
    blocks = BLOCK.findall(text)
    if text.count("```") != 2 * len(blocks):
        problems.append(f"{guide}: a block of code is not closed")
    code = [*re.findall(r"`make [^`]*`", prose), *(body for kind, body in blocks if kind == "sh")]
    for target in {target for part in code for target in MAKE.findall(part)} - targets:
        problems.append(f"{guide}: there is no make target {target}")
    for kind, body in blocks:
        if kind == "sh":
            for command in commands(body):
                check_command(guide, command)
        elif kind == "python":
            compile(body, str(guide), "exec")
        elif kind == "yaml" and "apiVersion:" in body:
            manifests.append(body)

if len(manifests) < 1:
    problems.append("no manifest was found: is README.md what it was?")
OUT.write_text("---\n".join(manifests), encoding="utf-8")
for problem in problems:
    print(problem, file=sys.stderr)
sys.exit(bool(problems))
