#!/usr/bin/env bash
# Rents a TPU slice, runs one command of uvit_jax on all of its workers, and gives the slice back: see --help.
set -euo pipefail

usage() {
  cat <<'HELP'
Runs `python -m uvit_jax.main ARGS` on every worker of a Cloud TPU slice.

  launch/tpu_vm.sh [run] --name NAME --type TYPE --zone ZONE --bucket BUCKET [flags] -- ARGS
  launch/tpu_vm.sh logs|status|down --name NAME --zone ZONE [flags]

run (the default) asks for a queued resource and waits for it, copies and installs this checkout's last commit, mounts
the bucket at /mnt/uvit, starts, shows the first worker's log, asks for a new slice after a preemption, and deletes
everything once the run has ended, well or badly. ARGS without --workdir get --workdir /mnt/uvit/runs/NAME.
The run doesn't need this terminal: after Ctrl-C, a lost connection or from another machine, the same command goes on
with what it finds. Only while the command is there are preempted slices replaced, and finished ones deleted.

  logs    shows the log until the run ends, and changes nothing
  status  says how the slice is and how each worker's run is
  down    deletes the slice, whatever runs on it; the bucket keeps the results

flags, each also an environment variable (--create-flag and --env excepted):
  --name NAME        UVIT_NAME        of the queued resource and of the TPUs
  --type TYPE        UVIT_TYPE        accelerator type, as v5litepod-256, v4-512, v5p-128, v6e-64
  --zone ZONE        UVIT_ZONE
  --project PROJECT  UVIT_PROJECT     gcloud's own by default
  --bucket BUCKET    UVIT_BUCKET      with hierarchical namespace; "none" where ARGS name a folder all workers share
  --mount DIR        UVIT_MOUNT       where workers see the bucket; /mnt/uvit
  --spot             UVIT_SPOT=1      may be preempted; on demand otherwise
  --slices N         UVIT_SLICES      that many slices of TYPE as one run; 1
  --runtime VERSION  UVIT_RUNTIME     image of the TPU VMs; by default the one for TYPE
  --create-flag FLAG                  for `queued-resources create`, as --create-flag=--reserved; repeatable
  --repo URL         UVIT_REPO        code to clone instead of copying this checkout
  --ref REF          UVIT_REF         its branch, tag or whole commit hash, as it is when this command begins; HEAD.
                                      A run that is there goes on with its code, and takes newer when it starts anew
  --dirty            UVIT_DIRTY=1     copy tracked files as they are, changes not committed included
  --env NAME=VALUE                    variable of the program, as HF_TOKEN=...; repeatable
  --max-restarts N   UVIT_MAX_RESTARTS  restarts on the same slice within an hour of each other; 3
  --internal-ip      UVIT_INTERNAL_IP=1  ssh to the workers' internal addresses
  --keep             UVIT_KEEP=1      don't delete at the end
  --dry-run          UVIT_DRY_RUN=1   print every command and run none

Exit code: the program's (0 done, 2 a mistake in ARGS: neither is started again); 2 for a mistake in the flags; 1 where
Google refuses; 130 after Ctrl-C.
HELP
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
FOLLOW_SECONDS=${UVIT_FOLLOW_SECONDS:-300} # of one connection; between two, the state of the slice is looked at
SETTLE_SECONDS=${UVIT_SETTLE_SECONDS:-20}  # for the other workers to end as well, once the first has ended badly
VALUES="NAME TYPE ZONE PROJECT BUCKET MOUNT SLICES RUNTIME REPO REF MAX_RESTARTS"
SWITCHES="SPOT DIRTY INTERNAL_IP KEEP DRY_RUN"
# Copied to the workers: what running takes, a few hundred kB.
CODE=(uvit_jax configs pyproject.toml README.md LICENSE)
# shellcheck source=launch/queued_resource.sh
source "$ROOT/launch/queued_resource.sh"

# --- The command line.

parse() {
  local name variable flag
  ACTION=run
  case ${1:-} in run | logs | status | down) ACTION=$1 && shift ;; esac
  for name in $VALUES $SWITCHES; do
    variable=UVIT_$name
    printf -v "$name" '%s' "${!variable:-}"
    if [[ " $SWITCHES " == *" $name "* && ${!name} == 0 ]]; then printf -v "$name" ''; fi
  done
  CREATE_FLAGS=() VARIABLES=() ARGS=()
  while (($#)); do
    flag=${1%%=*}
    name=$(tr a-z- A-Z_ <<<"${flag#--}")
    case $1 in
      --) shift && ARGS=("$@") && return ;;
      --help | -h) usage && EXPECTED=1 && exit 0 ;;
      --*)
        if [[ " $SWITCHES " == *" $name "* && $1 != *=* ]]; then
          printf -v "$name" 1
        elif [[ " $VALUES CREATE_FLAG ENV " == *" $name "* ]]; then
          if [[ $1 != *=* ]]; then
            (($# > 1)) || die 2 "$flag needs a value"
            shift && set -- "$flag=$1" "${@:2}"
          fi
          case $name in
            CREATE_FLAG) CREATE_FLAGS+=("${1#*=}") ;;
            ENV) VARIABLES+=("${1#*=}") ;;
            *) printf -v "$name" '%s' "${1#*=}" ;;
          esac
        else
          die 2 "$1 is no flag of tpu_vm.sh (--help lists them); the program's own stand behind --"
        fi
        ;;
      *) die 2 "'$1' is no flag of tpu_vm.sh (--help lists them); the program's own stand behind --" ;;
    esac
    shift
  done
}

check() {
  local required="NAME ZONE" name config
  [[ $ACTION != run ]] || required+=" TYPE BUCKET"
  for name in $required; do
    [[ ${!name} ]] || die 2 "--$(tr '[:upper:]' '[:lower:]' <<<"$name") is missing, expected it or UVIT_$name (--help says more)"
  done
  [[ $NAME =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
    die 2 "--name is '$NAME', expected at most 40 small letters, digits and hyphens, the first a letter"
  [[ ${SLICES:=1} =~ ^[1-9][0-9]*$ ]] || die 2 "--slices is '$SLICES', expected a whole number from 1"
  [[ ${MAX_RESTARTS:=3} =~ ^[0-9]+$ ]] || die 2 "--max-restarts is '$MAX_RESTARTS', expected a whole number from 0"
  [[ $DRY_RUN ]] || command -v gcloud >/dev/null || die 2 "there is no gcloud on PATH, expected the Google Cloud CLI"
  NODES=("$NAME")
  if ((SLICES > 1)); then
    NODES=()
    for ((name = 0; name < SLICES; name++)); do NODES+=("$NAME-$name"); done
  fi
  [[ $ACTION == run ]] || return 0

  BUCKET=${BUCKET#gs://} BUCKET=${BUCKET%/}
  [[ ${MOUNT:=/mnt/uvit} == /* ]] || die 2 "--mount is '$MOUNT', expected a path from the root, as /mnt/uvit"
  for name in ${VARIABLES[@]+"${VARIABLES[@]}"}; do
    [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die 2 "--env is '$name', expected NAME=VALUE"
  done
  if [[ -z $RUNTIME ]]; then
    case $TYPE in
      v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
      v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
      v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
      v[234]-*) RUNTIME=tpu-ubuntu2204-base ;;
      *) die 2 "--type is '$TYPE', expected v5litepod-N, v4-N, v5p-N or v6e-N, or another with its --runtime" ;;
    esac
  fi
  config=$(program_flag config)
  [[ $config || $(program_flag workdir) ]] ||
    die 2 "--config is missing behind --, expected as in: -- --config configs/imagenet512.py"
  [[ $BUCKET == none || $(program_flag workdir) ]] || ARGS+=(--workdir "$MOUNT/runs/$NAME")
  if [[ $REPO ]]; then return; fi
  [[ $(git -C "$ROOT" rev-parse -q --verify HEAD 2>&1) =~ ^[0-9a-f]+$ ]] ||
    die 2 "$ROOT is no git checkout, expected one, or --repo URL"
  [[ $DIRTY || -z $(git -C "$ROOT" status --porcelain --untracked-files=no -- "${CODE[@]}") ]] ||
    die 2 "$ROOT has changes that are not committed: commit them, or copy them as they are with --dirty"
  # A config that is there but that git doesn't know, or the reverse, would be missed only on the slice.
  config=${config%%:*}
  [[ -z $config || $config == /* || (-e $ROOT/$config && $(git -C "$ROOT" ls-files -- "$config")) ]] ||
    die 2 "$ROOT has no config file $config that git knows, expected a committed one, as configs/imagenet512.py"
}

program_flag() { # NAME: the value of the program's flag of that name, nothing where it isn't given
  local i
  for ((i = 0; i < ${#ARGS[@]}; i++)); do
    case ${ARGS[i]} in
      --"$1" | -"$1") printf '%s' "${ARGS[i + 1]:-}" && return ;;
      --"$1"=* | -"$1"=*) printf '%s' "${ARGS[i]#*=}" && return ;;
    esac
  done
}

# --- The stages of a run.

pack() { # VERSION becomes the name of the code, RUN of the code as asked for and the command: a branch may move on
  local archive=$TEMPORARY/uvit-code.tar.gz asked=""
  cp "$ROOT/launch/worker.sh" "$TEMPORARY/uvit-worker.sh"
  if [[ $REPO ]]; then
    asked="$REPO ${REF:=HEAD}"
    look_up
    VERSION="$REPO $COMMIT"
    : >"$archive"
  elif [[ $DIRTY ]]; then
    VERSION="$(git -C "$ROOT" rev-parse HEAD) and $(git -C "$ROOT" diff HEAD -- "${CODE[@]}" | cksum)"
    [[ $DRY_RUN ]] || tracked_files | tar -C "$ROOT" -czf "$archive" --null -T -
  else
    VERSION=$(git -C "$ROOT" rev-parse HEAD)
    [[ $DRY_RUN ]] || git -C "$ROOT" archive --format=tar.gz -o "$archive" HEAD -- "${CODE[@]}"
  fi
  RUN=$(printf '%s\n' "${asked:-$VERSION}" ${VARIABLES[@]+"${VARIABLES[@]}"} "${ARGS[@]}" | cksum | tr ' ' -)
}

look_up() { # COMMIT becomes what REF is in REPO now, its meaning the one that `git fetch` gives it
  local found name
  COMMIT=$REF
  if [[ $REF =~ ^[0-9a-fA-F]{40}$ ]]; then return; fi
  if [[ $DRY_RUN ]]; then printf '%s\n' "$(quoted git ls-remote "$REPO" "$REF")" >&3 && return; fi
  found=$(GIT_TERMINAL_PROMPT=0 git ls-remote "$REPO" "$REF" </dev/null 2>"$TEMPORARY/err") ||
    die 2 "--repo is '$REPO', which git can't read: $(sed -n '/^fatal: /{s///p;q;}' "$TEMPORARY/err" | grep . || why)"
  for name in "$REF" "refs/$REF" "refs/tags/$REF" "refs/heads/$REF"; do
    COMMIT=$(awk -v name="$name" '$2 == name {print $1}' <<<"$found")
    if [[ $COMMIT ]]; then return; fi
  done
  die 2 "--ref is '$REF', which $REPO doesn't have, expected a branch, a tag or a whole commit hash of it"
}

tracked_files() { # each with a zero byte behind it, but those that are deleted
  local file
  git -C "$ROOT" ls-files -z -- "${CODE[@]}" | while IFS= read -r -d '' file; do
    if [[ -e $ROOT/$file || -L $ROOT/$file ]]; then printf '%s\0' "$file"; fi
  done
}

check_bucket() {
  [[ $BUCKET != none ]] || return 0
  retry 3 cloud storage buckets describe "gs://$BUCKET" --raw --format 'value(hierarchicalNamespace.enabled)' \
    ${PROJECT:+--project "$PROJECT"} >"$TEMPORARY/out" || die 1 "bucket $BUCKET can't be read: $(why)"
  # A checkpoint becomes complete when its folder is renamed, which other buckets can't do in one move.
  [[ $DRY_RUN || $(<"$TEMPORARY/out") == True ]] || die 2 "bucket $BUCKET has no hierarchical namespace, expected one \
made by: gcloud storage buckets create gs://NAME --location=REGION --uniform-bucket-level-access --enable-hierarchical-namespace"
}

acquire() { # returns once the slice is there; one that was lost is deleted and asked for again
  local told=""
  while true; do
    queue_state
    case $STATE in
      NOT_FOUND) create ;;
      ACTIVE)
        if nodes_ready; then FAILURES=0 SEEN=1 && return; fi
        if [[ $LOST ]]; then
          say "$NAME was preempted" && delete
        elif [[ $told != "$STATE" ]]; then
          say "waiting for the machines of $NAME"
        fi
        ;;
      SUSPENDED) say "$NAME was preempted" && delete ;;
      FAILED)
        tpus queued-resources describe "$NAME" --format 'value(state.failedData.error.message)' >"$TEMPORARY/failure" || true
        delete
        FAILURES=$((FAILURES + 1))
        if [[ $OURS ]] && ((FAILURES > (SEEN ? 5 : 0))); then
          die 1 "Google gave up on $SLICES x $TYPE in $ZONE: $(tail -n 1 "$TEMPORARY/failure")"
        fi
        ;;
      *) [[ $told == "$STATE" ]] || say "waiting for $NAME: $STATE" ;;
    esac
    told=$STATE
    pause
  done
}

start() { # 3 where a worker refuses, another code where workers can't be reached or set up
  say "installing on all workers of $NAME: a minute or two where it is new"
  retry 5 nodes copy >&2 || return
  if [[ $RESTARTING ]]; then retry 5 everywhere stop >&2 || return; fi # all of them, so that all get the same code
  retry 5 everywhere install "$RUN" "$VERSION" "${REPO:-archive}" "$COMMIT" "$BUCKET" "$MOUNT" >&2 || return
  say "starting: python -m uvit_jax.main $(quoted "${ARGS[@]}")"
  retry 5 everywhere start "$RUN" ${VARIABLES[@]+"${VARIABLES[@]}"} -- "${ARGS[@]}" >&2
}

follow() { # shows the first worker's log; OUTCOME becomes its exit code, "gone", or "lost" with the slice
  local line part running code patience=()
  # A Ctrl-C just before the wait for a line is seen only after it. Older shells can't tell a wait from the end.
  if ((BASH_VERSINFO[0] > 3)); then patience=(-t 2); fi
  OUTCOME=""
  while [[ -z $OUTCOME ]]; do
    running="" part=""
    while true; do
      code=0
      IFS= read -r ${patience[@]+"${patience[@]}"} line || code=$?
      if ((code > 128)); then part+=$line && continue; fi
      if ((code)); then break; fi
      line=$part$line part=""
      case $line in
        "uvit-worker: line "*) LINE=${line##* } ;;
        "uvit-worker: code "*) compare_code "${line#uvit-worker: code }" ;;
        "uvit-worker: running") running=1 ;;
        "uvit-worker: gone") OUTCOME=gone ;;
        "uvit-worker: exit "*) OUTCOME=${line##* } ;;
        *) printf '%s\n' "$line" && LINE=$((LINE + 1)) ;;
      esac
    done < <(first follow "$LINE" "$FOLLOW_SECONDS" 2>"$TEMPORARY/ssh")
    if [[ $DRY_RUN ]]; then OUTCOME=0; fi
    if [[ $OUTCOME ]]; then return; fi
    queue_state
    if [[ $STATE != ACTIVE ]] || { ! nodes_ready && [[ $LOST ]]; }; then OUTCOME=lost && return; fi
    if [[ -z $running ]]; then say "the connection broke; the run goes on" && pause; fi
  done
}

compare_code() { # VERSION of what runs
  if [[ $VERSION && $1 != "$VERSION" && ! $COMPARED ]]; then
    say "the run goes on with its code, ${1##* }, and takes ${VERSION##* } when it starts anew: to have that now," \
      "end it with launch/tpu_vm.sh down --name $NAME --zone $ZONE"
  fi
  COMPARED=1
}

judge() { # of a run that ended badly: one worker's mistake is all the others' lost connection
  retry 3 everywhere report "$SETTLE_SECONDS" >"$TEMPORARY/report" || true
  sed -n 's/^uvit-worker: //p' "$TEMPORARY/report" | sort >&2
  if grep -q "^uvit-worker: exit 2," "$TEMPORARY/report"; then OUTCOME=2; fi
}

finish() { # CODE
  if [[ $KEEP ]]; then say "$NAME is kept and costs: launch/tpu_vm.sh down --name $NAME --zone $ZONE"; else delete; fi
  EXPECTED=1
  exit "$1"
}

run() {
  local restarts=0 began code reason
  pack
  check_bucket
  LINE=0 RESTARTING="" OURS="" FAILURES=0
  while true; do
    acquire
    code=0
    start || code=$?
    if ((code)); then
      reason=$(why)
      queue_state
      if [[ $STATE != ACTIVE ]] || { ! nodes_ready && [[ $LOST ]]; }; then continue; fi
      # What was there before this command may be running well, and is not this command's to end.
      [[ $OURS ]] || die $((code == 3 ? 2 : 1)) "$NAME, which was there already, is left as it is: $reason"
      say "the workers of $NAME can't be set up: $reason"
      finish $((code == 3 ? 2 : 1))
    fi
    OURS=1 began=$SECONDS
    follow
    [[ $OUTCOME =~ ^(0|2|lost)$ ]] || judge
    RESTARTING=1
    case $OUTCOME in
      0) say "the run is done" && finish 0 ;;
      2) say "the run ended with a mistake in its command (exit code 2), and is not started again" && finish 2 ;;
      lost) say "$NAME was taken away" && restarts=0 ;;
      *)
        if ((SECONDS - began > 3600)); then restarts=0; fi
        if ((restarts == MAX_RESTARTS)); then
          say "the run ended ($OUTCOME) after $restarts restarts, and is not started again"
          finish "${OUTCOME/gone/1}"
        fi
        restarts=$((restarts + 1))
        say "the run ended ($OUTCOME): restart $restarts of $MAX_RESTARTS, from its newest checkpoint"
        pause
        ;;
    esac
  done
}

logs() {
  LINE=0
  follow
  [[ $OUTCOME =~ ^[0-9]+$ ]] || die 1 "the run on $NAME is $OUTCOME, its slice ${STATE:-ACTIVE}"
  say "the run ended with $OUTCOME"
  EXPECTED=1
  exit "$OUTCOME"
}

status() {
  queue_state
  echo "$NAME: $STATE"
  if [[ $STATE == ACTIVE ]]; then
    retry 3 everywhere report >"$TEMPORARY/report" || die 1 "$(why)"
    sed -n 's/^uvit-worker: //p' "$TEMPORARY/report"
  fi
}

interrupted() {
  EXPECTED=1
  if [[ $ACTION == run ]]; then
    say "interrupted: what runs on $NAME goes on, and costs; the same command goes on with it," \
      "launch/tpu_vm.sh logs --name $NAME --zone $ZONE shows it, and down instead of logs deletes it"
  fi
  exit 130
}

leave() {
  [[ $EXPECTED ]] || say "stopped unexpectedly: $NAME may still be there and cost"
  rm -rf "$TEMPORARY"
}

main() {
  EXPECTED="" STATE="" LOST="" SEEN="" MADE="" VERSION="" COMMIT="" COMPARED=""
  TEMPORARY=$(mktemp -d)
  trap leave EXIT
  trap interrupted INT TERM
  exec 3>&1
  parse "$@"
  check
  case $ACTION in down) delete ;; *) "$ACTION" ;; esac
  EXPECTED=1
}

main "$@"
