#!/usr/bin/env bash
# What launch/tpu_vm.sh runs on each worker of a TPU slice, over ssh: installs, starts, stops, shows the log.
#
#   worker.sh install RUN VERSION SOURCE REF BUCKET MOUNT   VERSION as installed, or RUN goes on: nothing to do
#   worker.sh start RUN [NAME=VALUE ...] -- ARGS...         python -m uvit_jax.main ARGS, which outlives this connection
#   worker.sh stop                                          SIGTERM, and SIGKILL to what is left a while later
#   worker.sh follow LINE SECONDS                           the log from LINE on (0: its last lines), then how it ended
#   worker.sh report [SECONDS]                              one line: how the run is, once it ended or SECONDS later
#
# Everything lies in ~/uvit: code/ venv/ run.log run.id run.pid run.exit (the code it ended with). Lines for the launcher
# begin with "uvit-worker: "; exit code 3 means refused, for a reason that another try doesn't mend.
# shellcheck disable=SC2329 # functions are called by name, at the end
set -euo pipefail

SELF=$(realpath "$0")
STOP_SECONDS=${UVIT_STOP_SECONDS:-120} # a checkpoint is written meanwhile
mkdir -p "$HOME/uvit"
cd "$HOME/uvit"
export PATH=$HOME/.local/bin:$PATH

install() {
  local run=$1 version=$2 source=$3 ref=$4 bucket=$5 mount=$6
  printf '%s\n' "$bucket" "$mount" >bucket
  if [[ -e installed && $(<installed) == "$version" ]]; then return; fi
  if running; then
    [[ $(<run.id) == "$run" ]] || refuse_beside
    return # with the code it has: what is called main may be something else by now
  fi
  if [[ $bucket != none ]] && ! command -v gcsfuse >/dev/null; then install_gcsfuse; fi
  # The images of TPU VMs have a Python older than 3.11.
  if ! command -v uv >/dev/null; then curl -LsSf --retry 5 https://astral.sh/uv/install.sh | sh; fi
  rm -rf installed code code.new
  mkdir code.new
  if [[ $source == archive ]]; then
    tar -xzf "$HOME/uvit-code.tar.gz" -C code.new
  else
    git -C code.new init -q
    git -C code.new fetch -q --depth 1 "$source" "$ref"
    git -C code.new checkout -q FETCH_HEAD
  fi
  mv code.new code
  [[ -e venv/bin/python ]] || uv venv -q --python 3.12 venv
  uv pip install -q --python venv/bin/python "./code[tpu]"
  echo "$version" >installed
}

install_gcsfuse() {
  local keyring=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
  curl -LsSf --retry 5 "$packages/doc/apt-key.gpg" | sudo tee "$keyring" >/dev/null
  echo "deb [signed-by=$keyring] $packages gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  # A fresh machine updates itself, and holds the lock while it does.
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
  sudo apt-get -qq -y -o DPkg::Lock::Timeout=600 install gcsfuse
}

# Metadata isn't cached: gcsfuse keeps it a minute, and on most TPU machines for ever, but the hosts of a run wait for
# each other's files. Writes are staged, not streamed: only then does fsync put a file into the bucket, and lines of
# metrics.jsonl that aren't there yet go down with a preempted machine.
mount_bucket() {
  local bucket mount
  bucket=$(sed -n 1p bucket)
  mount=$(sed -n 2p bucket)
  if [[ $bucket == none ]] || mountpoint -q "$mount"; then return; fi
  sudo mkdir -p "$mount"
  sudo chown "$(id -u):$(id -g)" "$mount"
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    --enable-streaming-writes=false "$bucket" "$mount" >gcsfuse.log 2>&1 || {
    tail -n 5 gcsfuse.log >&2
    refuse "bucket $bucket can't be mounted at $mount: has the machines' service account a role on it that may write?"
  }
}

start() {
  local run=$1 variables=()
  shift
  while [[ $1 != -- ]]; do
    variables+=("$1")
    shift
  done
  shift
  if running; then
    [[ $(<run.id) == "$run" ]] || refuse_beside
    return
  fi
  mount_bucket
  rm -f run.exit
  echo "$run" >run.id
  setsid env ${variables[@]+"${variables[@]}"} bash "$SELF" supervise "$@" >>run.log 2>&1 </dev/null &
  echo $! >run.pid
}

# The program as a child: a signal reaches it alone, and its exit code is written down whatever happens.
supervise() {
  local child code=0 signalled=1
  cd code
  ../venv/bin/python -m uvit_jax.main "$@" &
  child=$!
  # It may have ended already, and its code is yet to be written down.
  trap 'signalled=1; kill -TERM "$child" 2>/dev/null || true' TERM
  # A signal ends `wait` too, while the program is still saving.
  while ((signalled)); do
    signalled=0 code=0
    wait "$child" || code=$?
  done
  echo "$code" >../run.exit.new
  mv ../run.exit.new ../run.exit
}

running() {
  # A number left over from before a reboot may be another process's now.
  [[ -e run.pid && ! -e run.exit ]] && grep -qa worker.sh "/proc/$(<run.pid)/cmdline" 2>/dev/null
}

stop() {
  local pid deadline=$((SECONDS + STOP_SECONDS))
  running || return 0
  pid=$(<run.pid)
  kill -TERM "$pid" 2>/dev/null || true
  while running && ((SECONDS < deadline)); do sleep 0.2; done
  # The whole session, processes that read data included.
  kill -KILL -- "-$pid" 2>/dev/null || true
  [[ -e run.exit ]] || echo 137 >run.exit
}

follow() {
  local line=$1 seconds=$2 lines
  touch run.log
  if ((line == 0)); then
    lines=$(wc -l <run.log)
    line=$((lines > 100 ? lines - 99 : 1))
  fi
  echo "uvit-worker: line $line"
  [[ ! -e installed ]] || echo "uvit-worker: code $(<installed)"
  if running; then
    timeout "$seconds" tail -s 0.2 -n "+$line" -f --pid="$(<run.pid)" run.log || true
  else
    tail -n "+$line" run.log
  fi
  [[ -z $(tail -c 1 run.log) ]] || echo
  echo "uvit-worker: $(state)"
}

state() {
  if running; then
    echo "running"
  elif [[ -e run.exit ]]; then
    echo "exit $(<run.exit)"
  else
    echo "gone" # no process, no exit code: the machine was started anew, or nothing ever ran
  fi
}

report() {
  local deadline=$((SECONDS + ${1:-0}))
  while ((SECONDS < deadline)) && running; do sleep 0.2; done
  echo "uvit-worker: $(state), $(hostname): $(tail -n 1 run.log 2>/dev/null)"
}

refuse_beside() {
  refuse "other code or another command runs there already: end it with launch/tpu_vm.sh down, or take another --name"
}

refuse() {
  echo "uvit-worker: $1" >&2
  exit 3
}

# Read as one: a newer copy of this file may take its place while a run is supervised.
{
  "$@"
  exit
}
