"""The zero-shot explorer: its numbers, its exported page in a real Chromium with the network off, and one
JupyterLab in which typed captions are answered."""

import textwrap
from helpers import seeded
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from browser import PATIENCE, jupyter_lab, run_all
from test_flip import small
from vit_ssl_lab.explorers import ZeroShotExplorer

CAPTIONS = ['a red bag', 'a blue coat on brick', 'two cats']
PICTURES = torch.randint(256, (5, 3, 24, 24), dtype=torch.uint8, generator=seeded(0))


def zero_shot():
    return ZeroShotExplorer(small().eval(), PICTURES, CAPTIONS, mean=(0.5,) * 3, std=(0.25,) * 3)


# --- the numbers


def test_matrix_and_maps_are_the_methods():
    e = zero_shot()
    m = e.method
    x = (PICTURES.float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        u = F.normalize(m.embed_images(x), dim=1)
        v = F.normalize(m.embed_texts(CAPTIONS), dim=1)
        np.testing.assert_allclose(e.matrix(), u @ v.T, atol=1e-5)
        np.testing.assert_allclose(
            np.frombuffer(e.maps, np.float32).reshape(5, 3, 16).mean(-1), u @ v.T, atol=1e-5
        )
    assert e.scale == pytest.approx(1 / 0.07, rel=1e-4)
    assert e.caption == int((u @ v.T)[0].argmax())
    assert not m.training


def test_a_method_in_training_stays_so():
    m = small().train()
    e = ZeroShotExplorer(m, PICTURES, CAPTIONS)
    e.text = 'a dog'
    assert m.training
    assert e.captions == ['a dog']
    assert e.caption == 0
    assert e.answered == 1


def test_errors_are_sentences():
    e = zero_shot()
    for text, said in (
        ('\n \n', 'There is no caption to compare with'),
        ('a red bag ' * 9, 'more than the context of 10'),
    ):
        e.text = text
        assert said in e.error, "what was compared stays"
        assert e.captions == CAPTIONS, "what was compared stays"
    e.text = 'a zebra'
    assert e.error == ''
    assert e.unread == 'Not among the words it has read: zebra.'


def test_figure_is_of_the_state():
    e = zero_shot()
    e.picture, e.caption = 2, 1
    fig = e.figure()
    assert CAPTIONS[1] in fig.axes[1].get_title()
    assert len(fig.axes[2].patches) == 3
    maps = np.frombuffer(e.maps, np.float32).reshape(5, 3, 4, 4)[2]
    np.testing.assert_allclose(e.shown(), maps[1] - maps.mean(0), atol=1e-6)
    e.relative = False
    np.testing.assert_array_equal(e.shown(), maps[1])


# --- a page without a kernel

sync = pytest.importorskip('playwright.sync_api', reason="there is no playwright: `make test` installs it")
expect = sync.expect
expect.set_options(timeout=1000 * PATIENCE)


def hover(page, canvas, rows, cols, row, col):
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(
        box['x'] + (col + 0.5) * box['width'] / cols, box['y'] + (row + 0.5) * box['height'] / rows, steps=2
    )


@pytest.mark.browser
def test_pointer(open_page):
    e = zero_shot()
    page = open_page(e)
    root = page.locator('.vsl')
    assert root.get_attribute('data-best') == str(e.matrix()[0].argmax())
    assert page.locator('.vsl-captions').is_disabled()
    assert 'no Python' in page.locator('.vsl-note').last.inner_text()
    order = e.matrix()[0].argsort()[::-1].tolist()
    assert [b.get_attribute('data-caption') for b in page.locator('.vsl-ranking button').all()] == [
        str(j) for j in order
    ]
    share = torch.tensor(e.scale * e.matrix()[0]).softmax(0).max().item()
    assert float(page.locator('.vsl-ranking button').first.inner_text().split(' %')[0]) == pytest.approx(
        100 * share, abs=0.6
    )
    page.locator('.vsl-ranking button').nth(2).click()
    e.caption = order[2]
    hover(page, page.locator('canvas.vsl-patches'), 4, 4, 1, 2)
    assert root.get_attribute('data-patch') == '6'
    assert float(root.get_attribute('data-added')) == pytest.approx(float(e.added()[1, 2]), abs=1e-3)
    expect(page.locator('.vsl-status')).to_contain_text('row 2, column 3 adds')
    ends = page.locator('.vsl-ends').first.inner_text()
    page.locator('[data-trait=relative] [data-value=false]').click()
    e.relative = False
    assert page.locator('.vsl-ends').first.inner_text() != ends
    assert float(page.locator('.vsl-ends').first.inner_text().split()[-1]) == pytest.approx(
        np.abs(e.shown()).max(), rel=0.06
    )
    # a cell of the matrix: that picture, that caption
    hover(page, page.locator('canvas.vsl-cosines'), 5, 3, 3, 1)
    assert (root.get_attribute('data-picture'), root.get_attribute('data-caption')) == ('3', '1')
    assert float(root.get_attribute('data-cosine')) == pytest.approx(float(e.matrix()[3, 1]), abs=1e-3)
    page.mouse.move(2, 2)
    assert root.get_attribute('data-picture') == '0', "only a click keeps it"
    hover(page, page.locator('canvas.vsl-cosines'), 5, 3, 4, 2)
    page.mouse.down()
    page.mouse.up()
    page.mouse.move(2, 2)
    assert (root.get_attribute('data-picture'), root.get_attribute('data-caption')) == ('4', '2')


@pytest.mark.browser
def test_keyboard(open_page):
    e = zero_shot()
    page = open_page(e)
    root = page.locator('.vsl')
    order = [str(j) for j in e.matrix()[0].argsort()[::-1]]
    page.locator('.vsl-ranking [aria-checked=true]').focus()
    page.keyboard.press('ArrowDown')
    assert root.get_attribute('data-caption') == order[1]
    assert page.evaluate('document.activeElement.dataset.caption') == order[1]
    page.keyboard.press('ArrowUp')
    page.keyboard.press('ArrowUp')
    assert root.get_attribute('data-caption') == order[2]
    page.locator('canvas.vsl-patches').focus()
    page.keyboard.press('ArrowRight')
    page.keyboard.press('ArrowDown')
    assert root.get_attribute('data-patch') == '5'
    page.locator('[data-trait=picture] [aria-checked=true]').focus()
    page.keyboard.press('ArrowRight')
    assert root.get_attribute('data-picture') == '1'
    assert root.get_attribute('data-best') == str(e.matrix()[1].argmax())
    page.locator('canvas.vsl-cosines').focus()
    page.keyboard.press('ArrowDown')
    assert root.get_attribute('data-picture') == '2'


# --- typed captions are answered by the kernel


@pytest.mark.browser
def test_typed_captions_in_jupyterlab(browser, tmp_path):
    import nbformat
    from pathlib import Path

    setup = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_zero_shot_explorer import zero_shot
        explorer = zero_shot()"""
    cells = [
        nbformat.v4.new_markdown_cell('# Zero-shot'),
        *map(
            nbformat.v4.new_code_cell, (textwrap.dedent(setup).strip(), 'explorer', "print('all ' + 'done')")
        ),
    ]
    nb = nbformat.v4.new_notebook(
        cells=cells, metadata={'kernelspec': dict(name='python3', display_name='Python 3', language='python')}
    )
    nbformat.write(nb, tmp_path / 'zero.ipynb')
    with jupyter_lab(tmp_path, OMP_NUM_THREADS='1') as (address, token):
        context = browser.new_context(viewport=dict(width=1200, height=1000), reduced_motion='reduce')
        page = context.new_page()
        run_all(page, address, token, 'zero.ipynb', 'all done')
        root = page.locator('.vsl')
        box = page.locator('.vsl-captions')
        box.scroll_into_view_if_needed()
        box.fill('a dog\na purple sneaker\na zebra on brick')
        page.locator('.vsl-compare').click()
        expect(root).to_have_attribute('data-answered', '1')
        expect(page.locator('.vsl-ranking button')).to_have_count(3)
        expect(page.locator('.vsl-unread')).to_contain_text('zebra')
        box.fill('')
        box.press('Control+Enter')  # the keyboard's way, and an error inside the widget
        expect(page.get_by_role('alert')).to_contain_text('There is no caption to compare with')
        context.close()
