# shellcheck shell=bash
# etcd, the API server, and the two that work through it.

start_etcd() {
  local fsync=(--unsafe-no-fsync)
  # Functional tests gain time without fsync; whoever measures latency wants it.
  [[ ${LONGSHORE_ETCD_FSYNC:-0} != 1 ]] || fsync=()
  # Loopback, and ports of its own: pods can't reach it, and an etcd that somebody develops with stays undisturbed.
  start_process etcd "$BIN/etcd" "$BIN/etcd" --name longshore --data-dir "$ROOT/etcd" "${fsync[@]}" \
    --listen-client-urls http://127.0.0.1:22379 --advertise-client-urls http://127.0.0.1:22379 \
    --listen-peer-urls http://127.0.0.1:22380 --initial-advertise-peer-urls http://127.0.0.1:22380 \
    --initial-cluster longshore=http://127.0.0.1:22380 --snapshot-count 10000 --log-level warn
}

start_kube-apiserver() {
  # Anonymous requests: health and nothing else.
  cat >"$CONFIG/authentication.yaml" <<'YAML'
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions: [{ path: /livez }, { path: /readyz }, { path: /healthz }]
YAML
  start_process kube-apiserver "$BIN/kube-apiserver" "$BIN/kube-apiserver" \
    --etcd-servers http://127.0.0.1:22379 \
    --bind-address "$NODE_ADDRESS" --advertise-address "$NODE_ADDRESS" --secure-port 6443 \
    --cert-dir "$PKI" --tls-cert-file "$PKI/kube-apiserver.crt" --tls-private-key-file "$PKI/kube-apiserver.key" \
    --client-ca-file "$PKI/ca.crt" --authentication-config "$CONFIG/authentication.yaml" --authorization-mode Node,RBAC \
    --enable-admission-plugins NodeRestriction --allow-privileged \
    --service-cluster-ip-range "$SERVICE_NETWORK" \
    --service-account-issuer "https://kubernetes.default.svc.$CLUSTER_DOMAIN" \
    --service-account-key-file "$PKI/service-account.pub" --service-account-signing-key-file "$PKI/service-account.key" \
    --kubelet-certificate-authority "$PKI/ca.crt" \
    --kubelet-client-certificate "$PKI/kubelet-client.crt" --kubelet-client-key "$PKI/kubelet-client.key" \
    --kubelet-preferred-address-types InternalIP \
    --requestheader-client-ca-file "$PKI/ca.crt" --requestheader-allowed-names front-proxy --requestheader-username-headers X-Remote-User \
    --requestheader-group-headers X-Remote-Group --requestheader-extra-headers-prefix X-Remote-Extra- \
    --proxy-client-cert-file "$PKI/front-proxy.crt" --proxy-client-key-file "$PKI/front-proxy.key" --profiling=false
}

# The default account of a new namespace, its CA and its quota come from here, so tests wait for its queues more than for anything else.
start_kube-controller-manager() {
  start_process kube-controller-manager "$BIN/kube-controller-manager" "$BIN/kube-controller-manager" \
    --kubeconfig "$PKI/kube-controller-manager.kubeconfig" --leader-elect=false \
    --authentication-kubeconfig "$PKI/kube-controller-manager.kubeconfig" --authorization-kubeconfig "$PKI/kube-controller-manager.kubeconfig" \
    --bind-address 127.0.0.1 --secure-port 20257 --tls-cert-file "$PKI/kube-apiserver.crt" --tls-private-key-file "$PKI/kube-apiserver.key" \
    --use-service-account-credentials --service-account-private-key-file "$PKI/service-account.key" --root-ca-file "$PKI/ca.crt" \
    --cluster-signing-cert-file "$PKI/ca.crt" --cluster-signing-key-file "$PKI/ca.key" \
    --flex-volume-plugin-dir "$ROOT/volume-plugins" --pvclaimbinder-sync-period 2s \
    --kube-api-qps 100 --kube-api-burst 200 --concurrent-deployment-syncs 10 --concurrent-replicaset-syncs 10 \
    --concurrent-namespace-syncs 20 --concurrent-gc-syncs 20 --concurrent-endpoint-syncs 10 --concurrent-serviceaccount-token-syncs 10 \
    --profiling=false
}

start_kube-scheduler() {
  # A pod that waits for its volume is tried again after two seconds at most instead of ten.
  cat >"$CONFIG/kube-scheduler.yaml" <<YAML
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
leaderElection: { leaderElect: false }
clientConnection: { kubeconfig: $PKI/kube-scheduler.kubeconfig, qps: 100, burst: 200 }
podMaxBackoffSeconds: 2
YAML
  start_process kube-scheduler "$BIN/kube-scheduler" "$BIN/kube-scheduler" --config "$CONFIG/kube-scheduler.yaml" \
    --authentication-kubeconfig "$PKI/kube-scheduler.kubeconfig" --authorization-kubeconfig "$PKI/kube-scheduler.kubeconfig" \
    --bind-address 127.0.0.1 --secure-port 20259 --tls-cert-file "$PKI/kube-apiserver.crt" --tls-private-key-file "$PKI/kube-apiserver.key"
}

admin() { "$BIN/kubectl" --kubeconfig "$ADMIN_KUBECONFIG" --request-timeout=10s "$@"; }
api_ready() { admin get --raw /readyz >/dev/null 2>&1; }
default_account_exists() {
  admin -n default get serviceaccount/default configmap/kube-root-ca.crt >/dev/null 2>&1
}

# What an installer would add: the rights of the parts that have no built-in role, the DNS Service, and the storage class.
apply_manifests() {
  local log=$LOGS/manifests.log
  {
    cat <<YAML
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: longshore-kubelet-api }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:kubelet-api-admin" }
subjects: [{ apiGroup: rbac.authorization.k8s.io, kind: User, name: kube-apiserver-kubelet-client }]
---
YAML
    dns_manifests
    echo ---
    volume_manifests
  } >"$CONFIG/manifests.yaml"
  admin create -f "$CONFIG/manifests.yaml" >"$log" 2>&1 || {
    cat "$log" >&2
    die "the API server refused $CONFIG/manifests.yaml"
  }
}
