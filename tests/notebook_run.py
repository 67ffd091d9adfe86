"""Runs notebooks, each in a process of its own, forked from this one, which has imported what most of them
import. It has made the scenes, too: together some twenty seconds that each notebook would spend again.
Every line of the input names a notebook and a file for what it prints; every line of the output is an exit
code."""

import os

os.environ['IN_TEST'] = '1'  # before the package reads it
import signal
import sys
from pathlib import Path

import sklearn.linear_model  # noqa: F401, imported here once for all notebooks
import vit_ssl_lab.evaluation
import vit_ssl_lab.explorers
import vit_ssl_lab.notebook
import vit_ssl_lab.training  # noqa: F401
from nbdev.test import test_nb
from vit_ssl_lab.data import load

# A notebook takes a minute at most. Ten times that in CPU time means that it loops; a loaded machine doesn't
# count.
CPU_SECONDS = 600
# For processes that wait for each other and use no CPU time.
WALL_SECONDS = 3600


def run(path: str, log: str) -> None:
    "Run the cells without a flag, as nbdev does."
    with open(log, 'w') as out, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    ok, _ = test_nb(Path(path), skip_flags=['slow', 'gpu'])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(not ok)


def guard_against_a_hang() -> None:
    "End this process by SIGXCPU or SIGALRM when it has used far more time than any notebook needs."
    import resource  # POSIX only, as fork is

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 10))
    signal.alarm(WALL_SECONDS)


if __name__ == '__main__':
    for part in ('train', 'test'):
        load('scenes', part)  # the package keeps them
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            guard_against_a_hang()
            run(*line.rstrip('\n').split('\t'))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
