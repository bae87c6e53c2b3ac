#!/usr/bin/env bash
# Installs, starts and stops a run on one worker of a TPU slice, and shows its log. launch/tpu_vm.sh runs it over ssh.
#
#   worker.sh install RUN VERSION SOURCE REF BUCKET MOUNT   installs VERSION, unless it is there or RUN is running
#   worker.sh start RUN [NAME=VALUE ...] -- ARGS...         starts python -m uvit_jax.main ARGS, detached from ssh
#   worker.sh stop                                          sends SIGTERM, and later SIGKILL to remaining processes
#   worker.sh follow LINE SECONDS                           prints the log from LINE on (0: its last lines), then the state
#   worker.sh report [SECONDS]                              prints one line of state, when the run ends or after SECONDS
#
# All files are in ~/uvit: code/ venv/ run.log run.id run.pid run.exit (the exit code). Lines for the launcher begin with
# "uvit-worker: ". Exit code 3 means refused, for a reason that another try does not change.
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
    return # the run keeps its code: a branch may have moved since it started
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
  # A new machine updates itself, and holds the lock meanwhile.
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
  sudo apt-get -qq -y -o DPkg::Lock::Timeout=600 install gcsfuse
}

# Without metadata caches: gcsfuse keeps metadata for a minute, on most TPU machines for ever, but the hosts of a run
# wait for each other's files. Without streaming writes: only staged writes reach the bucket on fsync, and a preempted
# machine loses lines of metrics.jsonl that have not.
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
    refuse "bucket $bucket can't be mounted at $mount: does the machines' service account have a role with write access to it?"
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

# Runs the program as a child, so that a signal reaches it alone and its exit code is always written down.
supervise() {
  local child code=0 signalled=1
  cd code
  ../venv/bin/python -m uvit_jax.main "$@" &
  child=$!
  # The child may have ended already, before its exit code is written down.
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
  # After a reboot the number may belong to another process.
  [[ -e run.pid && ! -e run.exit ]] && grep -qa worker.sh "/proc/$(<run.pid)/cmdline" 2>/dev/null
}

stop() {
  local pid deadline=$((SECONDS + STOP_SECONDS))
  running || return 0
  pid=$(<run.pid)
  kill -TERM "$pid" 2>/dev/null || true
  while running && ((SECONDS < deadline)); do sleep 0.2; done
  # The whole session, with the processes that read data.
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
    echo "gone" # no process and no exit code: the machine was restarted, or nothing ever ran
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

# One block, read as a whole: a newer copy of this file may replace it while a run is supervised.
{
  "$@"
  exit
}
