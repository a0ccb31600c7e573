# shellcheck shell=bash
# shellcheck disable=SC2034 # read by the files beside this one
# Names, addresses and paths, and how the script speaks.

KUBERNETES_VERSION=v1.35.4

CACHE=${LONGSHORE_CACHE:-${HOME:-/root}/.cache/longshore}
ROOT=${LONGSHORE_CLUSTER_ROOT:-/var/lib/longshore-cluster}
LOGS=$ROOT/logs
RUN=$ROOT/run
PKI=$ROOT/pki
CONFIG=$ROOT/config
ADMIN_KUBECONFIG=$ROOT/kubeconfig
CONTAINERD_SOCKET=$RUN/containerd.sock
VOLUMES=$ROOT/volumes

NODE_NAME=longshore
BRIDGE=longshore0
# Everything that pods must reach listens on the bridge: 127.0.0.1 is no valid endpoint of a Service.
NODE_ADDRESS=10.244.0.1
POD_NETWORK=10.244.0.0/24
SERVICE_NETWORK=10.96.0.0/16
API_SERVICE_ADDRESS=10.96.0.1
DNS_SERVICE_ADDRESS=10.96.0.10
CLUSTER_DOMAIN=cluster.local
# Below the 253 addresses that the pod network has to give.
MAX_PODS=240
VOLUME_COUNT=${LONGSHORE_VOLUMES:-12}

# All pods live below this cgroup, so that whatever a killed run left can be found and ended without guessing.
CGROUP=longshore-cluster
CGROUP_MOUNT=/sys/fs/cgroup

# In the order in which they start.
COMPONENTS=(containerd etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy coredns volumes)

say() { printf 'cluster: %s\n' "$*" >&2; }
die() {
  say "$*"
  exit 1
}
