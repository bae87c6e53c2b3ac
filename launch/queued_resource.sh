# Requests to Google and to the workers of a slice. launch/tpu_vm.sh sources this file and sets the variables.
# shellcheck shell=bash disable=SC2034 # some of its variables are read by tpu_vm.sh alone
# Every command goes through `cloud`, so that a dry run prints them all (on descriptor 3) and runs none.

POLL=${UVIT_POLL_SECONDS:-30}
# Words in gcloud's errors for which another try can't help.
FINAL="NOT_FOUND|PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|ALREADY_EXISTS|[Qq]uota"

say() { printf '%s tpu_vm: %s\n' "$(date +%H:%M:%S)" "$*" >&2; }

die() { # CODE MESSAGE
  EXPECTED=1
  printf 'error: %s\n' "$2" >&2
  exit "$1"
}

pause() { [[ $DRY_RUN ]] || sleep "${1:-$POLL}"; }

quoted() { # prints the arguments as one line that a shell reads as the same arguments
  local argument line="" quote="'" escaped="'\\''"
  for argument in "$@"; do
    [[ $argument =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || argument="'${argument//$quote/$escaped}'"
    line+="$argument "
  done
  printf '%s' "${line% }"
}

cloud() {
  if [[ $DRY_RUN ]]; then printf '%s\n' "$(quoted gcloud "$@")" >&3; else gcloud "$@" </dev/null 3>&-; fi
}

tpus() { # GROUP COMMAND NAME FLAGS...
  cloud compute tpus "$@" --zone "$ZONE" ${PROJECT:+--project "$PROJECT"} --quiet
}

why() { # prints the last command's error: a worker's line, or gcloud's without its preamble
  sed -n 's/^uvit-worker: //p; s/^ERROR: *([^)]*) *//p' "$TEMPORARY/err" | tail -n 1 | grep . ||
    tail -n 1 "$TEMPORARY/err"
}

retry() { # TRIES COMMAND...: tries with longer and longer pauses, unless another try can't help
  local tries=$1 try wait=$POLL code
  shift
  for ((try = 1; ; try++)); do
    code=0
    "$@" 2>"$TEMPORARY/err" || code=$?
    if ((code == 0 || code == 3 || try == tries)) || grep -qE "$FINAL" "$TEMPORARY/err"; then return "$code"; fi
    say "$(why) (try $try of $tries)"
    pause "$wait"
    wait=$((wait < 240 ? wait * 2 : wait))
  done
}

queue_state() { # sets STATE
  if retry 20 tpus queued-resources describe "$NAME" --format 'value(state.state)' >"$TEMPORARY/out"; then
    if [[ $DRY_RUN ]]; then STATE=${STATE:-NOT_FOUND}; else STATE=$(<"$TEMPORARY/out"); fi
  elif grep -q NOT_FOUND "$TEMPORARY/err"; then
    STATE=NOT_FOUND
  else
    die 1 "the state of $NAME can't be read: $(why); what runs there goes on, and the same command finds it again"
  fi
  [[ $STATE == ACTIVE ]] || MADE="" # the next machines of this name are others
}

nodes_ready() { # succeeds if all TPUs of an active request are ready; sets LOST if one is gone for good
  local node state
  LOST=""
  for node in "${NODES[@]}"; do
    state=READY
    retry 5 tpus tpu-vm describe "$node" --format 'value(state)' >"$TEMPORARY/out" ||
      state=$(grep -o NOT_FOUND "$TEMPORARY/err" | tail -n 1)
    [[ $state != READY || $DRY_RUN ]] || state=$(<"$TEMPORARY/out")
    case $state in
      READY) ;;
      PREEMPTED | TERMINATED | STOPPED | STOPPING | DELETING | UNKNOWN) LOST=1 && return 1 ;;
      NOT_FOUND) LOST=$MADE && return 1 ;; # preempted, or not made yet
      *) return 1 ;;                       # being repaired or restarted, or Google does not answer
    esac
  done
  MADE=1
}

create() {
  local flags=(--accelerator-type "$TYPE" --runtime-version "$RUNTIME")
  if ((SLICES > 1)); then flags+=(--node-count "$SLICES" --node-prefix "$NAME"); else flags+=(--node-id "$NAME"); fi
  [[ -z $SPOT ]] || flags+=(--spot)
  say "asking for $SLICES x $TYPE in $ZONE${SPOT:+, spot}"
  if retry 5 tpus queued-resources create "$NAME" "${flags[@]}" ${CREATE_FLAGS[@]+"${CREATE_FLAGS[@]}"} >&2; then
    OURS=1 LINE=1
    if [[ $DRY_RUN ]]; then STATE=ACTIVE; fi
  elif ! grep -q ALREADY_EXISTS "$TEMPORARY/err"; then # still being deleted, or made from another terminal
    die 1 "Google refuses $SLICES x $TYPE in $ZONE: $(why)"
  fi
}

delete() {
  say "deleting $NAME"
  retry 5 tpus queued-resources delete "$NAME" --force >&2 || grep -q NOT_FOUND "$TEMPORARY/err" ||
    die 1 "$NAME is NOT deleted and may go on costing: $(why); try launch/tpu_vm.sh down --name $NAME --zone $ZONE"
}

worker() { # WORKERS COMMAND NODE; without the two ssh options a connection to a lost machine hangs for hours
  tpus tpu-vm ssh "$3" --worker "$1" --command "$2" ${INTERNAL_IP:+--internal-ip} \
    --ssh-flag="-o ServerAliveInterval=15" --ssh-flag="-o ServerAliveCountMax=4"
}

copy() { # NODE
  tpus tpu-vm scp "$TEMPORARY/uvit-worker.sh" "$TEMPORARY/uvit-code.tar.gz" "$1:" --worker all \
    ${INTERNAL_IP:+--internal-ip} --scp-flag="-o ServerAliveInterval=15"
}

nodes() { # COMMAND...: runs it for all TPUs at once, with the name as last argument; fails if one fails
  local node jobs=() job code=0
  if [[ $DRY_RUN || ${#NODES[@]} == 1 ]]; then
    for node in "${NODES[@]}"; do "$@" "$node" || return; done
    return
  fi
  for node in "${NODES[@]}"; do "$@" "$node" & jobs+=($!); done
  for job in "${jobs[@]}"; do wait "$job" || code=$?; done
  return "$code"
}

everywhere() { nodes worker all "$(quoted bash uvit-worker.sh "$@")"; }
first() { worker 0 "$(quoted bash uvit-worker.sh "$@")" "${NODES[0]}"; }
