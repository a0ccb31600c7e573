# shellcheck shell=bash
# The kubelet.

start_kubelet() {
  mkdir -p "$ROOT/kubelet" "$ROOT/volume-plugins" "$LOGS/pods"
  make_cgroups
  # Images are local, so there is nothing to pull, to throttle or to collect. Swap and little free disk are the machine's own business.
  # cgroup v1 still is what some machines have; no isolation of local storage, because measuring it wants more than every file system gives.
  cat >"$CONFIG/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $NODE_ADDRESS
healthzBindAddress: 127.0.0.1
healthzPort: 20248
tlsCertFile: $PKI/kubelet-serving.crt
tlsPrivateKeyFile: $PKI/kubelet-serving.key
authentication:
  anonymous: { enabled: false }
  webhook: { enabled: true }
  x509: { clientCAFile: $PKI/ca.crt }
authorization: { mode: Webhook }
containerRuntimeEndpoint: unix://$CONTAINERD_SOCKET
podLogsDir: $LOGS/pods
volumePluginDir: $ROOT/volume-plugins
clusterDomain: $CLUSTER_DOMAIN
clusterDNS: ["$DNS_SERVICE_ADDRESS"]
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: false
makeIPTablesUtilChains: false
maxPods: $MAX_PODS
oomScoreAdj: 0
kubeAPIQPS: 100
kubeAPIBurst: 200
registryPullQPS: 0
eventRecordQPS: 0
serializeImagePulls: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: { memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%, imagefs.inodesFree: 1% }
nodeStatusUpdateFrequency: 4s
shutdownGracePeriod: 0s
shutdownGracePeriodCriticalPods: 0s
YAML
  # In the runtime's mount namespace: what the kubelet mounts for a pod, the runtime must see.
  start_process kubelet "$BIN/kubelet" nsenter --mount="/proc/$(recorded_pid containerd)/ns/mnt" \
    "$BIN/kubelet" --config "$CONFIG/kubelet.yaml" --kubeconfig "$PKI/kubelet.kubeconfig" --root-dir "$ROOT/kubelet" --cert-dir "$PKI" \
    --hostname-override "$NODE_NAME" --node-ip "$NODE_ADDRESS"
}

# The folders of our cgroup: one in each hierarchy of cgroup v1, or the one in v2.
cgroups() {
  local hierarchy
  if [[ -f $CGROUP_MOUNT/cgroup.controllers ]]; then
    echo "$CGROUP_MOUNT/$CGROUP"
    return
  fi
  for hierarchy in "$CGROUP_MOUNT"/*/; do
    # Names such as cpu,cpuacct also exist as links to the same hierarchy.
    [[ -L ${hierarchy%/} || ! -f $hierarchy/cgroup.procs ]] || echo "$hierarchy$CGROUP"
  done
}

make_cgroups() {
  local dir
  while read -r dir; do mkdir -p "$dir"; done < <(cgroups)
}

node_ready() {
  [[ $(admin get node "$NODE_NAME" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null) == True ]]
}
