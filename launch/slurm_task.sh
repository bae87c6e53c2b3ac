#!/usr/bin/env bash
# What launch/slurm.sh has srun run as each task: the command, whose mistake (exit code 2) comes out as 254.
#
# A mistake that one host alone finds costs the others their connection, and JAX aborts them. Of all tasks srun returns
# the largest exit code, and a signal such as that of the abort before any exit code: from here it gets the abort as 134,
# and the mistake as more than that.
set -euo pipefail

# Read as one: the file may change while the program runs.
{
  "$@" &
  child=$! code=0 signalled=1
  # Slurm signals this process, and its child as well on some sites only.
  trap 'signalled=1; kill -TERM "$child" 2>/dev/null || true' TERM
  while ((signalled)); do # a signal ends `wait` too, while the program is still saving
    signalled=0 code=0
    wait "$child" || code=$?
  done
  exit $((code == 2 ? 254 : code))
}
