#!/bin/sh
# Two processes on one machine: on two GPUs where there are two, else on the CPU. Arguments are those of the command line: scripts/pretrain_two_processes.sh mae laptop --data digits --out runs/two
set -eu
exec torchrun --standalone --nproc-per-node=2 -m vit_ssl_lab.training.cli "$@"
