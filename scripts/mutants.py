"""Break the library on purpose, one line at a time, and see which unit test turns red.

    .venv/bin/python scripts/mutants.py              all mutants, about ten seconds each; prints the table
    .venv/bin/python scripts/mutants.py ema queue    those with one of these words in their name
    .venv/bin/python scripts/mutants.py --check      run nothing, say which texts are lost

Every mutant is a change of an exported module, made in a copy of the package and the tests in a temporary
folder, never in this checkout. First the tests run in an unchanged copy, where all of them must pass. A
mutant that no test notices is a test to write. A mutant whose text isn't there any more, because the code was
rewritten, is reported as lost: give it the new text below. The exit code is 0 if every mutant was found."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ['vit_ssl_lab', 'tests', 'benchmarks', 'results', 'settings.ini', 'pytest.ini']


@dataclass
class Mutant:
    name: str  # what is wrong, for the table
    file: str  # under vit_ssl_lab/
    edits: list[tuple[str, str]]  # (text that is there once, what it becomes)
    tests: str  # files of tests/ that should notice, without test_ and .py


MUTANTS = [
    Mutant(
        'SimSiam: no stop-gradient',
        'methods/simsiam.py',
        [('return z.detach() if self.stop_gradient else z', 'return z')],
        'simsiam',
    ),
    Mutant(
        'BYOL: the online network as its own target',
        'methods/byol.py',
        [('return self.momentum_embed(x) if self.stop_gradient else z', 'return z')],
        'byol',
    ),
    Mutant(
        'EMA: shares of old and new exchanged',
        'components/momentum.py',
        [('_foreach_lerp_(targets, sources, 1 - momentum)', '_foreach_lerp_(targets, sources, momentum)')],
        'components',
    ),
    Mutant(
        'EMA: momentum of one update earlier',
        'components/momentum.py',
        [('math.cos(math.pi * progress)', 'math.cos(math.pi * max(0, progress - 0.02))')],
        'byol mocov3',
    ),
    Mutant(
        'EMA: the momentum copy never moves',
        'methods/base/siamese.py',
        [('momentum = self.momentum_at(progress)', 'momentum = 1.0')],
        'byol',
    ),
    Mutant(
        'Queue: a batch enters in reverse',
        'components/queue.py',
        [('self.pointer + torch.arange(n', 'self.pointer + n - 1 - torch.arange(n')],
        'moco processes',
    ),
    Mutant(
        'Queue: the newest keys are overwritten, not the oldest',
        'components/queue.py',
        [('self.pointer.add_(n)', 'self.pointer.add_(0)')],
        'moco processes',
    ),
    Mutant(
        'MoCo: a batch meets its own keys as negatives',
        'methods/moco.py',
        [
            (
                'q, k = self.query(x1), self.keys(x2)',
                'q, k = self.query(x1), self.keys(x2)\n        self.queue.enqueue(k)',
            )
        ],
        'moco',
    ),
    Mutant(
        'Weight decay on biases and norms',
        'training/optim.py',
        [('(decay_all or (is_matrix and not', '(True or (is_matrix and not')],
        'training',
    ),
    Mutant(
        'kNN: every vote counts one, whatever the temperature',
        'evaluation/knn.py',
        [('weight = ((cosine - 1) / temperature).exp()', 'weight = torch.ones_like(cosine)')],
        'evaluation',
    ),
    Mutant(
        'Mask inverted',
        'components/masking.py',
        [('mask_of_visible(ids_shuffle[:, :k], n)', 'mask_of_visible(ids_shuffle[:, k:], n)')],
        'components mae',
    ),
    Mutant(
        'MAE: loss over all patches',
        'methods/mae.py',
        [
            ('self.decode(latent, mask, mask.hidden)', 'self.decode(latent, mask)'),
            (
                'patches = self.hidden_patches(views, mask)',
                'from vit_ssl_lab.components.patches import patchify\n'
                '        patches = patchify(views, self.patch_size)',
            ),
        ],
        'mae',
    ),
    Mutant(
        'Masked error: the mask is ignored',
        'components/losses.py',
        [('(errors.mean(-1) * mask).sum() / mask.sum().clamp(min=1)', 'errors.mean()')],
        'components',
    ),
    Mutant(
        'ViT: visible patches without positions',
        'encoders/vit.py',
        [('x = x + F.embedding(keep, table)', 'x = x + 0 * F.embedding(keep, table)')],
        'vit mae',
    ),
    Mutant(
        'Decoder: no positions',
        'components/decoders.py',
        [('if positions is not None:\n            table', 'if False:\n            table')],
        'components mae',
    ),
    Mutant(
        'DINO: the centre is not updated',
        'components/distillation.py',
        [('self.center.lerp_(mean.to(self.center.dtype), 1 - self.momentum)', 'pass')],
        'distillation',
    ),
    Mutant(
        "DINO: the teacher's own crop counts, too",
        'components/distillation.py',
        [('return (pairs.sum() - same_crop) / (pairs.numel() - len(pairs))', 'return pairs.mean()')],
        'distillation',
    ),
    Mutant(
        'DINO: the teacher drops paths',
        'methods/base/distillation.py',
        [('        disable_dropout(self.momentum_encoder)', '')],
        'distillation',
    ),
    Mutant(
        'MaskFeat: the frozen teacher goes into training mode with the rest',
        'components/targets.py',
        [('return super().train(False)', 'return super().train(mode)')],
        'maskfeat',
    ),
    Mutant(
        'SupMAE: labels in reverse',
        'methods/supmae.py',
        [('/ self.temperature, labels)', '/ self.temperature, labels.flip(0))')],
        'supmae',
    ),
    Mutant(
        'SimCLR: the positive key is the picture itself',
        'components/losses.py',
        [('positive = torch.cat([second, first])', 'positive = torch.cat([second, second])')],
        'siamese simclr',
    ),
    Mutant(
        'MAE: patches normalised by the biased variance',
        'components/patches.py',
        [('patches.var(-1, keepdim=True)', 'patches.var(-1, keepdim=True, correction=0)')],
        'components mae',
    ),
    Mutant(
        'Views: divided by the variance',
        'data/operations.py',
        [('return (x - mean) / std', 'return (x - mean) / std**2')],
        'views',
    ),
]


def copy_to(folder: Path) -> None:
    unused = shutil.ignore_patterns('__pycache__', '.*', '*.safetensors*')
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=unused)
        else:
            shutil.copy(source, folder / name)


def run_tests(folder: Path, tests: str, *options: str) -> tuple[bool, list[str], str]:
    "Whether all unit tests of some files pass, the names of those that don't, and what pytest printed."
    files = [f'tests/test_{name}.py' for name in tests.split()]
    command = [
        sys.executable,
        '-m',
        'pytest',
        '-q',
        '-m',
        'unit',
        '--tb=no',
        '-rfE',
        '-p',
        'no:cacheprovider',
    ]
    # The copy comes before the installed package, which is this checkout.
    env = {**os.environ, 'PYTHONPATH': str(folder), 'OMP_NUM_THREADS': '1', 'PYTHONDONTWRITEBYTECODE': '1'}
    done = subprocess.run([*command, *options, *files], cwd=folder, env=env, capture_output=True, text=True)
    red = re.findall(r'^(?:FAILED|ERROR) tests/(\S+\.py(?:::\w+)?)', done.stdout, re.M)
    return done.returncode == 0, red, done.stdout + done.stderr


def mutate(text: str, mutant: Mutant) -> str:
    "The changed source. Raises ValueError with the text that isn't there exactly once."
    for old, new in mutant.edits:
        count = text.count(old)
        if count != 1:
            raise ValueError(f"{mutant.name}: this text stands {count} times in {mutant.file}: {old!r}")
        text = text.replace(old, new)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('words', nargs='*', help="only mutants with one of these words in their name")
    parser.add_argument('--check', action='store_true', help="run nothing, say which texts are lost")
    arguments = parser.parse_args()
    words = [word.lower() for word in arguments.words]
    chosen = [m for m in MUTANTS if not words or any(word in m.name.lower() for word in words)]
    if not chosen:
        print("No mutant has one of these words in its name.")
        return 1

    lost = 0
    sources = {}
    for mutant in chosen:
        try:
            sources[mutant.name] = mutate((ROOT / 'vit_ssl_lab' / mutant.file).read_text(), mutant)
        except (OSError, ValueError) as error:
            lost += 1
            print(f"LOST {error}", file=sys.stderr)
    chosen = [m for m in chosen if m.name in sources]
    if arguments.check:
        print(f"{len(chosen)} texts are there, {lost} lost.")
        return int(bool(lost))

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_to(folder)
        tests = ' '.join(sorted({name for m in chosen for name in m.tests.split()}))
        green, red, printed = run_tests(folder, tests)
        if not green:
            print(
                f"Without any mutant these tests fail: {', '.join(red) or printed[-3000:]}", file=sys.stderr
            )
            return 1
        survivors = 0
        print("| mutant | the first test that turns red |\n|---|---|")
        for mutant in chosen:
            path = folder / 'vit_ssl_lab' / mutant.file
            whole = path.read_text()
            path.write_text(sources[mutant.name])
            green, red, printed = run_tests(folder, mutant.tests, '-x')
            path.write_text(whole)
            # A file that can't even be imported is no test that noticed something.
            noticed = [name for name in red if '::' in name]
            survivors += not noticed
            found = f'`{noticed[0]}`' if noticed else '**none**'
            print(f"| {mutant.name} | {found} |", flush=True)
            if not green and not noticed:
                print(printed[-2000:], file=sys.stderr)
    print(f"{len(chosen) - survivors} of {len(chosen)} found, {lost} lost.", file=sys.stderr)
    return int(bool(survivors or lost))


if __name__ == '__main__':
    sys.exit(main())
