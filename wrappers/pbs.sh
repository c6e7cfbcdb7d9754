#!/usr/bin/env bash
# An example to copy: one pilot as a PBS job. PBS hands a script no arguments, so they come by the environment:
#
#   qsub -v PILOTAGE_WRAPPER=/shared/pilotage/run_pilot.sh,PILOTAGE_URL=http://HOST:8080,\
#   PILOTAGE_TOKEN_FILE=$HOME/pilot.token,PILOTAGE_QUEUE=CPU wrappers/pbs.sh
#
# (The factory that submits pilots by itself comes later; it will take its directives from the queue.)
#PBS -N pilot
#PBS -l select=1:ncpus=1:mem=2gb
#PBS -l walltime=24:00:00
#PBS -j oe
# Not started again by PBS: the server gives its jobs to another pilot anyway.
#PBS -r n

set -u

# exec: the signals of PBS (SIGTERM, then after kill_delay SIGKILL) reach run_pilot.sh itself.
exec "${PILOTAGE_WRAPPER:?the full path of run_pilot.sh}" \
    --url "${PILOTAGE_URL:?the address of the server}" \
    --token-file "${PILOTAGE_TOKEN_FILE:?the file with the pilot token, mode 0600}" \
    --queue "${PILOTAGE_QUEUE:?the computing queue on the server}" \
    --work-directory "${TMPDIR:-/tmp}"
