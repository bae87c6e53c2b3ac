#!/usr/bin/env bash
# Runs the command as one task of launch/slurm.sh, and turns exit code 2 (a mistake in the command) into 254.
#
# If one host alone finds the mistake and exits, JAX aborts the others. srun returns the largest exit code of all
# tasks, and a signal before any exit code. With this script between, the abort is 134 and the mistake is larger.
set -euo pipefail

# One block, read as a whole: the file may change while the program runs.
{
  "$@" &
  child=$! code=0 signalled=1
  # Slurm signals this process, and on some sites its child, too.
  trap 'signalled=1; kill -TERM "$child" 2>/dev/null || true' TERM
  while ((signalled)); do # a signal ends `wait` too, while the program is still saving
    signalled=0 code=0
    wait "$child" || code=$?
  done
  exit $((code == 2 ? 254 : code))
}
