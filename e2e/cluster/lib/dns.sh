# shellcheck shell=bash
# CoreDNS as a process of the host, behind a Service without a selector: one image less to build, and it is there before the first pod.

dns_manifests() {
  cat <<YAML
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: longshore-dns }
rules:
- { apiGroups: [""], resources: [services, namespaces, pods, endpoints], verbs: [get, list, watch] }
- { apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [get, list, watch] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: longshore-dns }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: longshore-dns }
subjects: [{ apiGroup: rbac.authorization.k8s.io, kind: User, name: longshore-dns }]
---
apiVersion: v1
kind: Service
metadata: { name: kube-dns, namespace: kube-system, labels: { k8s-app: kube-dns } }
spec:
  clusterIP: $DNS_SERVICE_ADDRESS
  ports:
  - { name: dns, port: 53, protocol: UDP }
  - { name: dns-tcp, port: 53, protocol: TCP }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: kube-dns-host
  namespace: kube-system
  labels: { kubernetes.io/service-name: kube-dns, endpointslice.kubernetes.io/managed-by: longshore-cluster }
addressType: IPv4
endpoints: [{ addresses: ["$NODE_ADDRESS"] }]
ports:
- { name: dns, port: 53, protocol: UDP }
- { name: dns-tcp, port: 53, protocol: TCP }
YAML
}

start_coredns() {
  # Pods have no way out of the machine, so names out there don't exist: an answer at once instead of a timeout. No cache: a Service that a
  # test has just created must not be remembered as absent.
  cat >"$CONFIG/Corefile" <<COREFILE
.:53 {
  bind $NODE_ADDRESS
  errors
  health 127.0.0.1:20080
  ready 127.0.0.1:20181
  kubernetes $CLUSTER_DOMAIN in-addr.arpa {
    kubeconfig $PKI/coredns.kubeconfig
    ttl 0
  }
  template ANY ANY . {
    rcode NXDOMAIN
  }
}
COREFILE
  start_process coredns "$BIN/coredns" "$BIN/coredns" -conf "$CONFIG/Corefile"
}

# Asks for kube-dns.kube-system.svc.cluster.local at the Service's address, which needs CoreDNS, kube-proxy and the API server all at once.
# (Not for kubernetes.default: the length of that first label is a newline, at which the shell would split the packet.)
dns_answers() {
  local header
  header=$(
    exec 2>/dev/null
    exec {socket}<>"/dev/udp/$DNS_SERVICE_ADDRESS/53"
    printf '\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x08kube-dns\x0bkube-system\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01' >&"$socket"
    timeout 1 dd bs=512 count=1 <&"$socket" | od -An -tx1 -N8
  ) || return 1
  # Our id, no error, one question, one answer.
  [[ $header == " 12 34 85 80 00 01 00 01" || $header == " 12 34 85 00 00 01 00 01" ]]
}
