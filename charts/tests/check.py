"""Checks the rendered objects on standard input: check.py SET NAMESPACE."""

import sys

from documents import read

CASE, NAMESPACE = sys.argv[1:]
OBJECTS = read(sys.stdin)
problems = []

CLUSTER_SCOPED = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
# Kind and number, per set of values; what is not named must not be there.
EXPECTED = {
    "default": {
        "CustomResourceDefinition": 4, "ClusterRole": 4, "ClusterRoleBinding": 2, "Role": 2, "RoleBinding": 2,
        "ServiceAccount": 2, "Deployment": 1, "Service": 1, "PodDisruptionBudget": 1, "Job": 1,
    },
    "namespaced": {
        "Role": 6, "RoleBinding": 6,
        "ServiceAccount": 2, "Deployment": 1, "Service": 1, "PodDisruptionBudget": 1, "Job": 1,
    },
    "single": {
        "CustomResourceDefinition": 4, "ClusterRole": 3, "ClusterRoleBinding": 1, "Role": 1, "RoleBinding": 1,
        "ServiceAccount": 1, "Deployment": 1, "Service": 1,
    },
    "foreign-accounts": {
        "CustomResourceDefinition": 4, "Deployment": 1, "Service": 1, "PodDisruptionBudget": 1, "Job": 1,
    },
    "foreign-account": {
        "CustomResourceDefinition": 4, "ClusterRole": 4, "ClusterRoleBinding": 2, "Role": 2, "RoleBinding": 2,
        "Deployment": 1, "Service": 1, "PodDisruptionBudget": 1, "Job": 1,
    },
    "everything": {
        "CustomResourceDefinition": 4, "ClusterRole": 2, "Role": 6, "RoleBinding": 6,
        "ServiceAccount": 2, "Deployment": 1, "Service": 1, "Job": 1,
    },
}
# Somebody else makes the account, this chart grants.
FOREIGN_ACCOUNT = {"foreign-account": "operator"}
IMAGES = {
    "everything": {
        "operator": "registry.example.com/patched/operator@sha256:" + "a" * 64,
        "LONGSHORE_SIDECAR_IMAGE": "registry.example.com/patched/sidecar:1",
        "LONGSHORE_BROKER_IMAGE": "registry.example.com/patched/broker:1",
    },
}
DEFAULT_IMAGES = {
    "operator": "longshore.local/longshore-operator:0.1.0",
    "LONGSHORE_SIDECAR_IMAGE": "longshore.local/longshore-worker-sidecar:0.1.0",
    "LONGSHORE_BROKER_IMAGE": "longshore.local/longshore-broker:0.1.0",
}
SETTINGS = {
    "default": {"LONGSHORE_INSTALLATION": "chart-test-chart-test", "LONGSHORE_WATCH_NAMESPACES": "",
                "LONGSHORE_DEFAULT_BROKER": "chart-test/default", "RUST_LOG": "info,kube=warn"},
    # The release's namespace is not watched, so nobody would serve a Broker in it.
    "namespaced": {"LONGSHORE_WATCH_NAMESPACES": "chart-test-a,chart-test-b", "LONGSHORE_DEFAULT_BROKER": ""},
    "everything": {"LONGSHORE_INSTALLATION": "shop", "LONGSHORE_WATCH_NAMESPACES": "chart-test,chart-test-a",
                   "LONGSHORE_DEFAULT_BROKER": "chart-test-a/main", "LONGSHORE_IMAGE_PULL_POLICY": "Always",
                   "RUST_LOG": "debug"},
}
# What each role grants, verb by verb: each of them is used by a call in operator/src, and a further one needs a reason there.
KINDS = ("brokers", "queues", "workers", "workflows")
GRANTS = {
    "operator": {
        "longshore.dev/brokers": "create list watch",
        "longshore.dev/queues": "list patch watch",
        "longshore.dev/workers": "list watch",
        "longshore.dev/workflows": "delete get list patch watch",
        "longshore.dev/brokers/status": "update",
        "longshore.dev/queues/status": "update",
        "longshore.dev/workers/status": "update",
        "longshore.dev/workflows/status": "patch update",
        "apps/deployments": "create get list patch watch",
        "apps/statefulsets": "create get list patch watch",
        "/configmaps": "create get list patch watch",
        "/services": "create get list patch watch",
        "/secrets": "create get patch",
        "/pods": "list patch",
        "events.k8s.io/events": "create patch",
    },
    "leader": {"coordination.k8s.io/leases": "create get update"},
    "cleanup": {"longshore.dev/queues": "get list patch", "longshore.dev/workflows": "get list patch"},
    "cleanup-operator": {"apps/deployments/scale": "get patch"},
    "view": {
        **{f"longshore.dev/{kind}": "get list watch" for kind in KINDS},
        **{f"longshore.dev/{kind}/status": "get" for kind in KINDS},
        "longshore.dev/workers/scale": "get",
    },
    "edit": {
        **{f"longshore.dev/{kind}": "create delete deletecollection patch update" for kind in KINDS},
        "longshore.dev/workers/scale": "patch update",
    },
}


def expect(holds, thing, problem):
    if not holds:
        metadata = thing.get("metadata", {})
        problems.append(f"{thing['kind']} {metadata.get('namespace', '')}/{metadata['name']}: {problem}")


def of(*kinds):
    return [thing for thing in OBJECTS if thing["kind"] in kinds]


def is_hook(thing):
    return "helm.sh/hook" in thing["metadata"].get("annotations", {})


def selects(selector, labels):
    return all(labels.get(name) == value for name, value in selector.items())


def check_counts():
    found = {}
    for thing in OBJECTS:
        found[thing["kind"]] = found.get(thing["kind"], 0) + 1
    if found != EXPECTED[CASE]:
        problems.append(f"kinds are {found}, not {EXPECTED[CASE]}")


def check_metadata(thing):
    metadata = thing["metadata"]
    expect(("namespace" in metadata) != (thing["kind"] in CLUSTER_SCOPED), thing, "namespace")
    limit = 253 if thing["kind"] in CLUSTER_SCOPED | {"Role", "RoleBinding"} else 63
    expect(len(metadata["name"]) <= limit, thing, "name is too long")
    expect(metadata["labels"].get("app.kubernetes.io/managed-by") == "Helm", thing, "labels")
    if thing["kind"] == "CustomResourceDefinition":
        expect(metadata["annotations"].get("helm.sh/resource-policy") == "keep", thing, "would be deleted with the release")


def check_pod(thing):
    template = thing["spec"]["template"]
    spec = template["spec"]
    security = spec["securityContext"]
    expect(security.get("runAsNonRoot") is True and security.get("runAsUser") == 65532, thing, "runs as root")
    expect(security.get("seccompProfile") == {"type": "RuntimeDefault"}, thing, "seccomp profile")
    for field in ("hostNetwork", "hostPID", "hostIPC", "volumes"):
        expect(field not in spec, thing, field)
    for container in spec["containers"] + spec.get("initContainers", []):
        inner = container["securityContext"]
        expect(inner.get("allowPrivilegeEscalation") is False, thing, "privilege escalation")
        expect(inner.get("readOnlyRootFilesystem") is True, thing, "writable root file system")
        expect(inner.get("capabilities") == {"drop": ["ALL"]}, thing, "capabilities")
        expect("privileged" not in inner, thing, "privileged")
        resources = container["resources"]
        expect(resources.get("requests") and "memory" in resources.get("limits", {}), thing, "resources")


def granted(thing):
    """Group and resource, and their verbs in order."""
    verbs = {}
    for rule in thing["rules"]:
        expect(rule.keys() <= {"apiGroups", "resources", "verbs", "resourceNames"}, thing, f"has more than resources: {rule}")
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                verbs.setdefault(f"{group}/{resource}", set()).update(rule["verbs"])
    return {name: " ".join(sorted(those)) for name, those in verbs.items()}


def check_rules(thing):
    purpose = max((one for one in GRANTS if thing["metadata"]["name"].endswith(f"-{one}")), key=len, default=None)
    found, wanted = granted(thing), GRANTS.get(purpose, {})
    for name in sorted(found.keys() | wanted.keys()):
        expect(found.get(name) == wanted.get(name), thing, f"{name}: may {found.get(name)}, should {wanted.get(name)}")
    if purpose in ("leader", "cleanup-operator"):
        expect(thing["kind"] == "Role" and thing["metadata"]["namespace"] == NAMESPACE, thing, "grants elsewhere")
    if purpose == "cleanup-operator":
        (deployment,) = of("Deployment")
        names = [rule.get("resourceNames") for rule in thing["rules"]]
        expect(names == [[deployment["metadata"]["name"]]], thing, f"reaches to {names}")


def check_binding(thing):
    role, subjects = thing["roleRef"], thing["subjects"]
    place = thing["metadata"].get("namespace")
    there = {(other["kind"], other["metadata"].get("namespace"), other["metadata"]["name"]) for other in OBJECTS}
    expect((role["kind"], place if role["kind"] == "Role" else None, role["name"]) in there, thing, f"no {role}")
    for subject in subjects:
        account = ("ServiceAccount", subject["namespace"], subject["name"])
        known = account in there or subject["name"] == FOREIGN_ACCOUNT.get(CASE)
        expect(subject["namespace"] == NAMESPACE and known, thing, f"no {subject}")


def check_grants_of_pods():
    """Whoever runs must be bound to all that it does."""
    wanted = {"Deployment": {"operator", "leader"}, "Job": {"cleanup", "cleanup-operator"}}
    for pod in of(*wanted) if CASE != "foreign-accounts" else []:
        account = pod["spec"]["template"]["spec"]["serviceAccountName"]
        bound = {thing["roleRef"]["name"] for thing in of("RoleBinding", "ClusterRoleBinding")
                 if any(subject["name"] == account for subject in thing["subjects"])}
        for purpose in wanted[pod["kind"]]:
            expect(any(name.endswith(f"-{purpose}") for name in bound), pod, f"{account} has no role {purpose}: {sorted(bound)}")


def check_hooks():
    for thing in filter(is_hook, OBJECTS):
        annotations = thing["metadata"]["annotations"]
        expect(annotations["helm.sh/hook"] == "pre-delete", thing, "hook")
        expect(annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded", thing, "would stay")
    for job in of("Job"):
        spec = job["spec"]
        expect(spec["activeDeadlineSeconds"] == 120 and spec["backoffLimit"] <= 3, job, "may run for long")
        expect(spec["template"]["spec"]["restartPolicy"] == "Never", job, "restart policy")
        expect(spec["template"]["spec"]["containers"][0]["args"] == ["cleanup"], job, "arguments")


def check_deployment():
    (deployment,) = of("Deployment")
    spec, template = deployment["spec"], deployment["spec"]["template"]
    labels, container = template["metadata"]["labels"], template["spec"]["containers"][0]
    selectors = [spec["selector"]["matchLabels"]]
    selectors += [thing["spec"]["selector"] for thing in of("Service")]
    selectors += [thing["spec"]["selector"]["matchLabels"] for thing in of("PodDisruptionBudget")]
    for selector in selectors:
        expect(selects(selector, labels), deployment, f"its pods are not found by {selector}")
        for job in of("Job"):
            expect(not selects(selector, job["spec"]["template"]["metadata"]["labels"]), job, f"is found by {selector}")
    rolling = spec["strategy"]["rollingUpdate"]
    expect((rolling["maxUnavailable"], rolling["maxSurge"]) == (0, 1), deployment, "rollout")
    expect(container["args"] == ["run"], deployment, "arguments")
    expect(container["livenessProbe"]["httpGet"]["path"] == "/healthz", deployment, "liveness")
    expect(container["readinessProbe"]["httpGet"]["path"] == "/readyz", deployment, "readiness")
    environment = {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container["env"]}
    for name, field in (("POD_NAME", "metadata.name"), ("POD_NAMESPACE", "metadata.namespace")):
        expect(environment[name] == {"fieldRef": {"fieldPath": field}}, deployment, name)
    for name, value in IMAGES.get(CASE, DEFAULT_IMAGES).items():
        real = container["image"] if name == "operator" else environment[name]
        expect(real == value, deployment, f"{name} is {real}, not {value}")
    for name, value in SETTINGS.get(CASE, {}).items():
        expect(environment[name] == value, deployment, f"{name} is {environment[name]!r}, not {value!r}")
    if CASE == "everything":
        pod = template["spec"]
        expect(spec["replicas"] == 3 and pod["priorityClassName"] == "system-cluster-critical", deployment, "settings")
        expect(pod["imagePullSecrets"] == [{"name": "registry"}], deployment, "pull secrets")
        expect(pod["topologySpreadConstraints"][0]["topologyKey"] == "topology.kubernetes.io/zone", deployment, "spread")
        expect(labels["example.com/team"] == "platform", deployment, "pod labels")
        expect(pod["serviceAccountName"] == "harbour-master", deployment, "service account")
        for field in ("nodeSelector", "tolerations", "affinity"):
            expect(pod.get(field), deployment, field)
    else:
        spread = template["spec"]["topologySpreadConstraints"]
        expect(all(one["whenUnsatisfiable"] == "ScheduleAnyway" for one in spread) and spread, deployment, "spread")


check_counts()
for thing in OBJECTS:
    check_metadata(thing)
for thing in of("Deployment", "Job"):
    check_pod(thing)
for thing in of("Role", "ClusterRole"):
    check_rules(thing)
for thing in of("RoleBinding", "ClusterRoleBinding"):
    check_binding(thing)
check_grants_of_pods()
check_hooks()
check_deployment()
for problem in problems:
    print(f"{CASE}: {problem}", file=sys.stderr)
sys.exit(bool(problems))
