"""The tour without a browser: run index.ipynb in a real kernel, write _out/tour.html, print the scores."""

import os
import re
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

from vit_ssl_lab.core import write_whole
from vit_ssl_lab.notebook import run_notebook

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / '_out'


def main() -> None:
    OUT.mkdir(exist_ok=True)
    threads = {'OMP_NUM_THREADS': str(os.cpu_count())}  # all cores: this one is in a hurry
    seconds = run_notebook(ROOT / 'index.ipynb', out=OUT / 'tour.ipynb', env=threads)
    nb = nbformat.read(OUT / 'tour.ipynb', as_version=4)
    page, _ = HTMLExporter().from_notebook_node(nb)
    write_whole(OUT / 'tour.html', page.encode('utf-8'))
    code = [c for c in nb.cells if c.cell_type == 'code']
    scores = [c for c in code if re.search(r'^#\| label: scores', c.source, re.M)]
    for cell in scores:
        for output in cell.outputs:
            print(output.get('text') or output['data'].get('text/plain', ''))
    html = (OUT / 'tour.html').relative_to(ROOT)
    print(f"The tour took {seconds:.0f} s; its pictures are in {html}.")


if __name__ == '__main__':
    main()
