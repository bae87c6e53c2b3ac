#!/usr/bin/env bash
# Rents a TPU slice, runs one command of uvit_jax on all of its workers, and deletes the slice: see --help.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
FOLLOW_SECONDS=${UVIT_FOLLOW_SECONDS:-300} # of one connection; between two, the state of the slice is checked
SETTLE_SECONDS=${UVIT_SETTLE_SECONDS:-20}  # for the other workers to end as well, once the first has failed
# Copied to the workers, a few hundred kB.
CODE=(uvit_jax configs pyproject.toml README.md LICENSE)
# shellcheck source=launch/tpu_vm_flags.sh
source "$ROOT/launch/tpu_vm_flags.sh"
# shellcheck source=launch/queued_resource.sh
source "$ROOT/launch/queued_resource.sh"

pack() { # sets VERSION, the name of the code, and RUN, that of the command and the code as given (a branch may move)
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

look_up() { # sets COMMIT to the current one of REF in REPO, read as `git fetch` reads it
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

tracked_files() { # prints those that are not deleted, each with a zero byte after it
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

acquire() { # returns when the slice is ready; deletes and requests again one that was lost
  local shown=""
  while true; do
    queue_state
    case $STATE in
      NOT_FOUND) create ;;
      ACTIVE)
        if nodes_ready; then FAILURES=0 SEEN=1 && return; fi
        if [[ $LOST ]]; then
          say "$NAME was preempted" && delete
        elif [[ $shown != "$STATE" ]]; then
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
      *) [[ $shown == "$STATE" ]] || say "waiting for $NAME: $STATE" ;;
    esac
    shown=$STATE
    pause
  done
}

start() { # fails with 3 if a worker refuses, with another code if workers can't be reached or set up
  say "installing on all workers of $NAME: a minute or two on new machines"
  retry 5 nodes copy >&2 || return
  if [[ $RESTARTING ]]; then retry 5 everywhere stop >&2 || return; fi # on all workers, so that all get the same code
  retry 5 everywhere install "$RUN" "$VERSION" "${REPO:-archive}" "$COMMIT" "$BUCKET" "$MOUNT" >&2 || return
  say "starting: python -m uvit_jax.main $(quoted "${ARGS[@]}")"
  retry 5 everywhere start "$RUN" ${VARIABLES[@]+"${VARIABLES[@]}"} -- "${ARGS[@]}" >&2
}

follow() { # shows the first worker's log; sets OUTCOME to its exit code, "gone", or "lost" with the slice
  local line part running code patience=()
  # With a timeout, as a Ctrl-C just before the wait for a line is seen only after it. Older shells can't distinguish a
  # timeout from the end of the log.
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

compare_code() { # VERSION of the running code
  if [[ $VERSION && $1 != "$VERSION" && ! $COMPARED ]]; then
    say "the run goes on with its code, ${1##* }, and takes ${VERSION##* } when it is restarted: to have that now," \
      "end it with launch/tpu_vm.sh down --name $NAME --zone $ZONE"
  fi
  COMPARED=1
}

judge() { # reports why a run failed: a mistake found by one worker is a lost connection for the others
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
      # A slice from before this command may be running well, and is left alone.
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
