"""Set the workbook up on a fresh machine, on any system: python scripts/bootstrap.py [env] [data] [browser].

Needs only Python's standard library.
Each step is quick when nothing is to be done, and says in one sentence what is missing."""

from __future__ import annotations  # an older Python gets as far as the sentence about its version

import hashlib, os, shutil, subprocess, sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
PYTHON = VENV / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
INPUTS = ['settings.ini', 'setup.py', 'constraints.txt']  # what decides the content of the environment
NPM_INSTALL = ['install', '--ignore-scripts', '--no-audit', '--no-fund', '--prefix']
FIND_EMOJI = """
from vit_ssl_lab.data.download import search_paths
from vit_ssl_lab.data.image_text import DESIGNERS, find_icons
print('there' if find_icons() else 'missing')
print(search_paths()[0])
print(*(f'@iconify-json/{package}' for package in DESIGNERS.values()))
"""
LOAD_FASHION_MNIST = "from vit_ssl_lab.data import load; load('fashion-mnist', 'test')"


def stop(sentence: str) -> NoReturn:
    "End with one sentence and a status that says failure."
    sys.exit(f"vit_ssl_lab: {sentence}")


def tell(sentence: str) -> None:
    "Print one sentence at once and go on."
    print(f"vit_ssl_lab: {sentence}", flush=True)


def run(*command: str | Path, quiet: bool = False, **options) -> bool:
    "Whether a command succeeds; with `quiet` nothing of what it says is shown."
    if quiet:
        options |= dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return subprocess.run([str(word) for word in command], **options).returncode == 0


def env() -> None:
    """Make .venv and install the package with the tested versions, unless this has been done for these very
    files."""
    if sys.version_info < (3, 10):
        version = sys.version.split()[0]
        stop(f"Python 3.10 or later is needed, this is {version}: run make PYTHON=python3.12, for example.")
    stamp = VENV / '.ready'
    content = b''.join((ROOT / name).read_bytes() for name in INPUTS)
    digest = hashlib.sha256(content + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    if not PYTHON.exists() and not run(sys.executable, '-m', 'venv', VENV):
        shutil.rmtree(VENV, ignore_errors=True)
        stop(
            "Python can't make virtual environments here: "
            "install its venv module (Debian and Ubuntu: apt-get install python3-venv)."
        )
    if not run(PYTHON, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', 'uv'):
        stop("pip can't install packages: check the network or the package index.")
    uv_install = [PYTHON, '-m', 'uv', 'pip', 'install', '-q', '--python', PYTHON]
    if not run(*uv_install, '-c', ROOT / 'constraints.txt', '-e', f'{ROOT}[dev]'):
        stop(
            "The packages could not be installed: the lines above say which; "
            "about 8 GB of disk and a package index are needed."
        )
    stamp.write_text(digest)
    print(f"The environment is ready in {VENV.name}.", flush=True)


def apt(*packages: str) -> bool:
    "Install Debian packages if this is possible without a password. False if it isn't."
    if not shutil.which('apt-get'):
        return False
    sudo = [] if os.geteuid() == 0 else ['sudo', '-n']
    if sudo and not shutil.which('sudo'):
        return False
    environment = {**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'}
    install = [*sudo, 'apt-get', 'install', '-y', '--no-install-recommends', *packages]
    if run(*install, quiet=True, env=environment):
        return True
    updated = run(*sudo, 'apt-get', 'update', quiet=True, env=environment)
    return updated and run(*install, quiet=True, env=environment)


def data() -> None:
    "The data sets that the workbook uses beyond those inside packages."
    emoji()
    fashion()


def emoji() -> None:
    """Emoji of four designers (8 MB): through npm, where it is installed, into the folder that the package
    looks in; without them FLIP's notebook says so and goes on."""
    found = subprocess.run([PYTHON, '-c', FIND_EMOJI], capture_output=True, text=True).stdout
    state, folder, packages = found.strip().splitlines()[-3:]
    if state == 'there':
        return
    npm = shutil.which('npm')
    if npm is None:
        tell("no emoji can be had here (npm is not installed), so FLIP's notebook leaves that set out.")
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    if not run(npm, *NPM_INSTALL, folder, *packages.split(), quiet=True):
        tell("no emoji can be had here (npm could not install them), so FLIP's notebook leaves that set out.")


def fashion() -> None:
    """Fashion-MNIST: where the package finds it, else Debian's package, else a download; without it digits
    stand in."""

    def can_load() -> bool:
        return run(PYTHON, '-c', LOAD_FASHION_MNIST, quiet=True)

    if can_load():
        return
    if apt('dataset-fashion-mnist') and can_load():
        return
    tell(
        "Fashion-MNIST can't be had here, so scikit-learn's digits will stand in for the garments; "
        "put the four files into a folder and set VIT_SSL_LAB_DATA to it."
    )


def browser() -> None:
    "Chromium for the browser tests: the system's, else Debian's package, else Playwright's own."
    names = ('chromium', 'chromium-browser', 'google-chrome')
    if any(shutil.which(name) for name in names) or apt('chromium'):
        return
    if not run(PYTHON, '-m', 'playwright', 'install', 'chromium'):
        tell(
            "no Chromium can be had here, so the browser tests will be skipped; "
            "install the package chromium to run them."
        )


STEPS = dict(env=env, data=data, browser=browser)

if __name__ == '__main__':
    names = sys.argv[1:] or ['env']
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        stop(f"There is no step {unknown[0]!r}; there are: {', '.join(STEPS)}.")
    for name in names:
        STEPS[name]()
