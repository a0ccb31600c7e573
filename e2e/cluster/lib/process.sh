# shellcheck shell=bash
# Long-running processes: started once, recorded with enough to recognise them, stopped by exactly that record.

# A pid alone may have gone to somebody else since; pid and start time together name one process for as long as the machine runs.
start_time() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  # The second field is the command's name in brackets and may hold spaces, so count from the closing bracket.
  stat=${stat##*) }
  # shellcheck disable=SC2086 # the fields are wanted as words
  set -- $stat
  # A zombie runs nothing any more.
  [[ $1 != Z ]] && echo "${20}"
}

# A record: pid, start time, boot (start times count from it), and the executable that it ends up running.
recorded_pid() { local pid rest; read -r pid rest 2>/dev/null <"$RUN/$1.pid" && echo "$pid"; }

boot() { cat /proc/sys/kernel/random/boot_id; }

# Is the process of the record there? In its first moments it may still be the launcher.
recognised() {
  local pid began booted rest
  [[ -f $RUN/$1.pid ]] && read -r pid began booted rest <"$RUN/$1.pid" || return 1
  [[ $booted == "$(boot)" && $(start_time "$pid") == "$began" ]]
}

# Is it there, and is it what was meant to run?
alive() {
  local pid began booted exe actual
  recognised "$1" || return 1
  read -r pid began booted exe <"$RUN/$1.pid"
  actual=$(readlink "/proc/$pid/exe") || return 1
  # A rebuilt binary leaves the old one running under its old name.
  [[ ${actual% (deleted)} == "$exe" ]]
}

# start_process NAME EXECUTABLE COMMAND...: EXECUTABLE is what COMMAND ends up running, after nsenter and the like have replaced themselves.
start_process() {
  local name=$1 exe pid fd tries=0
  exe=$(readlink -f "$(command -v "$2")")
  shift 2
  rm -f "$RUN/$name.pid"
  (
    # Recorded before it does anything, so that nothing is ever running without a record. (Inside of "$(…)" BASHPID would be another.)
    pid=$BASHPID
    echo "$pid $(start_time "$pid") $(boot) $exe" >"$RUN/$name.pid"
    # Its own session and none of our descriptors: it outlives the terminal, and nobody waits for a pipe or a lock that it holds open.
    # (255 is what the shell reads this script from; it closes that itself.)
    for fd in "/proc/$pid/fd"/*; do
      fd=${fd##*/}
      ((fd <= 2 || fd == 255)) || exec {fd}<&- || true
    done
    exec setsid nohup "$@" </dev/null >>"$LOGS/$name.log" 2>&1
  ) &
  until [[ -s $RUN/$name.pid ]]; do
    ((++tries < 100)) || die "could not start $name; the end of its log: $(tail -n 5 "$LOGS/$name.log" 2>/dev/null)"
    sleep 0.05
  done
}

# How a component is asked to end, waited for, and made to.
stop_process() {
  local name=$1 pid tries=0
  if recognised "$name"; then
    pid=$(recorded_pid "$name")
    kill -TERM -- "-$pid" 2>/dev/null || true
    while recognised "$name"; do
      ((++tries < 50)) || kill -KILL -- "-$pid" 2>/dev/null || true
      ((tries < 100)) || die "$name (pid $pid) does not end even when killed; look at /proc/$pid/stack"
      sleep 0.1
    done
  fi
  rm -f "$RUN/$name.pid"
}

# wait_for SECONDS WHAT COMPONENT COMMAND...: gives up at once when the component that must bring it about is gone.
wait_for() {
  local limit=$1 what=$2 name=$3 began=$SECONDS
  shift 3
  until "$@"; do
    if ! recognised "$name"; then
      say "$name ended before $what; the end of $LOGS/$name.log:"
    elif ((SECONDS - began >= limit)); then
      say "not true after $limit s: $what; the end of $LOGS/$name.log:"
    else
      sleep 0.2
      continue
    fi
    tail -n 20 "$LOGS/$name.log" >&2
    exit 1
  done
}
