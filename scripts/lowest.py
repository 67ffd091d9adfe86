"""Are the floors in settings.ini true? Make an environment with the lowest versions of all requirements and
run the unit tests in it: python scripts/lowest.py [FOLDER] [-- pytest's arguments].

The environment is made in FOLDER (without it in a temporary one, which is removed afterwards); about 6 GB,
most of which uv links from its cache. It needs uv, which comes with `make env`."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
EXTRAS = 'dev'  # which brings all others
ONLY_WHEELS = 'resvg-py'  # its first versions are sources in Rust


def settings() -> list[str]:
    "The lines of every list of requirements in settings.ini."
    from configparser import ConfigParser

    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT / 'settings.ini', encoding='utf-8')
    lists = [text for key, text in ini['DEFAULT'].items() if key.endswith('requirements')]
    lines = [line.strip() for text in lists for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith('#')]


def floors() -> dict[str, str]:
    "The lowest version that settings.ini allows of each requirement that has a floor."
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lowest = {}
    for line in settings():
        requirement = Requirement(line)
        for specifier in requirement.specifier:
            if specifier.operator in ('>=', '=='):
                lowest[canonicalize_name(requirement.name)] = specifier.version
    return lowest


def untested(installed: dict[str, str]) -> list[str]:
    "The requirements of which another version than the floor is installed: their floor isn't what is tested."
    from packaging.version import Version

    lines = []
    for name, floor in floors().items():
        if Version(installed.get(name, '0')) != Version(floor):
            lines.append(f"{name} has the floor {floor}, and {installed.get(name, 'nothing')} was installed")
    return lines


def uv(*words: str | Path) -> str:
    "What uv prints. Ends the script if uv fails."
    command = [sys.executable, '-m', 'uv', *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"vit_ssl_lab: {' '.join(command[2:])} failed:\n{done.stderr}")
    return done.stdout


def make(folder: Path) -> Path:
    "Make the environment; returns its Python. Ends the script where a floor can't be installed."
    python = folder / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
    uv('venv', '--clear', '--python', sys.executable, folder)
    lowest = ['--resolution', 'lowest-direct', '--only-binary', ONLY_WHEELS]
    uv('pip', 'install', '--python', python, *lowest, '-e', f'{ROOT}[{EXTRAS}]')
    listed = uv('pip', 'freeze', '--python', python)
    pairs = [line.split('==') for line in listed.splitlines() if '==' in line]
    wrong = untested({name.lower().replace('_', '-'): version for name, version in pairs})
    if wrong:
        sys.exit(
            "vit_ssl_lab: these floors are not what can be installed together; raise them:\n"
            + '\n'.join(wrong)
        )
    return python


def main() -> None:
    words = sys.argv[1:]
    split = words.index('--') if '--' in words else len(words)
    arguments = words[split + 1 :] or ['-q', '-n', '2', '-m', 'unit', 'tests']
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(words[0] if split else temporary)
        python = make(folder)
        path = os.pathsep.join([str(python.parent), os.environ.get('PATH', '')])
        command = [str(python), '-m', 'pytest', '-p', 'no:cacheprovider', *arguments]
        sys.exit(subprocess.run(command, cwd=ROOT, env={**os.environ, 'PATH': path}).returncode)


if __name__ == '__main__':
    main()
