# shellcheck shell=bash
# Storage without a provisioner: a few volumes made in advance, wiped and offered again when a claim lets go of them.

volume_names() {
  local number
  for ((number = 0; number < VOLUME_COUNT; number++)); do printf 'local-%02d\n' "$number"; done
}

volume_manifests() {
  local name
  # The class binds only when a pod comes, as classes of real clusters with node-local disks do. "local" volumes get fsGroup, hostPath doesn't.
  cat <<'YAML'
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: { name: local, annotations: { storageclass.kubernetes.io/is-default-class: "true" } }
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
YAML
  for name in $(volume_names); do
    cat <<YAML
---
apiVersion: v1
kind: PersistentVolume
metadata: { name: $name, labels: { longshore.dev/e2e-volume: "true" } }
spec:
  storageClassName: local
  capacity: { storage: 1Gi }
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  local: { path: $VOLUMES/$name }
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{ key: kubernetes.io/hostname, operator: In, values: [$NODE_NAME] }]
YAML
  done
}

make_volumes() {
  local name
  for name in $(volume_names); do install -d -m 0755 -o 0 -g 0 "$VOLUMES/$name"; done
}

start_volumes() {
  start_process volumes bash bash "$HERE/lib/recycle-volumes" "$BIN/kubectl" "$ADMIN_KUBECONFIG" "$VOLUMES"
}
