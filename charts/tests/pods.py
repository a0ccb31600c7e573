"""The pods that the Workers on standard input describe, as a List."""

import json
import sys

from documents import read

pods = []
for worker in read(sys.stdin):
    if worker["kind"] == "Worker":
        pod = dict(worker["spec"]["template"], apiVersion="v1", kind="Pod")
        pod["metadata"] = {"name": worker["metadata"]["name"], **pod.get("metadata", {})}
        pods.append(pod)
json.dump({"apiVersion": "v1", "kind": "List", "items": pods}, sys.stdout)
