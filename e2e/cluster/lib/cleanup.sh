# shellcheck shell=bash
# Removes a cluster, whether it runs, was killed half-way, or is not there at all. Touches nothing that has no record or name of ours.

clean_leftovers() {
  [[ -d $ROOT ]] || return 0
  [[ -d $RUN || -z $(ls -A "$ROOT") ]] || die "$ROOT exists, but is no folder of this script; set LONGSHORE_CLUSTER_ROOT to another path"
  say "stopping what runs from $ROOT"
  kill_components
  kill_shims
  kill_pods
  remove_mounts
  remove_network
  remove_directories
}

# All at once and without a farewell: nothing of their state is kept. Each leads a process group, which takes its helpers along.
kill_components() {
  local name pid
  for name in "${COMPONENTS[@]}"; do
    ! recognised "$name" || kill -KILL -- "-$(recorded_pid "$name")" 2>/dev/null || true
  done
  # A killed process may linger in the kernel for a moment; then its files and mounts would still be busy.
  for name in "${COMPONENTS[@]}"; do
    pid=$(recorded_pid "$name") || continue
    wait_gone "$pid" "$name" recognised "$name"
    rm -f "$RUN/$name.pid"
  done
}

# wait_gone PID NAME CHECK...: ten seconds for a killed process to be gone.
wait_gone() {
  local pid=$1 name=$2 tries=0
  shift 2
  while "$@"; do
    ((++tries < 100)) || die "$name (pid $pid) does not end even when killed; look at /proc/$pid/stack"
    sleep 0.1
  done
}

# A shim outlives its containerd on purpose, and may have a runc at work. Ours are those that were given our socket or our folder.
our_shims() {
  local dir arguments
  for dir in /proc/[0-9]*; do
    case $(readlink "$dir/exe" 2>/dev/null) in */containerd-shim-runc-v2* | */runc*) ;; *) continue ;; esac
    mapfile -d '' -t arguments 2>/dev/null <"$dir/cmdline" || continue
    [[ " ${arguments[*]} " != *" -address $CONTAINERD_SOCKET "* && " ${arguments[*]} " != *" --root $RUN/runc/"* ]] || echo "${dir#/proc/}"
  done
}

kill_shims() {
  local pids tries=0
  while pids=$(our_shims) && [[ -n $pids ]]; do
    ((++tries < 100)) || die "shims do not end even when killed: ${pids//$'\n'/ }"
    # shellcheck disable=SC2086 # the pids are wanted as words
    kill -KILL $pids 2>/dev/null || true
    sleep 0.1
  done
}

our_pod_processes() {
  local dir
  while read -r dir; do
    [[ ! -d $dir ]] || find "$dir" -name cgroup.procs -exec cat {} + 2>/dev/null || true
  done < <(cgroups) | sort -u
}

# Again and again until none is left, because a process may fork between the listing and the kill.
kill_pods() {
  local pids tries=0 dir
  while pids=$(our_pod_processes) && [[ -n $pids ]]; do
    ((++tries < 100)) || die "processes of pods do not end even when killed: ${pids//$'\n'/ }"
    # shellcheck disable=SC2086 # the pids are wanted as words
    kill -KILL $pids 2>/dev/null || true
    sleep 0.1
  done
  # The kernel counts a cgroup as busy for a moment after its last process went.
  while read -r dir; do
    tries=0
    while [[ -d $dir ]]; do
      find "$dir" -depth -type d -exec rmdir {} + 2>/dev/null || true
      ((++tries < 50)) || die "could not remove the cgroup $dir; see which processes it has: find $dir -name cgroup.procs -exec cat {} +"
      [[ ! -d $dir ]] || sleep 0.1
    done
  done < <(cgroups)
}

# Normally none is seen from here: they went with the mount namespace. This is for mounts that somebody made by hand to look around.
remove_mounts() {
  local mount
  while read -r mount; do
    umount -l "$mount" || die "could not unmount $mount"
  done < <(awk -v root="$ROOT/" 'index($5, root) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
}

remove_directories() {
  local dir
  if [[ -f $RUN/made-directories ]]; then
    # Only if still empty: somebody else may have begun to use them.
    while read -r dir; do rmdir "$dir" 2>/dev/null || true; done <"$RUN/made-directories"
  fi
  # The run folder last: it is what a later 'down' recognises the rest by.
  find "$ROOT" -mindepth 1 -maxdepth 1 ! -path "$RUN" -exec rm -rf --one-file-system {} +
  rm -rf --one-file-system "$RUN"
  rmdir "$ROOT"
}
