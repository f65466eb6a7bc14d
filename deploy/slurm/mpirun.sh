#!/bin/bash
# The same without a scheduler: deploy/slurm/mpirun.sh CONFIG [RANKS] [HOSTFILE]
# SIGTERM and ctrl-c go to every rank; rank 0 saves what is there.
set -euo pipefail

CONFIG=${1:?usage: mpirun.sh CONFIG [RANKS] [HOSTFILE]}
RANKS=${2:-2}
HOSTS=${3:-}
PTYSTREAM=${PTYSTREAM:-/opt/ptystream/bin/ptystream}
MPIRUN=${MPIRUN:-mpirun}

exec "$MPIRUN" -n "$RANKS" ${HOSTS:+--hostfile "$HOSTS"} "$PTYSTREAM" live "$CONFIG"
