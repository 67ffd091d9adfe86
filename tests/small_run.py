"A run of a second that has all a run can have, shared by the tests of training. Importable by a child process."
import os, signal
import sklearn.datasets # here, so that a fork server has imported all before it makes children
import vit_ssl_lab.methods.mae
from vit_ssl_lab.data import load
from vit_ssl_lab.training import build, pretrain, recipe
from vit_ssl_lab.training import checkpoints as ckpt

SMALL = dict(data='digits', img_size=8, patch_size=2, encoder_options=dict(embed_dim=24, depth=1, num_heads=2),
             method_options=dict(decoder_width=16, decoder_depth=1, decoder_heads=2), checkpoint_every=3, log_every=1)

def small(**changes):
    "The recipe of MAE in miniature, on scikit-learn's digits."
    return recipe('mae', 'laptop', **{**SMALL, **changes})

def whole(out=None, **changes):
    "Train it in this process: the method and its history."
    r, data = small(**changes), load('digits')
    method = build(r, data)
    return method, pretrain(method, data, r, out=out, quiet=True, device='cpu')

def die_while_writing(write: int):
    "From the `write`-th file on, get half of it to the disk and then die like a process that is killed."
    true, count = ckpt.write_file, [0]
    def write_file(path, data):
        count[0] += 1
        if count[0] < write: return true(path, data)
        true(path, data[:len(data) // 2]); os.kill(os.getpid(), signal.SIGKILL)
    ckpt.write_file = write_file

def child(out, changes, write=None):
    "What a child process runs."
    import torch
    torch.set_num_threads(1)
    if write is not None: die_while_writing(write)
    whole(out, **changes)
