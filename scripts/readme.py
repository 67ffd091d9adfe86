"""Write README.md, and its pictures under docs/readme, from index.ipynb as it is stored."""

import re, shutil
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
FOLDER = 'docs/readme'


def readme() -> tuple[str, dict[str, bytes]]:  # the page, and its pictures by file name
    """The page that index.ipynb makes.
    Hidden cells and `#|` lines are left out; each picture carries its alt text."""
    nb = nbformat.read(ROOT / 'index.ipynb', as_version=4)
    nb.cells = [c for c in nb.cells if not re.search(r'^#\|\s*hide', c.source, re.M)]
    alts = [
        o.metadata['image/png']['alt']
        for c in nb.cells
        for o in c.get('outputs', [])
        if 'image/png' in o.get('data', {})
    ]
    for cell in nb.cells:
        if cell.cell_type == 'code':
            cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
        cell.setdefault('outputs', []) if cell.cell_type == 'code' else None
        for output in cell.get('outputs', []):
            if 'application/vnd.jupyter.widget-view+json' in output.get('data', {}):
                output['data'] = {'text/plain': 'A widget: run the notebook to touch it.'}
            if 'text/plain' in output.get('data', {}) and 'text/html' in output['data']:
                del output['data']['text/html']  # a table as text reads everywhere
    exporter = MarkdownExporter()
    text, resources = exporter.from_notebook_node(
        nb, resources={'output_files_dir': FOLDER, 'unique_key': 'tour'}
    )
    pictures = resources.get('outputs', {})
    names = iter(alts)
    text = re.sub(r'!\[png\]\(([^)]+)\)', lambda m: f'![{next(names)}]({m.group(1)})', text)
    note = '<!-- Generated from index.ipynb by scripts/readme.py: edit the notebook. -->\n\n'
    return note + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', {
        Path(k).name: v for k, v in pictures.items()
    }


def main() -> None:
    text, pictures = readme()
    shutil.rmtree(ROOT / FOLDER, ignore_errors=True)
    (ROOT / FOLDER).mkdir(parents=True)
    for name, data in pictures.items():
        (ROOT / FOLDER / name).write_bytes(data)
    (ROOT / 'README.md').write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
