"""What a notebook, a module and a script must look like, where a rule can be enforced: functions that return
complaints as sentences. CONTRIBUTING.md explains the rules."""

import ast
import base64
import io
import re
import statistics
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

WIDTH = 110  # columns of code, comments and strings
JS_WIDTH = 120
CELL = 600  # characters of a cell that isn't exported
FOLDED_CELL = 1500  # of a cell that only draws, and is folded away
DRAWING_LINES = 4  # plotting calls from which on a cell is a drawing, to be folded
EXPORTED_LINES = 160
PICTURE_BYTES = 160_000
NOTEBOOK_BYTES = 1_500_000

# Lectures whose own cells (not exported) are still as wide as they were: they are rewritten one by one,
# and the list only gets shorter.
REWRITTEN_LATER = [
    'nbs/methods/01_mae.ipynb',
    'nbs/methods/02_simclr.ipynb',
    'nbs/methods/03_byol.ipynb',
    'nbs/methods/04_moco.ipynb',
    'nbs/methods/05_simsiam.ipynb',
    'nbs/methods/06_mocov3.ipynb',
    'nbs/methods/07_momentum_projector.ipynb',
    'nbs/methods/08_sdssl.ipynb',
    'nbs/methods/09_maskfeat.ipynb',
    'nbs/methods/10_supmae.ipynb',
    'nbs/methods/11_cmae.ipynb',
    'nbs/methods/12_macrl.ipynb',
    'nbs/methods/13_occlusion.ipynb',
    'nbs/methods/14_extrema.ipynb',
    'nbs/methods/15_mp3.ipynb',
    'nbs/methods/16_fcmae.ipynb',
    'nbs/methods/17_dino.ipynb',
    'nbs/methods/18_esvit.ipynb',
    'nbs/methods/19_flip.ipynb',
    'nbs/studies/01_early_convolutions.ipynb',
    'nbs/studies/02_fair_benchmark.ipynb',
    'nbs/studies/03_critical_factors.ipynb',
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


def source(cell) -> str:
    return ''.join(cell['source'])


def directives(cell) -> set:
    "The words of a cell's `#|` lines."
    return set(re.findall(r'^#\|\s*(\w+)', source(cell), re.M))


def is_own(cell) -> bool:
    "A cell that the reader meets: not exported, not hidden."
    return not directives(cell) & {'export', 'exporti', 'default_exp', 'hide'}


def is_folded(cell) -> bool:
    return bool(cell['metadata'].get('jupyter', {}).get('source_hidden'))


def drawing_lines(cell) -> int:
    "Lines that call a method of matplotlib's figures and axes."
    return len(re.findall(r'^\s*(?:ax|axes\[[^]]*\]|fig|plt|twin)\.\w+\(', source(cell), re.M))


def code_lines(cell) -> int:
    return sum(bool(line.strip()) and not line.startswith('#|') for line in source(cell).splitlines())


def wide_lines(text: str, width: int = WIDTH) -> list[int]:
    "Numbers of the lines that are too wide, from 1."
    return [i for i, line in enumerate(text.splitlines(), 1) if len(line) > width]


def semicolons(text: str) -> list[int]:
    "Lines with a semicolon between statements."
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    try:
        return [t.start[0] for t in tokens if t.type == tokenize.OP and t.string == ';']
    except (tokenize.TokenError, IndentationError):
        return []  # a cell of magics is no Python


def lint_python(text: str) -> list[str]:
    "Complaints about a script or a test."
    out = [f"line {i} is over {WIDTH} columns" for i in wide_lines(text)]
    return out + [f"line {i} has a semicolon: one statement a line" for i in semicolons(text)]


def lint_size(cell, where: str) -> list[str]:
    "Complaints about how much a code cell holds."
    text, out = source(cell), []
    out += [f"{where}, line {i} is over {WIDTH} columns" for i in wide_lines(text)]
    out += [f"{where}, line {i} has a semicolon: one statement a line" for i in semicolons(text)]
    if not is_own(cell):
        if code_lines(cell) > EXPORTED_LINES:
            out.append(f"{where}: {code_lines(cell)} lines, over {EXPORTED_LINES}")
    elif drawing_lines(cell) >= DRAWING_LINES and not is_folded(cell):
        out.append(f"{where}: {drawing_lines(cell)} lines that draw: fold it, or move them into a helper")
    elif len(text) > CELL and not is_folded(cell):
        out.append(f"{where}: {len(text)} characters, over {CELL}: split it, or fold it if it only draws")
    elif len(text) > FOLDED_CELL:
        out.append(f"{where}: {len(text)} characters, over {FOLDED_CELL} even for a folded cell")
    return out


def lint_output(output, where: str) -> list[str]:
    "Complaints about one stored output."
    out, data = [], output.get('data', {})
    if output.get('output_type') == 'error':
        out.append(f"{where}: a stored traceback")
    if output.get('name') == 'stderr':
        out.append(f"{where}: stored stderr")
    if 'image/png' in data:
        if not output.get('metadata', {}).get('image/png', {}).get('alt', '').strip():
            out.append(f"{where}: a stored picture without alt text")
        if len(base64.b64decode(''.join(data['image/png']))) > PICTURE_BYTES:
            out.append(f"{where}: a stored picture over {PICTURE_BYTES // 1000} kB")
    texts = [''.join(value) for kind, value in data.items() if kind.startswith('text/')]
    page = ''.join(output.get('text', [])) + ''.join(texts)
    path = re.search(r'(?<![\w.:/])/(?:home|root|tmp|work|Users|var)/\w+', page)
    if path:
        out.append(f"{where}: an absolute path, {path.group()}")
    if re.search(r'\d+%\|.*\|', page) or '\r' in page:
        out.append(f"{where}: the debris of a progress bar")
    if re.search(r'\b0x[0-9a-f]{8,}\b', page):
        out.append(f"{where}: a memory address, another one in each run")
    return out


def lint_cell(cell, where: str) -> list[str]:
    "Complaints about one code cell, except about its size."
    text, out = source(cell), []
    if re.search(r'^#\|\s*eval:\s*false', text, re.M):
        out.append(f"{where}: eval: false can never be switched on, use the flag slow or gpu")
    asks_for_cuda = re.search(r'''\.cuda\(|['"]cuda['"]''', text) and 'is_available' not in text
    if asks_for_cuda and not directives(cell) & {'gpu', 'export'}:
        out.append(f"{where}: asks for CUDA without the flag gpu")
    if cell.get('execution_count') is not None:
        out.append(f"{where}: an execution count is stored: run nbdev_clean")
    for output in cell.get('outputs', []):
        out += lint_output(output, where)
    return out


def lint_lecture(cells) -> list[str]:
    "A method's notebook has all sections of a lecture, unless it says that it is a research page."
    if re.search(r'\bresearch page\b', source(cells[0]), re.I):
        return []
    texts = [source(c) for c in cells if c['cell_type'] == 'markdown']
    headings = [h.lower() for text in texts for h in re.findall(r'^##+\s+(.*)', text, re.M)]
    return [f"the section {s!r} is missing" for s in LECTURE if not any(s.lower() in h for h in headings)]


def lint_notebook(nb: dict, name: str, size: int = 0) -> list[str]:
    "Every complaint about one notebook, as sentences."
    cells = nb['cells']
    out = []
    if not re.match(r'# .+\n+> .+', source(cells[0])):
        out.append("the first cell is no title with a subtitle (> ...)")
    if size > NOTEBOOK_BYTES:
        out.append(f"{size // 1000} kB stored, over {NOTEBOOK_BYTES // 1000}")
    if 'widgets' in nb['metadata']:
        out.append("metadata.widgets is stored: GitHub refuses such a page")
    if set(nb['metadata']) - {'kernelspec', 'language_info'}:
        out.append(f"metadata that nobody needs: {sorted(nb['metadata'])}")
    for i, cell in enumerate(cells):
        where = f"cell {i}"
        if cell['cell_type'] == 'code':
            out += lint_cell(cell, where)
            if not (name in REWRITTEN_LATER and is_own(cell)):
                out += lint_size(cell, where)
            continue
        alts = [alt for alt, _ in re.findall(r'!\[(.*?)\]\((.*?)\)', source(cell))]
        if not all(alt.strip() for alt in alts):
            out.append(f"{where}: a picture without alt text")
    own = [c for c in cells if c['cell_type'] == 'code' and source(c).strip() and is_own(c)]
    if own and statistics.median(map(code_lines, own)) > 12 and name not in REWRITTEN_LATER:
        out.append(f"half of the cells are longer than {statistics.median(map(code_lines, own)):.0f} lines")
    if len(own) > 3 and not any(c.get('outputs') for c in own):
        out.append("no stored outputs: execute it before committing")
    if '/methods/' in name and '/base/' not in name:
        out += lint_lecture(cells)
    return out


def public(tree: ast.Module):
    "The functions and classes of a module that `__all__` names."
    names = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__':
            names = ast.literal_eval(node.value)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names:
            yield node


def constructor(node: ast.FunctionDef | ast.ClassDef) -> ast.FunctionDef | None:
    "The function whose parameters a reader has to know: the function itself, or a class's `__init__`."
    if isinstance(node, ast.FunctionDef):
        return node
    inits = [m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == '__init__']
    return inits[0] if inits else None


def undocumented(text: str) -> list[str]:
    "Public functions and classes of a module without docstring, or with a parameter without a comment."
    out, rows = [], text.splitlines()
    for node in public(ast.parse(text)):
        if not ast.get_docstring(node):
            out.append(f"{node.name} has no docstring")
        function = constructor(node)
        if function is None:
            continue
        a = function.args
        arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
        for x in arguments:
            beside = rows[x.lineno - 1 : x.end_lineno]
            above = rows[x.lineno - 2].lstrip()
            commented = any('#' in row for row in beside) or above.startswith('#')
            if x.arg not in ('self', 'cls') and not commented:
                out.append(f"{node.name}: the parameter {x.arg} has no comment")
    return out
