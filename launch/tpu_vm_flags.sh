# The flags of launch/tpu_vm.sh: their help, their parsing and their checks. tpu_vm.sh sources this file.
# shellcheck shell=bash disable=SC2034,SC2153 # variables are set here by name, and read by the other files

VALUES="NAME TYPE ZONE PROJECT BUCKET MOUNT SLICES RUNTIME REPO REF MAX_RESTARTS"
SWITCHES="SPOT DIRTY INTERNAL_IP KEEP DRY_RUN"

usage() {
  cat <<'HELP'
Runs `python -m uvit_jax.main ARGS` on every worker of a Cloud TPU slice.

  launch/tpu_vm.sh [run] --name NAME --type TYPE --zone ZONE --bucket BUCKET [flags] -- ARGS
  launch/tpu_vm.sh logs|status|down --name NAME --zone ZONE [flags]

run (the default) requests a queued resource and waits for it, copies and installs this checkout's last commit, mounts
the bucket at /mnt/uvit, starts the program, shows the first worker's log, requests a new slice after a preemption, and
deletes the slice when the run has ended or failed. ARGS without --workdir get --workdir /mnt/uvit/runs/NAME.
The run does not need this terminal: after Ctrl-C or a lost connection, the same command continues with the run, also
from another machine. Preempted slices are replaced, and finished ones deleted, only while the command is running.

  logs    shows the log until the run ends, and changes nothing
  status  prints the state of the slice and of the run on each worker
  down    deletes the slice and any run on it; the bucket keeps the results

flags, each also an environment variable (--create-flag and --env excepted):
  --name NAME        UVIT_NAME        of the queued resource and of the TPUs
  --type TYPE        UVIT_TYPE        accelerator type, as v5litepod-256, v4-512, v5p-128, v6e-64
  --zone ZONE        UVIT_ZONE
  --project PROJECT  UVIT_PROJECT     gcloud's own by default
  --bucket BUCKET    UVIT_BUCKET      with hierarchical namespace; "none" if ARGS name a folder that all workers share
  --mount DIR        UVIT_MOUNT       where workers see the bucket; /mnt/uvit
  --spot             UVIT_SPOT=1      may be preempted; on demand otherwise
  --slices N         UVIT_SLICES      that many slices of TYPE as one run; 1
  --runtime VERSION  UVIT_RUNTIME     image of the TPU VMs; by default the one for TYPE
  --create-flag FLAG                  for `queued-resources create`, as --create-flag=--reserved; repeatable
  --repo URL         UVIT_REPO        code to clone instead of copying this checkout
  --ref REF          UVIT_REF         its branch, tag or whole commit hash when this command begins; HEAD. A run that
                                      is going on keeps its code, and takes newer code when it is restarted
  --dirty            UVIT_DIRTY=1     copy tracked files with changes that are not committed
  --env NAME=VALUE                    variable of the program, as HF_TOKEN=...; repeatable
  --max-restarts N   UVIT_MAX_RESTARTS  restarts on the same slice within an hour of each other; 3
  --internal-ip      UVIT_INTERNAL_IP=1  ssh to the workers' internal addresses
  --keep             UVIT_KEEP=1      don't delete at the end
  --dry-run          UVIT_DRY_RUN=1   print every command and run none

Exit code: the program's (0 done, 2 a mistake in ARGS: neither is restarted); 2 for a mistake in the flags; 1 if Google
refuses; 130 after Ctrl-C.
HELP
}

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
          die 2 "$1 is not a flag of tpu_vm.sh (--help lists them); the program's own flags come after --"
        fi
        ;;
      *) die 2 "'$1' is not a flag of tpu_vm.sh (--help lists them); the program's own flags come after --" ;;
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
    die 2 "--config is missing after --, expected as in: -- --config configs/imagenet512.py"
  [[ $BUCKET == none || $(program_flag workdir) ]] || ARGS+=(--workdir "$MOUNT/runs/$NAME")
  if [[ $REPO ]]; then return; fi
  [[ $(git -C "$ROOT" rev-parse -q --verify HEAD 2>&1) =~ ^[0-9a-f]+$ ]] ||
    die 2 "$ROOT is not a git checkout, expected one, or --repo URL"
  [[ $DIRTY || -z $(git -C "$ROOT" status --porcelain --untracked-files=no -- "${CODE[@]}") ]] ||
    die 2 "$ROOT has changes that are not committed: commit them, or copy them as they are with --dirty"
  # Without this check, a config that is not committed would be missed only on the slice.
  config=${config%%:*}
  [[ -z $config || $config == /* || (-e $ROOT/$config && $(git -C "$ROOT" ls-files -- "$config")) ]] ||
    die 2 "$ROOT has no config file $config that git knows, expected a committed one, as configs/imagenet512.py"
}

program_flag() { # NAME: prints the value of the program's flag of that name, nothing without it
  local i
  for ((i = 0; i < ${#ARGS[@]}; i++)); do
    case ${ARGS[i]} in
      --"$1" | -"$1") printf '%s' "${ARGS[i + 1]:-}" && return ;;
      --"$1"=* | -"$1"=*) printf '%s' "${ARGS[i]#*=}" && return ;;
    esac
  done
}
