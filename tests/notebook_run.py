"""Runs notebooks, each in a process of its own, forked from this one, which has imported what most of them import and has made the scenes: some twenty seconds that each would spend again.
Every line of the input names a notebook and a file for what it prints; every line of the output is an exit code."""

import os, signal, sys

os.environ['IN_TEST'] = '1'  # before the package reads it
from pathlib import Path
import sklearn.linear_model
import vit_ssl_lab.evaluation, vit_ssl_lab.explorers, vit_ssl_lab.notebook, vit_ssl_lab.training
from nbdev.test import test_nb
from vit_ssl_lab.data import load


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


if __name__ == '__main__':
    for part in ('train', 'test'):
        load('scenes', part)  # the package keeps them
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            signal.alarm(300)
            run(*line.rstrip('\n').split('\t'))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
