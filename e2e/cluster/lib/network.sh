# shellcheck shell=bash
# The bridge that pods hang on, what kube-proxy needs of the kernel, and the way back.

# The kubelet sets the first five without being asked, kube-proxy and the bridge plugin the last.
SYSCTLS=(
  vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes
  net/ipv4/ip_forward
)

remember_sysctls() {
  local name
  for name in "${SYSCTLS[@]}"; do
    [[ ! -r /proc/sys/$name ]] || echo "$name $(cat "/proc/sys/$name")"
  done >"$RUN/sysctls"
}

restore_sysctls() {
  local name value
  [[ -f $RUN/sysctls ]] || return 0
  while read -r name value; do
    [[ $(cat "/proc/sys/$name") == "$value" ]] || echo "$value" >"/proc/sys/$name" || say "could not put /proc/sys/$name back to $value"
  done <"$RUN/sysctls"
}

make_network() {
  ! ip link show "$BRIDGE" >/dev/null 2>&1 ||
    die "the interface $BRIDGE exists already, but not from a cluster in $ROOT; is there one in another LONGSHORE_CLUSTER_ROOT? If not: ip link delete $BRIDGE"
  [[ -z $(ip -4 route show root 10.96.0.0/12; ip -4 route show root "$POD_NETWORK") ]] ||
    die "something on this machine uses $POD_NETWORK or $SERVICE_NETWORK already; see: ip route"
  ! nft list table ip kube-proxy >/dev/null 2>&1 ||
    die "the nftables table 'kube-proxy' exists already: another Kubernetes node runs on this machine"
  remember_sysctls
  # From here on the bridge is ours to remove.
  touch "$RUN/network"
  # A fixed hardware address: a bridge otherwise takes that of some port, which changes as pods come and go while they still have the old one cached.
  ip link add "$BRIDGE" address 0a:58:0a:f4:00:01 type bridge stp_state 0 forward_delay 0
  ip address add "$NODE_ADDRESS/${POD_NETWORK#*/}" dev "$BRIDGE"
  ip link set "$BRIDGE" up
  # So that the host reaches Services without a default route too, and no packet for one leaves the machine.
  ip route add "$SERVICE_NETWORK" dev "$BRIDGE" src "$NODE_ADDRESS"
  echo 1 >/proc/sys/net/ipv4/ip_forward

  # A pod that asks a Service is answered by a neighbour on the same bridge, past the host, which would never translate the address back.
  # Either bridged packets pass the packet filter, or the host stands in for every client.
  modprobe br_netfilter 2>/dev/null || true
  [[ ! -d /proc/sys/net/bridge ]] || echo 1 >"/sys/class/net/$BRIDGE/bridge/nf_call_iptables"
}

remove_network() {
  [[ -f $RUN/network ]] || return 0
  local family
  for family in ip ip6; do
    nft delete table "$family" kube-proxy 2>/dev/null || true
  done
  ip link delete "$BRIDGE" 2>/dev/null || true
  restore_sysctls
}

start_kube-proxy() {
  local masquerade_all=true
  [[ ! -d /proc/sys/net/bridge ]] || masquerade_all=false
  # No limits for connection tracking: they would be set for the whole machine.
  cat >"$CONFIG/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: $NODE_NAME
bindAddress: $NODE_ADDRESS
healthzBindAddress: 127.0.0.1:20256
metricsBindAddress: 127.0.0.1:20249
clusterCIDR: $POD_NETWORK
nodePortAddresses: ["$NODE_ADDRESS/32"]
oomScoreAdj: 0
clientConnection: { kubeconfig: $PKI/kube-proxy.kubeconfig, qps: 100, burst: 200 }
conntrack: { maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s }
nftables: { masqueradeAll: $masquerade_all, minSyncPeriod: 100ms, syncPeriod: 30s }
YAML
  start_process kube-proxy "$BIN/kube-proxy" "$BIN/kube-proxy" --config "$CONFIG/kube-proxy.yaml"
}
