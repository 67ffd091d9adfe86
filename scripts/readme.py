"""Write README.md, and its pictures under docs/readme, from index.ipynb as it is stored; before that, bring
the last column of the index's table of papers up to date."""

import json
import re
import shutil
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from stored import with_stored_runs

ROOT = Path(__file__).resolve().parent.parent
FOLDER = 'docs/readme'
NOTE = '<!-- Generated from index.ipynb by scripts/readme.py: edit the notebook. -->\n\n'
WIDGET = 'application/vnd.jupyter.widget-view+json'


def plain(output: dict) -> dict:
    "A stored output as a page without scripts can show it."
    data = output.get('data', {})
    if WIDGET in data and 'image/png' not in data:
        output['data'] = {'text/plain': 'A widget: run the notebook to touch it.'}
    elif 'text/plain' in data and 'text/html' in data:
        del data['text/html']  # a table as text reads everywhere
    return output


def readme() -> tuple[str, dict[str, bytes]]:  # the page, and its pictures by file name
    """The page that index.ipynb makes.
    Hidden cells and `#|` lines are left out; each picture carries its alt text."""
    nb = nbformat.read(ROOT / 'index.ipynb', as_version=4)
    nb.cells = [c for c in nb.cells if not re.search(r'^#\|\s*hide', c.source, re.M)]
    alts = []
    for cell in nb.cells:
        if cell.cell_type != 'code':
            continue
        cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
        cell.outputs = [plain(output) for output in cell.get('outputs', [])]
        alts += [o.metadata['image/png']['alt'] for o in cell.outputs if 'image/png' in o.get('data', {})]
    where = {'output_files_dir': FOLDER, 'unique_key': 'tour'}
    text, resources = MarkdownExporter().from_notebook_node(nb, resources=where)
    names = iter(alts)
    text = re.sub(r'!\[png\]\(([^)]+)\)', lambda m: f'![{next(names)}]({m.group(1)})', text)
    text = re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'
    pictures = {Path(path).name: data for path, data in resources.get('outputs', {}).items()}
    return NOTE + text, pictures


def refresh_table() -> None:
    "Write what is stored under results/ into the index's table."
    path = ROOT / 'index.ipynb'
    text = path.read_text(encoding='utf-8')
    nb = json.loads(text)
    for cell in nb['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            cell['source'] = with_stored_runs(source).splitlines(True)
    fresh = json.dumps(nb, ensure_ascii=False, indent=1, sort_keys=True) + '\n'
    if fresh != text:
        path.write_text(fresh, encoding='utf-8')


def main() -> None:
    refresh_table()
    text, pictures = readme()
    shutil.rmtree(ROOT / FOLDER, ignore_errors=True)
    (ROOT / FOLDER).mkdir(parents=True)
    for name, data in pictures.items():
        (ROOT / FOLDER / name).write_bytes(data)
    (ROOT / 'README.md').write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
