"""Set the workbook up on a fresh machine, on any system: python scripts/bootstrap.py [env] [data] [browser].

Needs only Python's standard library.
Each step is quick when nothing is to be done, and says in one sentence what is missing."""

import hashlib, os, shutil, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
PYTHON = VENV / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
INPUTS = ['settings.ini', 'setup.py', 'constraints.txt']  # what decides the content of the environment


def stop(sentence: str):
    sys.exit(f"vit_ssl_lab: {sentence}")


def run(*command: str, **kw) -> bool:
    return subprocess.run(list(map(str, command)), **kw).returncode == 0


def env() -> None:
    """Make .venv and install the package with the tested versions, unless this has been done for these very
    files."""
    if sys.version_info < (3, 10):
        stop(
            f"Python 3.10 or later is needed, this is {sys.version.split()[0]}: run make PYTHON=python3.12, for example."
        )
    stamp = VENV / '.ready'
    digest = hashlib.sha256(
        b''.join((ROOT / f).read_bytes() for f in INPUTS) + sys.version.encode()
    ).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    if not PYTHON.exists() and not run(sys.executable, '-m', 'venv', VENV):
        shutil.rmtree(VENV, ignore_errors=True)
        stop(
            "Python can't make virtual environments here: install its venv module (Debian and Ubuntu: apt-get install python3-venv)."
        )
    if not run(PYTHON, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', 'uv'):
        stop("pip can't install packages: check the network or the package index.")
    if not run(
        PYTHON,
        '-m',
        'uv',
        'pip',
        'install',
        '-q',
        '--python',
        PYTHON,
        '-c',
        ROOT / 'constraints.txt',
        '-e',
        f'{ROOT}[dev]',
    ):
        stop(
            "The packages could not be installed: the lines above say which; about 8 GB of disk and a package index are needed."
        )
    stamp.write_text(digest)
    print(f"The environment is ready in {VENV.name}.", flush=True)


def apt(*packages: str) -> bool:
    "Install Debian packages if this is possible without a password."
    if not shutil.which('apt-get'):
        return False
    sudo = [] if os.geteuid() == 0 else ['sudo', '-n']
    if sudo and not shutil.which('sudo'):
        return False
    quiet = dict(
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'},
    )
    install = [*sudo, 'apt-get', 'install', '-y', '--no-install-recommends', *packages]
    return run(*install, **quiet) or (run(*sudo, 'apt-get', 'update', **quiet) and run(*install, **quiet))


def data() -> None:
    "The data sets that the workbook uses beyond those inside packages."
    emoji()
    fashion()


def emoji() -> None:
    """Emoji of four designers (8 MB): through npm, where it is installed, into the folder that the package
    looks in; without them FLIP's notebook says so and goes on."""
    paths = "from vit_ssl_lab.data.image_text import DESIGNERS, icon_folders; print(next((1 for f in icon_folders() if all((f / d / 'icons.json').is_file() for d in DESIGNERS.values())), 0)); from vit_ssl_lab.data.download import search_paths; print(search_paths()[0]); print(*(f'@iconify-json/{d}' for d in DESIGNERS.values()))"
    have, folder, packages = (
        subprocess.run([PYTHON, '-c', paths], capture_output=True, text=True).stdout.strip().splitlines()[-3:]
    )
    if have == '1':
        return
    npm = shutil.which('npm')
    if npm:
        Path(folder).mkdir(parents=True, exist_ok=True)
    if not npm or not run(
        npm,
        'install',
        '--prefix',
        folder,
        '--ignore-scripts',
        '--no-audit',
        '--no-fund',
        *packages.split(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ):
        print(
            f"vit_ssl_lab: no emoji can be had here ({'npm could not install them' if npm else 'npm is not installed'}), so FLIP's notebook leaves that set out.",
            flush=True,
        )


def fashion() -> None:
    """Fashion-MNIST: where the package finds it, else Debian's package, else a download; without it digits
    stand in."""
    have = [PYTHON, '-c', "from vit_ssl_lab.data import load; load('fashion-mnist', 'test')"]
    if run(*have, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        return
    if apt('dataset-fashion-mnist') and run(*have, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        return
    print(
        "vit_ssl_lab: Fashion-MNIST can't be had here, so scikit-learn's digits will stand in for the garments; put the four files into a folder and set VIT_SSL_LAB_DATA to it.",
        flush=True,
    )


def browser() -> None:
    "Chromium for the browser tests: the system's, else Debian's package, else Playwright's own."
    if any(shutil.which(b) for b in ('chromium', 'chromium-browser', 'google-chrome')) or apt('chromium'):
        return
    if not run(PYTHON, '-m', 'playwright', 'install', 'chromium'):
        print(
            "vit_ssl_lab: no Chromium can be had here, so the browser tests will be skipped; install the package chromium to run them.",
            flush=True,
        )


STEPS = dict(env=env, data=data, browser=browser)

if __name__ == '__main__':
    names = sys.argv[1:] or ['env']
    if unknown := [n for n in names if n not in STEPS]:
        stop(f"There is no step {unknown[0]!r}; there are: {', '.join(STEPS)}.")
    for name in names:
        STEPS[name]()
