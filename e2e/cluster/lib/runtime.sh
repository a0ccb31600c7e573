# shellcheck shell=bash
# A containerd of our own: its root, state and socket are apart from one that the machine may already run.

# Paths that containerd, its shims, the network plugins or the kubelet use whatever their settings say. In our mount namespace an empty
# tmpfs lies over each, so that the machine's own stay as they are.
HIDDEN=(/run/containerd /run/netns /var/lib/cni /var/lib/kubelet /var/log/containers)

# Runs in the new mount namespace. Mounts of the host still arrive here, ours never get out, and all of them go when the last process does.
# Shared on the inside, because the kubelet and its containers pass mounts to each other.
# shellcheck disable=SC2016 # expanded by the shell that runs it
IN_NAMESPACE='
set -eu
mount --make-rshared /
for dir in $HIDDEN_DIRS; do mount -t tmpfs -o mode=0755 longshore "$dir"; done
exec "$@"
'

start_containerd() {
  mkdir -p "$CONFIG/cni" "$ROOT/containerd" "$RUN/containerd"
  cat >"$CONFIG/containerd.toml" <<TOML
version = 2
root = "$ROOT/containerd"
state = "$RUN/containerd"
# CRI is all that is used here.
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]

[grpc]
  address = "$CONTAINERD_SOCKET"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE_IMAGE"
  # Without CAP_SYS_RESOURCE no process may lower its score, and the sandbox asks for just that.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$CONFIG/cni"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = "$RUN/runc"
TOML
  # No portmap: nothing here uses hostPort, and its clean-up runs iptables a dozen times for every pod that goes.
  cat >"$CONFIG/cni/10-longshore.conflist" <<JSON
{
  "cniVersion": "1.0.0",
  "name": "longshore",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "$BRIDGE",
      "isGateway": true,
      "ipMasq": false,
      "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "dataDir": "$RUN/cni",
        "ranges": [[{ "subnet": "$POD_NETWORK", "gateway": "$NODE_ADDRESS" }]],
        "routes": [{ "dst": "0.0.0.0/0" }]
      }
    }
  ]
}
JSON
  local dir
  for dir in "${HIDDEN[@]}"; do
    [[ -d $dir ]] || {
      mkdir -p "$dir"
      echo "$dir" >>"$RUN/made-directories"
    }
  done
  start_process containerd containerd env HIDDEN_DIRS="${HIDDEN[*]}" \
    unshare --mount --propagation slave sh -c "$IN_NAMESPACE" sh containerd --config "$CONFIG/containerd.toml"
}

runtime_ready() { ctr --address "$CONTAINERD_SOCKET" --connect-timeout 1s version >/dev/null 2>&1; }

import_images() {
  local tar
  for tar in "$@"; do
    [[ -f $tar ]] || die "no such file: $tar"
    timeout 300 ctr --address "$CONTAINERD_SOCKET" --namespace k8s.io images import "$tar" >/dev/null ||
      die "containerd could not import $tar; is it an image as written by 'buildah push … docker-archive:' or 'docker save'?"
  done
}

# The one image that the runtime itself needs: every pod's sandbox.
PAUSE_IMAGE=longshore.local/pause:1
# shellcheck disable=SC2034 # imported once containerd answers
build_pause_image() { PAUSE_TAR=$("$HERE/../images/build" pause); }
