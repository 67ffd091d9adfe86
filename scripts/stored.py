"""The last column of the index's table of papers: which runs of a row's notebooks are stored."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUDIES = {
    '01_early_convolutions': 'early_convolutions',
    '03_critical_factors': 'critical_factors',
    '02_fair_benchmark': 'fair_benchmark',
}


def seeds_of(name: str) -> list[int]:  # one entry an arm
    "How many seeds (or single runs) each arm of a stored study has; empty where nothing is stored."
    path = ROOT / 'results' / f'{name}.json'
    if not path.exists():
        return []
    arms = json.loads(path.read_text(encoding='utf-8'))['figures']
    return [len(arm) if isinstance(arm, (dict, list)) else 1 for arm in arms.values()]


def count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def arms_of(name: str) -> str:  # "7 arms of 3 seeds"
    seeds = seeds_of(name)
    if len(seeds) == 1:
        return count(seeds[0], 'run')
    if min(seeds) == max(seeds):
        return f"{count(len(seeds), 'arm')} of {count(seeds[0], 'seed')}"
    return f"{count(len(seeds), 'arm')} of {min(seeds)} to {max(seeds)} seeds"


def runs_of(method: str) -> str:  # in words
    "What is stored of a method: the laptop run's seeds, the arms of its claims, longer runs."
    words = []
    laptop = seeds_of(f'{method}_laptop')
    if laptop:
        words.append(f"laptop ({count(min(laptop), 'seed')}, {count(len(laptop), 'data set')})")
    if seeds_of(f'{method}_claims'):
        words.append(f"claims ({arms_of(f'{method}_claims')})")
    for scale, word in (('slow', 'slow'), ('gpu', 'GPU')):
        if seeds_of(f'{method}_{scale}'):
            words.append(word)
    return ', '.join(words)


def stored(links: str) -> str:  # the cell of the table
    "What is stored of the notebooks that a row links to."
    methods = re.findall(r'nbs/methods/\d+_(\w+)\.ipynb', links)
    words = [f"{method}: {runs_of(method)}" if len(methods) > 1 else runs_of(method) for method in methods]
    studies = [name for stem, name in STUDIES.items() if f'nbs/studies/{stem}.ipynb' in links]
    words += [f"{name.replace('_', ' ')} ({arms_of(name)})" for name in studies]
    return '; '.join(words) or 'nothing to train'


def with_stored_runs(text: str) -> str:  # the markdown of the table, its last column anew
    "Write the last column of each row of the table of papers."
    lines = []
    for line in text.split('\n'):
        cells = line.split(' | ')
        if 'arxiv.org' in line and len(cells) == 3:
            line = ' | '.join([*cells[:2], f'{stored(cells[1])} |'])
        lines.append(line)
    return '\n'.join(lines)
