#!/usr/bin/env bash
# Runs one command of uvit_jax on the GPUs of a Slurm cluster, and resumes it after a time limit or a preemption.
#
#   sbatch --nodes=4 launch/slurm.sh --config configs/imagenet512.py --workdir /shared/runs/in512
#   launch/slurm.sh --dry-run --config ...     prints the command that the job would run, and runs nothing
#
# Submit it from the checkout. All arguments go to `python -m uvit_jax.main`. sbatch's own flags and variables override
# the #SBATCH lines below: --partition or SBATCH_PARTITION, --account or SBATCH_ACCOUNT, --qos, --time, --constraint.
# For nodes with other than 8 GPUs, give both numbers: --gpus-per-node=4 --ntasks-per-node=4. The workdir and the data
# are folders that all nodes see.
#
# Each GPU has its own process, which sees all GPUs of its node and takes the one numbered SLURM_LOCALID. With
# --gpus-per-task or --gpu-bind a process sees its own GPUs only, and takes all of them.
#
# UVIT_VENV          the virtual environment, default .venv of the checkout; "none" for the python on PATH
# UVIT_SETUP         a shell line that runs first, as "module load cuda"
# UVIT_MAX_RESTARTS  restarts after crashes within one allocation, default 3
#
# Exit codes of the program: 0 (done) and 2 (a mistake in the command) end the job. 143 means that a checkpoint was
# saved after a signal: the job is requeued if the signal came from the time limit or a preemption, and ends if it came
# from scancel. Any other code is a crash: the program is restarted on the same nodes, or requeued if the time limit is
# near. --job sample saves nothing after a signal and begins anew each time: one that takes longer than --time never ends.
#
#SBATCH --job-name=uvit
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
set -euo pipefail

DRY_RUN=""
if [[ ${1:-} == --dry-run ]]; then DRY_RUN=1 && shift; fi
MAX_RESTARTS=${UVIT_MAX_RESTARTS:-3}

die() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

[[ " $*" == *" --config"* || " $*" == *" --workdir"* ]] ||
  die "--config is missing, expected as in: sbatch launch/slurm.sh --config configs/imagenet512.py"
[[ $MAX_RESTARTS =~ ^[0-9]+$ ]] || die "UVIT_MAX_RESTARTS is '$MAX_RESTARTS', expected a whole number from 0"
# sbatch copies this file elsewhere; the job begins in the folder it was submitted from.
cd "${SLURM_SUBMIT_DIR:-.}"
[[ -e uvit_jax/main.py ]] || die "$PWD is not a checkout of uvit_jax, expected to be submitted from one"
VENV=${UVIT_VENV:-.venv}
[[ $VENV == none || $DRY_RUN || -e $VENV/bin/activate ]] ||
  die "there is no virtual environment $VENV, expected one with pip install '.[cuda]' done, or UVIT_VENV"

# One task that ends does not end the others (as on some sites): they may be writing the same checkpoint.
COMMAND=(srun --kill-on-bad-exit=0 bash launch/slurm_task.sh python -m uvit_jax.main "$@")
if [[ $DRY_RUN ]]; then
  printf '%q ' "${COMMAND[@]}"
  echo
  exit
fi
[[ ${SLURM_JOB_ID:-} ]] || die "this is not a Slurm job, expected: sbatch launch/slurm.sh ..., or --dry-run to see the command"

if [[ ${UVIT_SETUP:-} ]]; then eval "$UVIT_SETUP"; fi
if [[ $VENV != none ]]; then
  # shellcheck source=/dev/null
  source "$VENV/bin/activate"
fi
export PYTHONUNBUFFERED=1
# Steps do not inherit this any more since Slurm 22.05.
if [[ ${SLURM_CPUS_PER_TASK:-} ]]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

# USR1, before the time limit, comes to this shell only; scancel and a preemption signal the program only. srun passes
# the signal on to every task, and each host saves. It may also come when no step is running.
notice="" signalled=1 step=""
trap 'notice=1 signalled=1; kill -TERM "$step" 2>/dev/null || true' USR1

requeue() {
  echo "slurm.sh: job $SLURM_JOB_ID goes back into the queue, and goes on from its newest checkpoint" >&2
  scontrol requeue "$SLURM_JOB_ID"
  exit 143
}

for ((restarts = 0; ; restarts++)); do
  "${COMMAND[@]}" &
  step=$! signalled=1 code=0
  while ((signalled)); do # a signal ends `wait` too, while the program is still saving
    signalled=0 code=0
    wait "$step" || code=$?
  done
  case $code in
    0) exit 0 ;;
    254) exit 2 ;; # of any task: launch/slurm_task.sh
    143)
      [[ $notice ]] || scontrol --oneliner show job "$SLURM_JOB_ID" | grep -q ' PreemptTime=[0-9]' || exit 143
      requeue
      ;;
  esac
  if ((restarts == MAX_RESTARTS)); then
    echo "slurm.sh: the program ended with $code after $restarts restarts, and is not started again" >&2
    exit "$code"
  fi
  echo "slurm.sh: the program ended with $code: restart $((restarts + 1)) of $MAX_RESTARTS, from its newest checkpoint" >&2
  [[ $notice ]] || sleep "${UVIT_POLL_SECONDS:-30}"
  [[ ! $notice ]] || requeue
done
