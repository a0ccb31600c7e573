"""Runs the cases beside this file: table.py NAMESPACE KUBECTL… The files run side by side, the cases of a file one after the other."""

import json
import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

# A case that gets lost, in a merge or behind a broken separator, is noticed: whoever adds one counts it here.
CASES = {"brokers.yaml": 74, "queues.yaml": 36, "workers.yaml": 48, "workflows.yaml": 59}
NAMESPACE, KUBECTL = sys.argv[1], sys.argv[2:]
ANNOTATION = re.compile(r"^    test\.longshore\.dev/(case|step|expect): (.*)$", re.MULTILINE)


def kubectl(*arguments, text):
    command = [*KUBECTL, "--namespace", NAMESPACE, *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)


def plain(text):
    """A YAML scalar on one line."""
    if text.startswith('"'):
        return json.loads(text)
    if text.startswith("'"):
        return text[1:-1].replace("''", "'")
    return text


def ask(step, text):
    if step == "keep":
        return kubectl("create", "--filename", "-", text=text)
    if step == "replace":
        return kubectl("replace", "--dry-run=server", "--filename", "-", text=text)
    if step == "status":
        # Only the status counts: the rest of the object is there.
        return kubectl("apply", "--server-side", "--force-conflicts", "--subresource=status", "--filename", "-", text=text)
    return kubectl("create", "--dry-run=server", "--filename", "-", text=text)


def problem(expect, answer):
    said = (answer.stderr or answer.stdout).strip()
    if expect == "accepted":
        return None if answer.returncode == 0 and not answer.stderr else f"expected to be accepted, but: {said}"
    wanted = expect.removeprefix("rejected: ")
    if answer.returncode == 0:
        return f"expected to be rejected ({wanted}), but it was accepted"
    return None if wanted in said else f"expected {wanted!r}, but: {said}"


def run(path):
    failed = count = 0
    for text in path.read_text(encoding="utf-8").split("\n---\n"):
        told = {name: plain(value) for name, value in ANNOTATION.findall(text)}
        count += 1
        if not re.fullmatch(r"accepted|rejected: .+", told.get("expect", "")) or "case" not in told:
            wrong = f"the case is incomplete: {text}"
        else:
            wrong = problem(told["expect"], ask(told.get("step"), text))
        if wrong:
            failed += 1
            print(f"FAIL {path.name}: {told.get('case')}: {wrong}", file=sys.stderr)
    if count != CASES.get(path.name):
        failed += 1
        print(f"FAIL {path.name}: {count} cases, not {CASES.get(path.name)}: see CASES in table.py", file=sys.stderr)
    return count, failed


files = sorted(pathlib.Path(__file__).parent.glob("*.yaml"))
with ThreadPoolExecutor() as pool:
    results = list(pool.map(run, files))
count, failed = (sum(column) for column in zip(*results))
print(f"admission: {count} cases, {failed} failed")
if missing := CASES.keys() - {file.name for file in files}:
    sys.exit(f"FAIL not there: {', '.join(sorted(missing))}")
sys.exit(failed > 0)
