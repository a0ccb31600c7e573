# shellcheck shell=bash
# One certificate authority and a key pair for every party, made anew with every cluster.

# certificate NAME SUBJECT USAGE [ALTERNATIVE-NAMES]
certificate() {
  local name=$1 subject=$2 usage=$3 names=${4:-}
  {
    echo "basicConstraints=critical,CA:FALSE"
    echo "keyUsage=critical,digitalSignature"
    echo "extendedKeyUsage=$usage"
    [[ -z $names ]] || echo "subjectAltName=$names"
  } >"$PKI/$name.ext"
  openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$PKI/$name.key"
  openssl req -new -key "$PKI/$name.key" -subj "$subject" -out "$PKI/$name.csr"
  openssl x509 -req -in "$PKI/$name.csr" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -days 365 -extfile "$PKI/$name.ext" -out "$PKI/$name.crt" 2>/dev/null
  rm "$PKI/$name.ext" "$PKI/$name.csr"
}

# kubeconfig NAME FILE: the certificates stand inside, so that the file can be copied.
kubeconfig() {
  local name=$1 file=$2
  cat >"$file" <<YAML
apiVersion: v1
kind: Config
clusters:
- name: longshore
  cluster:
    server: https://$NODE_ADDRESS:6443
    certificate-authority-data: $(base64 -w0 <"$PKI/ca.crt")
users:
- name: $name
  user:
    client-certificate-data: $(base64 -w0 <"$PKI/$name.crt")
    client-key-data: $(base64 -w0 <"$PKI/$name.key")
contexts:
- name: longshore
  context: { cluster: longshore, user: $name }
current-context: longshore
YAML
}

make_pki() {
  local old_umask
  old_umask=$(umask)
  umask 077
  mkdir -p "$PKI" "$CONFIG"
  openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$PKI/ca.key"
  openssl req -x509 -new -key "$PKI/ca.key" -subj "/CN=longshore-cluster" -days 365 -out "$PKI/ca.crt" \
    -addext "keyUsage=critical,digitalSignature,keyCertSign,cRLSign"
  openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$PKI/service-account.key"
  openssl pkey -in "$PKI/service-account.key" -pubout -out "$PKI/service-account.pub"

  local services=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.$CLUSTER_DOMAIN
  certificate kube-apiserver "/CN=kube-apiserver" serverAuth \
    "$services,DNS:localhost,IP:127.0.0.1,IP:$NODE_ADDRESS,IP:$API_SERVICE_ADDRESS"
  # The API server verifies the kubelet when it fetches logs or runs exec.
  certificate kubelet-serving "/O=system:nodes/CN=system:node:$NODE_NAME" serverAuth "DNS:$NODE_NAME,IP:$NODE_ADDRESS"
  certificate kubelet-client "/CN=kube-apiserver-kubelet-client" clientAuth
  # Only this name may speak for others (aggregated APIs), although the same authority signs everybody.
  certificate front-proxy "/CN=front-proxy" clientAuth
  certificate admin "/O=system:masters/CN=longshore-admin" clientAuth
  certificate kube-controller-manager "/CN=system:kube-controller-manager" clientAuth
  certificate kube-scheduler "/CN=system:kube-scheduler" clientAuth
  certificate kubelet "/O=system:nodes/CN=system:node:$NODE_NAME" clientAuth
  certificate kube-proxy "/CN=system:kube-proxy" clientAuth
  certificate coredns "/CN=longshore-dns" clientAuth

  local name
  for name in kube-controller-manager kube-scheduler kubelet kube-proxy coredns; do
    kubeconfig "$name" "$PKI/$name.kubeconfig"
  done
  kubeconfig admin "$ADMIN_KUBECONFIG"
  umask "$old_umask"
}
