#!/usr/bin/env bash
# An example to copy: one pilot as a Slurm job. What follows the script's name goes to the pilot:
#
#   export PILOTAGE_WRAPPER=/shared/pilotage/run_pilot.sh PILOTAGE_URL=http://HOST:8080 PILOTAGE_TOKEN_FILE=$HOME/pilot.token
#   sbatch wrappers/slurm.sh -q CPU --slots 1
#
# (The factory that submits pilots by itself comes later; it will take its directives from the queue.)
#SBATCH --job-name=pilot
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem-per-cpu=2G
#SBATCH --time=24:00:00
#SBATCH --output=pilot-%j.log
# SIGTERM to this shell a minute before the time is over: the pilot ends its payload and gives the job back.
#SBATCH --signal=B:TERM@60
# Not started again by Slurm: the server gives its jobs to another pilot anyway.
#SBATCH --no-requeue

set -u

# exec: Slurm's signals reach run_pilot.sh itself. Slurm copies this script away, hence a full path.
exec "${PILOTAGE_WRAPPER:?the full path of run_pilot.sh}" \
    --url "${PILOTAGE_URL:?the address of the server}" \
    --token-file "${PILOTAGE_TOKEN_FILE:?the file with the pilot token, mode 0600}" \
    --work-directory "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}" \
    "$@"
