# shellcheck shell=bash
# Kubernetes and Helm, compiled once from the two Go modules beside this folder and kept outside the checkout.

# File name of the result, module folder, Go package.
BUILDS=(
  "etcd kubernetes go.etcd.io/etcd/server/v3"
  "kube-apiserver kubernetes k8s.io/kubernetes/cmd/kube-apiserver"
  "kube-controller-manager kubernetes k8s.io/kubernetes/cmd/kube-controller-manager"
  "kube-scheduler kubernetes k8s.io/kubernetes/cmd/kube-scheduler"
  "kubelet kubernetes k8s.io/kubernetes/cmd/kubelet"
  "kube-proxy kubernetes k8s.io/kubernetes/cmd/kube-proxy"
  "kubectl kubernetes k8s.io/kubernetes/cmd/kubectl"
  "coredns kubernetes ./dns"
  "helm helm helm.sh/helm/v4/cmd/helm"
)

# Without the version the API server calls itself v0.0.0-master, which a chart's kubeVersion refuses.
version_flags() {
  local package=k8s.io/component-base/version minor=${KUBERNETES_VERSION#v1.}
  echo "-s -w -X $package.gitVersion=$KUBERNETES_VERSION -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*} -X $package.gitTreeState=clean"
}

# Everything that decides what comes out, and nothing else.
binaries_key() {
  {
    cat "$HERE"/kubernetes/go.{mod,sum} "$HERE"/kubernetes/dns/main.go "$HERE"/helm/go.{mod,sum}
    version_flags
    go env GOVERSION 2>/dev/null || true
  } | sha256sum | cut -c1-16
}

BIN=$CACHE/kubernetes/$(binaries_key)/bin

kubectl_path() { if [[ -x $BIN/kubectl ]]; then echo "$BIN/kubectl"; else command -v kubectl || die "no kubectl; run 'cluster install'"; fi; }
helm_path() { if [[ -x $BIN/helm ]]; then echo "$BIN/helm"; else command -v helm || die "no helm; run 'cluster install'"; fi; }

install_binaries() {
  [[ ! -d $BIN ]] || return 0
  command -v go >/dev/null || die "Go is needed to compile Kubernetes; install Go 1.26 or newer and put it on PATH"

  local parent=$CACHE/kubernetes work log entry name module package began=$SECONDS step
  mkdir -p "$parent"
  exec {build_lock}>"$parent/lock"
  flock -w 3600 "$build_lock" || die "another build of Kubernetes holds $parent/lock for an hour already"
  if [[ ! -d $BIN ]]; then
    say "compiling Kubernetes $KUBERNETES_VERSION and Helm with $(go env GOVERSION) (about 10 minutes on 2 cores, a minute when Go's own cache is warm)"
    # A half-built folder never gets the name that counts. Folders that a killed build left are of no use to anybody: we hold the lock.
    rm -rf "$parent"/building.*
    work=$(mktemp -d "$parent/building.XXXXXX")
    log=$work/log
    for entry in "${BUILDS[@]}"; do
      read -r name module package <<<"$entry"
      step=$SECONDS
      # readonly: what runs is what the committed go.sum names. No CGO: the binaries don't care about the machine's libc.
      if ! (cd "$HERE/$module" && CGO_ENABLED=0 GOFLAGS="-mod=readonly -trimpath -buildvcs=false" \
        timeout 3600 nice -n 5 go build -o "$work/bin/$name" -ldflags "$(version_flags)" "$package") >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        die "could not compile $name; see above (a module that cannot be fetched? 'go env GOPROXY' names the source)"
      fi
      say "  $name: $((SECONDS - step)) s"
    done
    mkdir -p "$(dirname "$BIN")"
    mv "$work/bin" "$BIN"
    rm -rf "$work"
    say "compiled in $((SECONDS - began)) s into $BIN"
  fi
  exec {build_lock}>&-
}
