"""What a notebook must look like, where a rule can be enforced: see CONTRIBUTING.md."""

import ast, base64, filecmp, json, re, shutil, statistics, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = [
    ROOT / 'index.ipynb',
    *sorted(
        p
        for p in (ROOT / 'nbs').rglob('*.ipynb')
        if not p.is_symlink() and '.ipynb_checkpoints' not in p.parts
    ),
]
LECTURE = [
    'Play first',
    'Predict',
    'The idea in one picture',
    'Paper to code',
    'Build it',
    'Proof',
    'Train it here',
    'Look inside',
    'Break it',
    "The paper's claim, measured",
    'Full run on a GPU',
    'Exercises',
    'Recap',
]
MODULES = sorted(p for p in (ROOT / 'vit_ssl_lab').rglob('*.py') if p.name != '_modidx.py')


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def source(cell) -> str:
    return ''.join(cell['source'])


def directives(cell) -> set:
    return set(re.findall(r'^#\|\s*(\w+)', source(cell), re.M))


def lines(cell) -> int:
    return sum(bool(l.strip()) and not l.startswith('#|') for l in source(cell).splitlines())


def lint(nb: dict, name: str, size: int = 0) -> list[str]:
    "Every complaint about one notebook, as sentences."
    out, cells = [], nb['cells']
    code = [c for c in cells if c['cell_type'] == 'code' and source(c).strip()]
    own = [c for c in code if not directives(c) & {'export', 'exporti', 'default_exp', 'hide'}]
    title = source(cells[0])
    if not re.match(r'# .+\n+> .+', title):
        out.append("the first cell is no title with a subtitle (> ...)")
    if size > 1_500_000:
        out.append(f"{size // 1000} kB stored, over 1500")
    if 'widgets' in nb['metadata']:
        out.append("metadata.widgets is stored: GitHub refuses such a page")
    if set(nb['metadata']) - {'kernelspec', 'language_info'}:
        out.append(f"metadata that nobody needs: {sorted(nb['metadata'])}")
    for i, c in enumerate(cells):
        where, text = f"cell {i}", source(c)
        if c['cell_type'] != 'code':
            for alt, _ in re.findall(r'!\[(.*?)\]\((.*?)\)', text):
                if not alt.strip():
                    out.append(f"{where}: a picture without alt text")
            continue
        if re.search(r'^#\|\s*eval:\s*false', text, re.M):
            out.append(f"{where}: eval: false can never be switched on, use the flag slow or gpu")
        if (
            re.search(r'''\.cuda\(|['"]cuda['"]''', text)
            and not directives(c) & {'gpu', 'export'}
            and 'is_available' not in text
        ):
            out.append(f"{where}: asks for CUDA without the flag gpu")
        limit = 90 if 'export' in directives(c) else 45
        if lines(c) > limit:
            out.append(f"{where}: {lines(c)} lines, over {limit}")
        if c.get('execution_count') is not None:
            out.append(f"{where}: an execution count is stored: run nbdev_clean")
        for o in c.get('outputs', []):
            if o.get('output_type') == 'error':
                out.append(f"{where}: a stored traceback")
            if o.get('name') == 'stderr':
                out.append(f"{where}: stored stderr")
            data = o.get('data', {})
            if 'image/png' in data:
                if not o.get('metadata', {}).get('image/png', {}).get('alt', '').strip():
                    out.append(f"{where}: a stored picture without alt text")
                if len(base64.b64decode(''.join(data['image/png']))) > 160_000:
                    out.append(f"{where}: a stored picture over 160 kB")
            page = ''.join(o.get('text', [])) + ''.join(
                ''.join(v) for k, v in data.items() if k.startswith('text/')
            )
            if m := re.search(r'(?<![\w.:/])/(?:home|root|tmp|work|Users|var)/\w+', page):
                out.append(f"{where}: an absolute path, {m.group()}")
            if re.search(r'\d+%\|.*\|', page) or '\r' in page:
                out.append(f"{where}: the debris of a progress bar")
    if own and statistics.median(map(lines, own)) > 12:
        out.append(f"half of the cells are longer than {statistics.median(map(lines, own)):.0f} lines")
    if len(own) > 3 and not any(c.get('outputs') for c in own):
        out.append("no stored outputs: execute it before committing")
    if '/methods/' in name:
        headings = [
            h
            for c in cells
            if c['cell_type'] == 'markdown'
            for h in re.findall(r'^##+\s+(.*)', source(c), re.M)
        ]
        out += [
            f"the section {s!r} is missing"
            for s in LECTURE
            if not any(s.lower() in h.lower() for h in headings)
        ]
    return out


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_notebook(path):
    assert not lint(json.loads(path.read_text(encoding='utf-8')), name_of(path), path.stat().st_size)


def broken(**changes) -> list[str]:
    "Complaints about a small good notebook with one thing spoiled."
    good = dict(
        cell_type='code',
        source='1 + 1',
        metadata={},
        execution_count=None,
        outputs=[dict(output_type='execute_result', data={'text/plain': '2'}, metadata={})],
    )
    nb = dict(
        metadata={},
        cells=[dict(cell_type='markdown', source='# Title\n\n> subtitle', metadata={}), {**good, **changes}],
    )
    return lint(nb, 'nbs/x.ipynb')


@pytest.mark.parametrize(
    'changes, complaint',
    [
        (dict(source='#| eval: false\n1'), 'eval: false'),
        (dict(source='x.cuda()'), 'flag gpu'),
        (dict(source='x = 1\n' * 50), 'over 45'),
        (dict(outputs=[dict(output_type='stream', name='stderr', text='w')]), 'stderr'),
        (dict(outputs=[dict(output_type='error')]), 'traceback'),
        (
            dict(outputs=[dict(output_type='display_data', data={'image/png': 'AAAA'}, metadata={})]),
            'alt text',
        ),
        (dict(outputs=[dict(output_type='stream', name='stdout', text='in /home/me/x')]), 'absolute path'),
        (dict(outputs=[dict(output_type='stream', name='stdout', text=' 10%|#  | 1/10')]), 'progress bar'),
        (dict(execution_count=3), 'execution count'),
    ],
)
def test_the_linter_sees(changes, complaint):
    assert not broken()
    assert any(complaint in c for c in broken(**changes))


def test_export_is_in_sync(tmp_path):
    "The package is what the notebooks export, to the letter."
    for name in ('nbs', 'settings.ini', 'index.ipynb', 'pyproject.toml'):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(
            ROOT / name, tmp_path / name, **({'symlinks': True} if (ROOT / name).is_dir() else {})
        )
    (tmp_path / 'vit_ssl_lab').mkdir()
    subprocess.run(
        [sys.executable, '-c', 'from nbdev.doclinks import nbdev_export\nnbdev_export()'],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    fresh = {str(p.relative_to(tmp_path)) for p in (tmp_path / 'vit_ssl_lab').rglob('*.py')}
    assert fresh == {str(p.relative_to(ROOT)) for p in (ROOT / 'vit_ssl_lab').rglob('*.py')}, (
        "a module without a notebook, or the other way round"
    )
    _, different, missing = filecmp.cmpfiles(tmp_path, ROOT, sorted(fresh), shallow=False)
    assert not different and not missing, f"run nbdev_export: {different + missing}"


def public(tree: ast.Module):
    "The functions and classes of a module that `__all__` names, methods included."
    names = next(
        (
            ast.literal_eval(n.value)
            for n in tree.body
            if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__'
        ),
        [],
    )
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names:
            yield node


def undocumented(text: str) -> list[str]:
    "Public functions and classes of a module without docstring, or with a parameter that no comment explains."
    out, rows = [], text.splitlines()
    for node in public(ast.parse(text)):
        if not ast.get_docstring(node):
            out.append(f"{node.name} has no docstring")
        function = (
            next((m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == '__init__'), None)
            if isinstance(node, ast.ClassDef)
            else node
        )
        if function is None:
            continue
        a = function.args
        arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
        out += [
            f"{node.name}: the parameter {x.arg} has no comment"
            for x in arguments
            if x.arg not in ('self', 'cls') and '#' not in rows[x.lineno - 1]
        ]
    return out


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_public_names_have_docments(path):
    assert not undocumented(path.read_text(encoding='utf-8'))


FLOORS = [
    {'core'},
    {'show', 'results'},
    {'notebook'},
    {'components', 'data'},
    {'encoders'},
    {'methods'},
    {'weights'},
    {'training'},
    {'evaluation'},
    {'explorers', 'studies'},
]


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_imports_go_down(path):
    "A module imports from its own floor's folder and from floors below; no method imports another."
    level = {part: i for i, floor in enumerate(FLOORS) for part in floor}
    parts = path.relative_to(ROOT / 'vit_ssl_lab').with_suffix('').parts
    if parts == ('__init__',):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            target = (*parts[: -node.level], *(node.module or '').split('.'))
        elif (node.module or '').startswith('vit_ssl_lab.'):
            target = tuple(node.module.split('.')[1:])
        else:
            continue
        target = tuple(t for t in target if t)
        if not target or target[0] == parts[0]:
            assert not (parts[0] == 'methods' and target[0] == 'methods' and target != parts), (
                f"a method imports another: {target}"
            )
            continue
        assert level[target[0]] < level[parts[0]], (
            f"{'.'.join(parts)} imports {'.'.join(target)}, which is not below it"
        )
