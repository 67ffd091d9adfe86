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


def requirement_lists() -> list[str]:
    "The names of the lists: requirements, and one for each extra."
    return [key for key in settings() if key.endswith('requirements')]


def entries(key: str) -> list[str]:
    lines = [line.strip() for line in settings()[key].splitlines()]
    return [line for line in lines if line and not line.startswith('#')]


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
        'PIL': 'pillow',
        'cycler': 'matplotlib',
        'IPython': 'ipython',
        'sklearn': 'scikit-learn',
        'skimage': 'scikit-image',
        'mpl_toolkits': 'matplotlib',
        'open_clip': 'open_clip_torch',
        'resvg_py': 'resvg-py',
    }
    named = set()
    for key in requirement_lists():
        if key != 'dev_requirements':
            named |= {Requirement(line).name for line in entries(key)}
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
    for key in requirement_lists():
        for line in entries(key):
            name = canonicalize_name(Requirement(line).name)
            assert name in pinned, f"{name} has no tested version in constraints.txt"


def test_every_requirement_has_a_reason_and_a_floor():
    "A comment in settings.ini names it; what it needs at least is said, or what it must not reach."
    text = (ROOT / 'settings.ini').read_text(encoding='utf-8')
    reasons = ' '.join(line for line in text.splitlines() if line.startswith('#')).replace('_', '-')
    for key in requirement_lists():
        for line in entries(key):
            requirement = Requirement(line)
            name = requirement.name.replace('_', '-')
            assert re.search(rf'(?<![\w-]){re.escape(name)}(?![\w-])', reasons, re.I), (
                f"{name} is named without a reason"
            )
            assert str(requirement.specifier), f"{name} has no bound"


def test_extras_hold_what_a_researcher_does_not_need():
    named = {
        key: {canonicalize_name(Requirement(line).name) for line in entries(key)}
        for key in requirement_lists()
    }
    only_extra = {
        'transformers',
        'jupyterlab',
        'nbconvert',
        'nbclient',
        'ipykernel',
        'open-clip-torch',
        'datasets',
    }
    assert not only_extra & named['requirements']
    assert {'lab_requirements', 'proofs_requirements', 'text_requirements'} <= named.keys()
    meta = metadata.metadata('vit_ssl_lab')
    extras = {key.removesuffix('_requirements') for key in named if key != 'requirements'}
    assert set(meta.get_all('Provides-Extra')) == extras | {'all'}
    of_all = {Requirement(line).name for line in metadata.requires('vit_ssl_lab') if 'extra == "all"' in line}
    of_all = {canonicalize_name(name) for name in of_all}
    assert of_all == set().union(
        *(v for k, v in named.items() if k not in ('requirements', 'dev_requirements'))
    )


# modules of the extras and of the tests; a researcher has none of them
NOT_INSTALLED = ['transformers', 'open_clip', 'jupyterlab', 'nbconvert', 'nbclient', 'nbformat', 'ipykernel']
NOT_INSTALLED += [
    'datasets',
    'resvg_py',
    'nbdev',
    'execnb',
    'lightly',
    'kornia',
    'tensorboard',
    'webdataset',
    'pytest',
]
WITHOUT = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition('.')[0] in {NOT_INSTALLED} else super().find_spec(name, path, target)

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""
WORK = """
import importlib, pkgutil
import vit_ssl_lab
names = [m.name for m in pkgutil.walk_packages(vit_ssl_lab.__path__, 'vit_ssl_lab.')]
for name in names:
    if name not in ('vit_ssl_lab.encoders.text', 'vit_ssl_lab.stored'):
        importlib.import_module(name)
from vit_ssl_lab.data import load
from vit_ssl_lab.evaluation import knn
from vit_ssl_lab.training import build, pretrain, recipe
from vit_ssl_lab.weights import load_encoder, save
digits = load('digits')
laptop = recipe('mae', 'laptop', data='digits', steps=3, batch_size=8, img_size=8, patch_size=2)
method = build(laptop, digits)
history = pretrain(method, digits, laptop, live=False)
score = knn(method.encoder, digits.subset(100), load('digits', 'test').subset(50))
encoder, report = load_encoder(save(method, 'x.safetensors'))
print('done', len(names), round(score.value) >= 0)
"""
SENTENCES = {
    "import vit_ssl_lab.encoders.text": "The text encoder needs open_clip, which isn't installed: "
    "run pip install 'vit_ssl_lab[text]'.",
    "from vit_ssl_lab.evaluation.zero_shot import prompt_templates as p; p('7')": "vit_ssl_lab[text]",
    "from vit_ssl_lab.notebook import run_notebook; run_notebook('x.ipynb')": "vit_ssl_lab[lab]",
    "from vit_ssl_lab.data.image_text import draw_icon; draw_icon('<svg/>', 8)": "vit_ssl_lab[emoji]",
    "from vit_ssl_lab.data import load; load('hf:me/x')": "vit_ssl_lab[hub]",
}


@pytest.mark.processes
def test_a_researcher_needs_none_of_the_extras(tmp_path):
    "Every module but the text encoder is imported, a network trained, scored, saved and loaded."
    command = [sys.executable, '-c', WITHOUT + WORK]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1].startswith('done'), done.stderr[-3000:]


@pytest.mark.processes
@pytest.mark.parametrize('code', SENTENCES)
def test_what_is_not_installed_is_named_with_its_extra(code):
    done = subprocess.run([sys.executable, '-c', WITHOUT + code], capture_output=True, text=True)
    assert done.returncode == 1
    assert SENTENCES[code] in done.stderr.strip().splitlines()[-1]


def test_the_floors_are_tested_by_a_script_that_make_and_the_workflow_run():
    sys.path.insert(0, str(ROOT / 'scripts'))
    import lowest

    lowest_of = lowest.floors()
    names = {
        canonicalize_name(Requirement(line).name) for key in requirement_lists() for line in entries(key)
    }
    assert {'torch', 'timm', 'transformers', 'pandas'} <= set(lowest_of) <= names
    right = dict(lowest_of)
    assert lowest.untested(right) == []
    assert lowest.untested(right | {'torch': '9.9'}) == [
        f"torch has the floor {lowest_of['torch']}, and 9.9 was installed"
    ]
    assert 'scripts/lowest.py' in (ROOT / 'Makefile').read_text()
    assert 'make lowest' in (ROOT / '.github' / 'workflows' / 'test.yml').read_text()


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
