"""The package as a user gets it: metadata from settings.ini, a wheel with everything in it, imports that stay
light, the set-up script's sentences."""

import configparser, re, subprocess, sys, zipfile
from importlib import metadata
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def settings():
    ini = configparser.ConfigParser(delimiters=['='])
    ini.read(ROOT / 'settings.ini', encoding='utf-8')
    return ini['DEFAULT']


def as_requirement(line: str) -> tuple[str, str]:
    "Name and versions of a requirement, however it is spelled."
    requirement = Requirement(line)
    return canonicalize_name(requirement.name), str(requirement.specifier)


def test_metadata_comes_from_settings():
    cfg = settings()
    meta = metadata.metadata('vit_ssl_lab')
    assert meta['Version'] == cfg['version']
    assert meta['Summary'] == cfg['description']
    assert meta['Requires-Python'] == '>=' + cfg['min_python']
    wanted = {as_requirement(line) for line in cfg['requirements'].splitlines() if line.strip()}
    got = {as_requirement(line) for line in metadata.requires('vit_ssl_lab') if 'extra ==' not in line}
    assert wanted == got
    import vit_ssl_lab

    assert vit_ssl_lab.__version__ == cfg['version']


def test_wheel_holds_modules_and_scripts(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'uv',
            'build',
            '--wheel',
            '--no-build-isolation',
            '-o',
            str(tmp_path),
            str(ROOT),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    names = set(zipfile.ZipFile(next(tmp_path.glob('*.whl'))).namelist())
    tracked = subprocess.run(
        ['git', 'ls-files', 'vit_ssl_lab'], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    assert tracked
    assert not [t for t in tracked if t not in names]


def test_the_packages_notebooks_import_are_named():
    "Every third-party package an exported module imports stands in settings.ini."
    import ast

    known = {
        'PIL': 'matplotlib',
        'cycler': 'matplotlib',
        'IPython': 'ipykernel',
        'sklearn': 'scikit-learn',
        'skimage': 'scikit-image',
        'traitlets': 'ipywidgets',
        'nbformat': 'nbclient',
        'mpl_toolkits': 'matplotlib',
        'scipy': 'scikit-learn',
        'open_clip': 'open_clip_torch',
        'resvg_py': 'resvg-py',
    }
    named = set()
    for key in ('requirements', 'emoji_requirements', 'hub_requirements'):
        named |= {Requirement(line).name for line in settings()[key].splitlines() if line.strip()}
    for path in (ROOT / 'vit_ssl_lab').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            for top in {module.split('.')[0] for module in modules if module}:
                if top in sys.stdlib_module_names or top == 'vit_ssl_lab':
                    continue
                assert known.get(top, top) in named, f"{path.name} imports {top}"


def test_import_is_light():
    "The package itself imports nothing heavy."
    code = (
        "import sys, vit_ssl_lab; sys.exit(any(m in sys.modules for m in ('torch', 'timm', 'transformers')))"
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_constraints_name_every_requirement():
    pinned = {
        canonicalize_name(line.split('==')[0].strip())
        for line in (ROOT / 'constraints.txt').read_text().splitlines()
        if '==' in line
    }
    cfg = settings()
    for line in (cfg['requirements'] + '\n' + cfg['dev_requirements']).splitlines():
        if line.strip():
            name = canonicalize_name(Requirement(line).name)
            assert name in pinned, f"{name} has no tested version in constraints.txt"


def test_readme_is_in_sync():
    sys.path.insert(0, str(ROOT / 'scripts'))
    from readme import readme

    text, pictures = readme()
    assert (ROOT / 'README.md').read_text(encoding='utf-8') == text, "run make notebooks"
    assert {p.name for p in (ROOT / 'docs' / 'readme').iterdir()} == set(pictures)


@pytest.mark.parametrize(
    'words, message', [(['sofa'], "There is no step 'sofa'; there are: env, data, browser.")]
)
def test_bootstrap_speaks(words, message):
    done = subprocess.run(
        [sys.executable, str(ROOT / 'scripts' / 'bootstrap.py'), *words], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert message in done.stderr


def test_make_help_lists_the_targets():
    printed = subprocess.run(
        ['make', '--no-print-directory', 'help'], cwd=ROOT, capture_output=True, text=True
    ).stdout
    explained = dict(line.split(maxsplit=1) for line in printed.splitlines())
    makefile = (ROOT / 'Makefile').read_text()
    targets = re.search(r'^\.PHONY: (.*)$', makefile, re.M)[1].split()
    assert sorted(explained) == sorted(targets)
    assert re.search(r'JupyterLab', explained['lab'])
    assert re.search(r'all tests', explained['test'])
