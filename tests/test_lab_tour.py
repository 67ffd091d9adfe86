"""The tour as a reader meets it: index.ipynb in a real JupyterLab, Run All, then a widget is moved."""

from pathlib import Path
import nbformat
import pytest
from browser import PATIENCE, chromium, jupyter_lab, run_all

sync = pytest.importorskip('playwright.sync_api', reason="there is no playwright: `make test` installs it")
pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parent.parent


def test_the_tour_runs_and_answers(tmp_path):
    notebook = nbformat.read(ROOT / 'index.ipynb', as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            cell.outputs = []  # what is seen below was made by this run
    notebook.cells.append(nbformat.v4.new_code_cell("print('ALL' + 'DONE')"))
    nbformat.write(notebook, tmp_path / 'index.ipynb')
    with (
        chromium() as browser,
        jupyter_lab(
            tmp_path, IN_TEST='1', OMP_NUM_THREADS='1', VIT_SSL_LAB_RESULTS=str(ROOT / 'results')
        ) as (address, token),
    ):
        page = browser.new_page(viewport=dict(width=1400, height=1200), reduced_motion='reduce')
        page.set_default_timeout(1000 * PATIENCE)
        wrong = []
        page.on('pageerror', lambda e: wrong.append(str(e)))
        run_all(page, address, token, 'index.ipynb', 'ALLDONE')
        assert (
            page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]').count() == 0
        )
        assert page.locator('.jp-RenderedImage img').count() >= 1
        root = page.locator('.vsl').first
        root.scroll_into_view_if_needed()

        def expect(locator):
            return sync.expect(locator)

        before = root.get_attribute('data-answered')
        said = root.locator('.vsl-status').inner_text()
        slider = root.locator('input[type=range]').first
        slider.focus()
        page.keyboard.press('Home')
        page.keyboard.press('ArrowRight')
        expect(root).not_to_have_attribute('data-answered', before)
        expect(root.locator('.vsl-status')).not_to_have_text(said)
        assert root.locator('.vsl-alert').text_content() == ''
        assert not wrong
