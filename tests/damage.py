"""Kills and flipped bits: a run is killed anywhere and goes on, a checkpoint is damaged anywhere and refused.
The tests make a few of each; `python tests/damage.py --kills 100 --flips 1000` makes as many as asked for."""

import argparse, os, random, shutil, signal, tempfile, threading, time, warnings
from collections import Counter
from pathlib import Path
import torch
from small_run import child, fork_server, small
from vit_ssl_lab import core
from vit_ssl_lab.data import load
from vit_ssl_lab.training import build
from vit_ssl_lab.training import checkpoints as ckpt, history, loop

RUN = dict(steps=32, batch_size=200, drop_last=False, ema=0.9, accumulate=2, clip_grad=1.0)

# --- kills


def kill() -> None:
    "End like a process that is killed."
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_write(count: int, where: str):
    """Die around the `count`-th thing that is done to the disk: 'before' it, 'inside' (half of a file's bytes
    are written), or 'after' it."""
    done = [0]
    write_file = ckpt.write_file

    def dying(true):
        def call(*args, **kw):
            done[0] += 1
            if done[0] != count:
                return true(*args, **kw)
            if where == 'inside' and len(args) > 1 and isinstance(args[1], bytes):
                path = (
                    args[0] if true is write_file else args[0].with_name(f'.{args[0].name}.{os.getpid()}.tmp')
                )
                path.write_bytes(args[1][: len(args[1]) // 2])
            elif where == 'after':
                true(*args, **kw)
            kill()

        return call

    ckpt.write_file = dying(write_file)
    whole = dying(core.write_whole)
    ckpt.write_whole = history.write_whole = whole
    ckpt.sync_folder = dying(ckpt.sync_folder)
    os.rename = dying(os.rename)
    os.replace = dying(os.replace)
    shutil.rmtree = dying(shutil.rmtree)


def die_in(seconds: float):
    "Die at a moment that has nothing to do with what the run is at."
    true = loop.restore_run

    def restore_run(run):  # importing and building have nothing to lose
        threading.Timer(seconds, kill).start()
        return true(run)

    loop.restore_run = restore_run


def a_death(chance: random.Random):
    "Half of the kills hit the disk's work, half hit any moment."
    if chance.random() < 0.5:
        return die_at_write, chance.randint(1, 25), chance.choice(['before', 'inside', 'after'])
    return die_in, chance.uniform(0, 0.8)


def start(context, out: Path, *death, changes=None) -> int:
    "One process that trains in `out`; its exit code."
    process = context.Process(target=child, args=(out, changes or RUN, *death))
    process.start()
    process.join()
    return process.exitcode


def killed_run(context, out: Path, kills: int, chance: random.Random) -> int:
    "Kill a run up to `kills` times, then let it finish. How many kills hit it before it had finished."
    hits = 0
    for _ in range(kills):
        code = start(context, out, *a_death(chance))
        assert code in (0, -signal.SIGKILL), code
        hits += code != 0
        if ckpt.checkpoints(out)[-1:] == [RUN['steps']]:
            break
    assert start(context, out) == 0
    return hits


def tensors_of(out: Path) -> dict[str, torch.Tensor]:
    "All tensors of the newest checkpoint."
    parts, _ = ckpt.load_checkpoint(out)
    return {f'{name}.{key}': t for name, part in parts.items() for key, t in part.items()}


def same_tensors(a: Path, b: Path) -> bool:
    "Bit for bit?"
    x, y = tensors_of(a), tensors_of(b)
    return x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)


# --- flips


class Restored(Exception):
    "The run has read its checkpoint: nothing is trained."


def resumed_state(out: Path, changes: dict) -> dict:
    "What `pretrain` would go on from: every tensor, the optimizer's settings, the step, and the log."
    recipe = small(**changes)
    data = load('digits')
    method = build(recipe, data)
    got = {}

    def train(run, history, reporter, probe):
        packed, rest = ckpt.pack_optimizer(run.optimizer)
        got.update({f'method.{name}': t for name, t in run.method.state_dict().items()})
        got.update({f'ema.{name}': t for name, t in run.ema.state_dict().items()} if run.ema else {})
        got.update({f'optimizer.{name}': t for name, t in packed.items()})
        got.update(step=run.start, rest=rest)
        raise Restored

    true, loop.train = loop.train, train
    try:
        loop.pretrain(method, data, recipe, out=out, quiet=True, device='cpu')
    except Restored:
        return got
    finally:
        loop.train = true
    raise AssertionError("the loop was left out")


def equal_states(a: dict, b: dict) -> bool:
    "The same step, settings and tensors, bit for bit?"
    if a.keys() != b.keys():
        return False
    pairs = [(a[name], b[name]) for name in a]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def flip(path: Path, chance: random.Random) -> None:
    "Change one bit of a file."
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data))


def flips(out: Path, changes: dict, names: list[str], count: int, chance: random.Random) -> Counter:
    """Flip a bit, resume, put the file back, `count` times. Counts by file what came of it: 'refused' in one
    sentence, 'same' state after all, 'other' state (which must never be), or 'raw', another kind of error."""
    before = resumed_state(out, changes)
    outcomes = Counter()
    everything = {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
    for i in range(count):
        path = out / names[i % len(names)]
        flip(path, chance)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                state = resumed_state(out, changes)
            outcome = 'same' if equal_states(before, state) else 'other'
        except ValueError:
            outcome = 'refused'
        except Exception as e:
            outcome = f'raw {type(e).__name__}'
        outcomes[path.name, outcome] += 1
        for p, content in everything.items():
            if p.read_bytes() != content:
                p.write_bytes(content)
    return outcomes


def checkpoint_files(out: Path) -> list[str]:
    "The files that decide how a run goes on."
    folder = ckpt.checkpoint_folder(out, ckpt.checkpoints(out)[-1])
    return ['run.json', *(str(p.relative_to(out)) for p in sorted(folder.iterdir()))]


def main() -> None:
    "As many kills and flips as asked for, and what came of them."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--kills', type=int, default=100)
    parser.add_argument('--flips', type=int, default=1000)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    torch.set_num_threads(1)
    context = fork_server('damage')
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / 'whole'
        assert start(context, whole) == 0
        hits, runs, equal = 0, 0, 0
        while hits < args.kills:
            out = Path(folder) / f'run{runs}'
            hits += killed_run(context, out, 8, chance)
            runs += 1
            equal += same_tensors(whole, out)
            shutil.rmtree(out)
            print(
                f"{hits} kills in {runs} runs, {equal} bitwise equal, {time.time() - began:.0f} s", flush=True
            )
        found = flips(whole, RUN, checkpoint_files(whole), args.flips, chance)
        found += flips(whole, RUN, ['log.jsonl'], max(1, args.flips // 10), chance)
    for (name, outcome), number in sorted(found.items()):
        print(f"{name:24} {outcome:12} {number}")


if __name__ == '__main__':
    main()
