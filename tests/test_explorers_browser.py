"""The explorers in a real Chromium: exported pages with the network off, and one JupyterLab in which the
kernel answers. Everything is asserted on the DOM, never on pixels."""

import numpy as np
import pytest
import torch
from browser import PATIENCE, jupyter_lab, nameless, run_all
from test_explorers import (
    attention,
    collapse,
    features,
    mask_explorer,
    positions,
    reconstruction,
    siamese,
    views,
)
from vit_ssl_lab.explorers.siamese import infonce_row

sync = pytest.importorskip('playwright.sync_api', reason="there is no playwright: `make test` installs it")
expect = sync.expect
expect.set_options(timeout=1000 * PATIENCE)
pytestmark = pytest.mark.browser


def cell(canvas, rows: int, cols: int, row: int, col: int) -> dict:
    "Where a cell of a pane is, for the mouse."
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    return dict(
        x=box['x'] + (col + 0.5) * box['width'] / cols, y=box['y'] + (row + 0.5) * box['height'] / rows
    )


def hover(page, canvas, rows, cols, row, col):
    at = cell(canvas, rows, cols, row, col)
    page.mouse.move(at['x'], at['y'], steps=2)


def expect_status(page, text):
    expect(page.locator('.vsl-status')).to_contain_text(text)


def status(page):
    return page.locator('.vsl-status').inner_text()


# --- pages without a kernel


def test_mask_is_painted(open_page):
    page = open_page(mask_explorer())
    canvas = page.locator('canvas.vsl-mask')
    assert canvas.get_attribute('data-hidden') == '18'
    assert page.locator('[data-trait=ratio]').is_disabled()
    row, col = divmod(canvas.get_attribute('data-mask').index('0'), 6)
    hover(page, canvas, 4, 6, row, col)
    assert canvas.get_attribute('data-hover') == str(row * 6 + col)
    page.mouse.down()
    page.mouse.up()
    assert canvas.get_attribute('data-hidden') == '19'
    assert '19 of 24 patches hidden' in status(page)
    was = canvas.get_attribute('data-mask')
    hover(page, canvas, 4, 6, 3, 0)
    page.mouse.down()  # a stroke over a row: what its first cell became, all become
    for c in range(1, 6):
        hover(page, canvas, 4, 6, 3, c)
    page.mouse.up()
    assert canvas.get_attribute('data-mask') == was[:18] + str(1 - int(was[18])) * 6
    assert page.locator('[data-trait=kind] [aria-checked=true]').get_attribute('data-value') == 'by hand'


def test_mask_by_keyboard(open_page):
    page = open_page(mask_explorer())
    canvas = page.locator('canvas.vsl-mask')
    canvas.focus()
    assert canvas.evaluate("c => getComputedStyle(c).outlineStyle") in ('solid', 'auto'), "the focus is seen"
    before = int(canvas.get_attribute('data-hidden'))
    page.keyboard.press('ArrowDown')
    page.keyboard.press('ArrowRight')
    assert canvas.get_attribute('data-cursor') == '7'
    assert 'row 2, column 2' in status(page)
    page.keyboard.press('Space')
    assert abs(int(canvas.get_attribute('data-hidden')) - before) == 1
    for key in ('ArrowLeft', 'ArrowLeft', 'ArrowUp', 'ArrowUp'):
        page.keyboard.press(key)
    assert canvas.get_attribute('data-cursor') == '0', "the cursor stays inside"


def test_reconstruction_keeps_its_stored_state(open_page):
    explorer = reconstruction()
    page = open_page(explorer)
    assert page.locator('[data-trait=kind] button').first.is_disabled()
    assert 'no Python' in page.locator('.vsl-note').last.inner_text()
    assert page.locator('canvas.vsl-live').count() == 5
    assert f'{explorer.mse:.4f} (estimated' in status(page)
    page.locator('[data-trait=pixels] [data-value=true]').click()
    expect_status(page, '0.0000 (true')
    page.locator('[data-trait=picture] button').nth(2).click()
    canvas = page.locator('canvas.vsl-mask')
    before = canvas.get_attribute('data-hidden')
    hover(page, canvas, 4, 6, 1, 1)
    page.mouse.down()
    page.mouse.up()
    assert canvas.get_attribute('data-hidden') == before, "a mask that nobody can answer is not painted"


def test_errors_are_announced(open_page):
    explorer = mask_explorer()
    explorer.ratio = 1.0
    alert = open_page(explorer).get_by_role('alert')
    assert alert.is_visible()
    assert '0 <= ratio < 1' in alert.inner_text()


def test_attention_answers_the_pointer(open_page):
    explorer = attention()
    page = open_page(explorer)
    root, canvas = page.locator('.vsl'), page.locator('canvas.vsl-query')
    for row, col in [(0, 0), (2, 5), (3, 1)]:
        hover(page, canvas, 4, 6, row, col)
        explorer.query = row * 6 + col
        want = float(explorer.current().mean(0)[1 + explorer.query, 1:].max())
        assert root.get_attribute('data-query') == str(explorer.query)
        assert float(root.get_attribute('data-top')) == pytest.approx(want, rel=0.01)
        assert f'row {row + 1}, column {col + 1}' in status(page)
    assert root.get_attribute('data-answered') == '0', "no kernel was asked"
    page.locator('[data-trait=direction] [data-value=to]').click()
    hover(page, canvas, 4, 6, 2, 2)
    assert float(root.get_attribute('data-top')) == pytest.approx(
        float(explorer.current().mean(0)[1:, 1 + 14].max()), rel=0.01
    )
    page.locator('.vsl-cls').click()
    assert root.get_attribute('data-query') == '-1'
    assert 'CLS' in status(page)


def test_attention_by_keyboard_and_head(open_page):
    explorer = attention()
    page = open_page(explorer)
    root, canvas = page.locator('.vsl'), page.locator('canvas.vsl-query')
    canvas.focus()
    start = explorer.query
    page.keyboard.press('ArrowRight')
    assert root.get_attribute('data-query') == str(start + 1)
    page.keyboard.press('ArrowUp')
    assert root.get_attribute('data-query') == str(start + 1 - 6)
    page.locator('.vsl-heads [data-head="-1"]').focus()
    page.keyboard.press('ArrowRight')
    assert page.locator('.vsl-heads [aria-checked=true]').get_attribute('data-head') == '0'
    assert 'head 1' in status(page)
    explorer.query = start + 1 - 6
    assert float(root.get_attribute('data-top')) == pytest.approx(
        float(explorer.current()[0, 1 + explorer.query, 1:].max()), rel=0.01
    )


def test_attention_layers_are_stored(open_page):
    explorer = attention()
    page = open_page(explorer)
    root = page.locator('.vsl')
    layer = page.locator('[data-trait=layer]')
    layer.focus()
    page.keyboard.press('Home')
    expect_status(page, 'layer 1,')
    explorer.layer = 0
    assert float(root.get_attribute('data-top')) == pytest.approx(
        float(explorer.current().mean(0)[1 + explorer.query, 1:].max()), rel=0.01
    )
    page.locator('[data-trait=rollout] [data-value=true]').click()
    expect_status(page, 'rollout')
    assert page.locator('.vsl-heads button').count() == 1


def test_positions(open_page):
    explorer = positions()
    page = open_page(explorer)
    root, canvas = page.locator('.vsl'), page.locator('canvas.vsl-map')
    hover(page, canvas, 4, 6, 1, 1)
    values = explorer.cosines[0, 7].clone()
    values[7] = -2
    assert root.get_attribute('data-query') == '7'
    assert float(values[int(root.get_attribute('data-best'))]) == pytest.approx(float(values.max()), abs=0.01)
    page.locator('[data-trait=table] [data-value="1"]').click()
    canvas.focus()
    page.keyboard.press('ArrowDown')
    q = int(root.get_attribute('data-query'))
    values = explorer.cosines[1, q].clone()
    values[q] = -2
    assert int(root.get_attribute('data-best')) == int(values.argmax())
    assert '· b' in status(page)


def test_views(open_page):
    explorer = views()
    page = open_page(explorer)
    root = page.locator('.vsl')
    assert root.get_attribute('data-views') == '12'
    assert page.locator('[data-trait=blur]').is_disabled()
    canvas = page.locator('.vsl-sheet canvas')
    hover(page, canvas, 2, 6, 1, 3)
    assert root.get_attribute('data-view') == '9'
    assert explorer.words[9] in status(page)
    canvas.focus()
    page.keyboard.press('ArrowRight')
    assert explorer.words[int(root.get_attribute('data-view'))] in status(page)
    page.locator('[data-trait=picture] button').nth(1).click()
    expect(root).to_have_attribute('data-answered', '1')
    explorer.picture = 1
    hover(page, canvas, 2, 6, 0, 1)
    assert explorer.words[1] in status(page)


def test_features(open_page):
    explorer = features()
    page = open_page(explorer)
    root = page.locator('.vsl')
    canvas = page.locator('canvas.vsl-scatter')
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    points = torch.frombuffer(bytearray(explorer.points), dtype=torch.float32).view(4, 2)
    for i, (x, y) in enumerate(points.tolist()):
        pad = 26 / 640
        page.mouse.move(
            box['x'] + box['width'] * (pad + x * (1 - 2 * pad)),
            box['y'] + box['height'] * (pad + (1 - y) * (1 - 2 * pad)),
        )
        assert root.get_attribute('data-picture') == str(i)
        assert [f.get_attribute('data-picture') for f in page.locator('.vsl-mates figure').all()] == [
            str(j) for j in explorer.near[i].tolist()
        ]
    canvas.focus()
    seen = set()
    for key in ('ArrowRight', 'ArrowLeft', 'ArrowUp', 'ArrowDown') * 2:
        page.keyboard.press(key)
        page.mouse.move(1, 1)
        seen.add(root.get_attribute('data-picture'))
    assert len(seen) > 1, "arrow keys move over the map"
    board = page.locator('canvas.vsl-patches').nth(1)
    hover(page, board, 4, 6, 2, 3)
    q = 24 + 15
    values = explorer.patch_cosines(explorer.shown)[q].clone()
    values[24:48] = -2
    assert root.get_attribute('data-patch') == str(q)
    assert float(values[int(root.get_attribute('data-match'))]) == pytest.approx(
        float(values.max()), abs=0.02
    )


def test_siamese_row_follows_the_temperature(open_page):
    explorer = siamese()
    page = open_page(explorer)
    root, row = page.locator('.vsl'), page.locator('.vsl-row')

    def cosines():
        return np.frombuffer(explorer.logits, np.float32)

    def agrees():
        want = infonce_row(cosines(), explorer.picture, float(root.get_attribute('data-temperature')))
        assert float(root.get_attribute('data-positive')) == pytest.approx(
            want['p'][explorer.picture], abs=2e-3
        )
        assert float(root.get_attribute('data-loss')) == pytest.approx(want['loss'], abs=5e-3)
        assert root.get_attribute('data-rank') == str(want['rank'])
        assert row.locator('figure').first.get_attribute('data-key') == str(explorer.picture)
        negatives = [int(f.get_attribute('data-key')) for f in row.locator('figure').all()][1:]
        assert negatives == [i for i in np.argsort(-cosines(), kind='stable') if i != explorer.picture]
        return float(root.get_attribute('data-positive'))

    assert root.get_attribute('data-temperature') == '0.500'
    warm = agrees()
    slider = page.locator('[data-trait=temperature]')
    slider.focus()
    page.keyboard.press('Home')
    assert root.get_attribute('data-temperature') == '0.010'
    assert slider.get_attribute('aria-valuetext') == '0.010'
    assert agrees() != pytest.approx(warm, abs=0.01)
    for _ in range(5):
        page.keyboard.press('PageUp')
    agrees()
    page.get_by_role('button', name='as trained').click()
    assert agrees() == pytest.approx(warm, abs=1e-4)
    page.locator('[data-trait=picture] button').nth(2).click()
    explorer.picture = 2
    expect(row.locator('figure').first).to_have_attribute('data-key', '2')
    agrees()
    assert page.locator('.vsl-crop').first.get_attribute('data-box') == ' '.join(
        str(round(v)) for v in explorer.boxes[0]
    )


def test_siamese_vectors_are_read(open_page):
    explorer = siamese()
    page = open_page(explorer)
    root = page.locator('.vsl')
    canvas = page.locator('canvas.vsl-vectors')
    values = np.frombuffer(explorer.vectors, np.float32).reshape(4, 6)
    hover(page, canvas, 4, 6, 1, 0)
    assert root.get_attribute('data-dimension') == str(values[0].argmin())
    page.locator('[data-trait=order] [data-value=index]').click()
    expect(root).to_have_attribute('data-answered', '1')
    canvas.focus()
    page.keyboard.press('ArrowRight')
    assert root.get_attribute('data-dimension') == '1'
    assert f'p1 {values[2, 1]:.2f}' in page.locator('.vsl-under').inner_text()
    crop = page.locator('.vsl-crop').first
    before = crop.get_attribute('data-box')
    assert crop.get_attribute('tabindex') is None, "what no kernel answers can't be moved"
    assert page.locator('.vsl-crop i').count() == 0, "what no kernel answers can't be moved"
    box = crop.bounding_box()
    page.mouse.move(box['x'] + box['width'] / 2, box['y'] + box['height'] / 2)
    page.mouse.down()
    page.mouse.move(box['x'], box['y'])
    page.mouse.up()
    assert crop.get_attribute('data-box') == before
    assert (
        page.locator('[data-cosine="p1 · z2"]').get_attribute('aria-label')
        == f'p1 · z2: {explorer.cosines[1][1]:.2f}'
    )


def test_siamese_error_is_shown(open_page):
    explorer = siamese()
    explorer.place(0, (0, 0, 99, 8))
    alert = open_page(explorer).get_by_role('alert')
    assert alert.is_visible()
    assert 'A crop lies within the picture' in alert.inner_text()


def test_collapse_looks_back(open_page):
    explorer = collapse()
    explorer.stop_gradient = False
    explorer.advance(10)
    page = open_page(explorer)
    root = page.locator('.vsl')
    canvas = page.locator('canvas.vsl-chart').nth(1)
    assert root.get_attribute('data-step') == '30'
    assert root.get_attribute('data-records') == '7'
    assert page.locator('.vsl-start').is_disabled()
    assert page.locator('[role=switch]').first.is_disabled()
    assert explorer.sentence in page.locator('.vsl-verdict').inner_text()
    assert root.get_attribute('data-formula').startswith('loss = − cos( h(z1), z2 )')
    assert float(root.get_attribute('data-std')) == pytest.approx(explorer.run.state['std'], abs=1e-3)
    hover(page, canvas, 1, 100, 0, 19)  # 64 of 600 pixels are the axis; 100 steps are the rest
    assert root.get_attribute('data-shown') == '10'
    assert 'step 10:' in status(page)
    assert explorer.sentence in page.locator('.vsl-verdict').inner_text()
    page.mouse.down()
    page.mouse.up()
    expect(page.locator('.vsl-verdict')).to_contain_text(explorer.run.records[2]['sentence'])
    canvas.focus()
    page.mouse.move(1, 1)
    page.keyboard.press('ArrowRight')
    expect(page.locator('.vsl-verdict')).to_contain_text(f"step 15 · {explorer.run.records[3]['sentence']}")
    page.locator('.vsl-latest').click()
    expect(page.locator('.vsl-verdict')).to_contain_text(explorer.sentence)


@pytest.mark.parametrize(
    'make', [mask_explorer, attention, views, siamese, collapse], ids=lambda f: f.__name__
)
def test_everything_has_a_name(open_page, make):
    "What can be focused can be heard: a role and a label."
    page = open_page(make())
    assert nameless(page) == []
    assert page.locator('[role=radiogroup]:not([aria-label])').count() == 0
    assert page.locator('.vsl[aria-label]').count() == 1


# WCAG's contrast of the text and of the notes with the background.
CONTRAST = """() => {
    const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const linear = byte => {
        const x = byte / 255;
        return x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
    };
    const luminance = colour => {
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map(linear);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const root = getComputedStyle(document.querySelector('.vsl'));
    const note = getComputedStyle(document.querySelector('.vsl-note'));
    const back = luminance(root.backgroundColor);
    return [root.color, note.color].map(colour => {
        const text = luminance(colour);
        return (Math.max(text, back) + .05) / (Math.min(text, back) + .05);
    });
}"""


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_readable_in_light_and_dark(browser, tmp_path, scheme):
    positions().to_html(tmp_path / 'page.html')
    page = browser.new_page(color_scheme=scheme)
    page.goto((tmp_path / 'page.html').as_uri())
    contrast = page.evaluate(CONTRAST)
    page.close()
    assert min(contrast) >= 4.5, "WCAG AA"


# --- a kernel behind them

NOTEBOOK = '''
import torch; torch.set_num_threads(1); torch.manual_seed(0)
from vit_ssl_lab.encoders.vit import vit_nano
from vit_ssl_lab.data.views import views
from vit_ssl_lab.explorers import AttentionExplorer, CollapseExplorer, ReconstructionExplorer, SiameseExplorer
from vit_ssl_lab.methods.mae import MAE
method = MAE(vit_nano(img_size=48, patch_size=8, depth=2), decoder_width=32, decoder_depth=1, decoder_heads=2)
pictures = torch.randint(256, (3, 3, 48, 48), dtype=torch.uint8)
---
ReconstructionExplorer(method, pictures, ratio=.5)
---
AttentionExplorer(method.encoder, pictures)
---
method.views = views('simsiam', 48, (.5,) * 3, (.5,) * 3)
SiameseExplorer(method, pictures)
---
CollapseExplorer(width=64, batch=32, size=8, limit=10**6)
---
print('ALL' + 'DONE')
'''


@pytest.fixture(scope='module')
def lab_page(browser, tmp_path_factory):
    import nbformat

    root = tmp_path_factory.mktemp('lab')
    cells = [nbformat.v4.new_markdown_cell('# Widgets')] + [
        nbformat.v4.new_code_cell(c.strip()) for c in NOTEBOOK.split('---')
    ]
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=cells,
            metadata={'kernelspec': dict(display_name='Python 3', language='python', name='python3')},
        ),
        root / 'widgets.ipynb',
    )
    with jupyter_lab(root, OMP_NUM_THREADS='1') as (address, token):
        page = browser.new_page(viewport=dict(width=1400, height=1200), reduced_motion='reduce')
        page.set_default_timeout(1000 * PATIENCE)
        wrong = []
        page.on('pageerror', lambda e: wrong.append(str(e)))
        run_all(page, address, token, 'widgets.ipynb', 'ALLDONE')
        page.locator('.vsl').nth(3).wait_for()
        yield page
        assert not wrong
        page.close()


def explorer_in(lab_page, label: str):
    root = lab_page.locator(f'.vsl[aria-label="{label}"]')
    root.scroll_into_view_if_needed()
    return root


def answered(root) -> int:
    return int(root.get_attribute('data-answered'))


def wait_answer(root, before: int):
    expect(root).to_have_attribute('data-busy', 'false')
    expect(root).not_to_have_attribute('data-answered', str(before))


def test_lab_slider_asks_the_kernel(lab_page):
    root = explorer_in(lab_page, 'Reconstruction explorer')
    canvas = root.locator('canvas.vsl-mask')
    assert canvas.get_attribute('data-hidden') == '18'
    before = answered(root)
    said = root.locator('.vsl-status').inner_text()
    slider = root.locator('[data-trait=ratio]')
    slider.focus()
    lab_page.keyboard.press('ArrowRight')
    wait_answer(root, before)
    assert canvas.get_attribute('data-hidden') == str(36 - int(36 * (1 - 0.55)))
    assert root.locator('.vsl-status').inner_text() != said
    box = slider.bounding_box()
    before = answered(root)
    lab_page.mouse.move(box['x'] + box['width'] * 0.5, box['y'] + box['height'] / 2)
    lab_page.mouse.down()
    lab_page.mouse.move(box['x'] + box['width'] * 0.8, box['y'] + box['height'] / 2, steps=8)
    assert answered(root) == before, "a drag asks nothing"
    lab_page.mouse.up()
    wait_answer(root, before)
    assert answered(root) == before + 1
    assert int(canvas.get_attribute('data-hidden')) > 22


def test_lab_paint_error_and_recovery(lab_page):
    root = explorer_in(lab_page, 'Reconstruction explorer')
    canvas = root.locator('canvas.vsl-mask')
    # a stroke that begins on a visible patch hides
    before = answered(root)
    first = canvas.get_attribute('data-mask').index('0')
    hover(lab_page, canvas, 6, 6, *divmod(first, 6))
    lab_page.mouse.down()
    for i in range(36):
        at = cell(canvas, 6, 6, *divmod(i, 6))
        lab_page.mouse.move(at['x'], at['y'])
    lab_page.mouse.up()
    wait_answer(root, before)
    assert 'All 36 patches are hidden' in root.get_by_role('alert').inner_text()
    before = answered(root)
    canvas.focus()
    lab_page.keyboard.press('Space')
    wait_answer(root, before)  # reveals the cell under the cursor
    assert root.locator('.vsl-alert').text_content() == ''
    assert canvas.get_attribute('data-hidden') == '35'
    before = answered(root)
    lab_page.keyboard.press('ArrowRight')
    lab_page.keyboard.press('Enter')
    wait_answer(root, before)
    assert canvas.get_attribute('data-hidden') == '34'
    assert lab_page.locator('.jp-Notebook.jp-mod-editMode').count() == 0, "the keys stayed in the widget"


def test_lab_hover_stays_in_the_browser(lab_page):
    root = explorer_in(lab_page, 'Attention explorer')
    canvas = root.locator('canvas.vsl-query')
    before = answered(root)
    tops = set()
    for row, col in [(0, 0), (3, 4), (5, 5)]:
        hover(lab_page, canvas, 6, 6, row, col)
        assert root.get_attribute('data-query') == str(row * 6 + col)
        tops.add(root.get_attribute('data-top'))
    assert answered(root) == before
    assert len(tops) > 1
    root.locator('[data-trait=layer]').focus()
    lab_page.keyboard.press('Home')
    wait_answer(root, before)
    assert 'layer 1' in root.locator('.vsl-status').inner_text()
    assert answered(root) == before + 1
    root.locator('[data-trait=picture] button').nth(1).click()
    wait_answer(root, before + 1)
    assert answered(root) == before + 2


def drag(page, start: tuple, by: tuple):
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(start[0] + by[0], start[1] + by[1], steps=4)


def test_lab_a_crop_is_dragged(lab_page):
    root = explorer_in(lab_page, 'Siamese explorer')
    crop = root.locator('.vsl-crop').first
    frame = root.locator('.vsl-source')

    def box_of():
        return [int(v) for v in crop.get_attribute('data-box').split()]

    crop.focus()
    before = answered(root)
    old = box_of()  # by keyboard: to the corner, then smaller
    for _ in range(max(old[0], old[1]) + 1):
        lab_page.keyboard.press('ArrowUp')
        lab_page.keyboard.press('ArrowLeft')
    for _ in range(3):
        lab_page.keyboard.press('Shift+ArrowLeft')
    lab_page.keyboard.press('Shift+ArrowUp')
    assert box_of() == [0, 0, old[2] - 1, old[3] - 3]
    wait_answer(root, before)
    expect(root.locator('.vsl-words').first).to_contain_text(f'crop {old[2] - 1} x {old[3] - 3} px')
    assert lab_page.locator('.jp-Notebook.jp-mod-editMode').count() == 0, "the keys stayed in the widget"
    corner = crop.locator('[data-corner=br]').bounding_box()
    pixel = frame.bounding_box()['width'] / 48
    before = answered(root)
    said = root.locator('[data-cosine]').first.get_attribute('aria-label')
    target = [20, 24]  # a corner is dragged; the opposite one stays
    drag(
        lab_page,
        (corner['x'] + corner['width'] / 2, corner['y'] + corner['height'] / 2),
        ((target[1] - box_of()[3]) * pixel, (target[0] - box_of()[2]) * pixel),
    )
    assert box_of() == [0, 0, *target], "a drag asks nothing"
    assert answered(root) == before, "a drag asks nothing"
    lab_page.mouse.up()
    wait_answer(root, before)
    assert answered(root) == before + 1
    box = crop.bounding_box()
    before = answered(root)
    # beyond the edge: it stays inside
    drag(lab_page, (box['x'] + box['width'] / 2, box['y'] + box['height'] * 0.6), (10 * pixel, 500))
    assert box_of() == [28, 10, *target]
    lab_page.mouse.up()
    wait_answer(root, before)
    expect(root.locator('.vsl-words').first).to_contain_text('crop 20 x 24 px')
    assert root.locator('[data-cosine]').first.get_attribute('aria-label') != said
    before = answered(root)
    root.locator('.vsl-dice').click()
    wait_answer(root, before)
    assert box_of() == old


def test_lab_temperature_stays_in_the_browser(lab_page):
    root = explorer_in(lab_page, 'Siamese explorer')
    before = answered(root)
    was = root.get_attribute('data-positive')
    root.locator('[data-trait=temperature]').focus()
    lab_page.keyboard.press('Home')
    assert root.get_attribute('data-positive') != was
    assert answered(root) == before


def test_lab_a_run_collapses_and_stops(lab_page):
    root = explorer_in(lab_page, 'Collapse explorer')
    verdict = root.locator('.vsl-verdict')

    def steps():
        return int(root.get_attribute('data-step'))

    assert steps() == 0
    assert root.locator('.vsl-start').inner_text() == 'start'
    root.locator('.vsl-start').click()
    expect(root).to_have_attribute('data-running', 'true')
    expect(root.locator('.vsl-start')).to_have_text('stop')
    lab_page.wait_for_function("r => +r.dataset.step >= 40", arg=root.element_handle())
    assert 'healthy' in verdict.inner_text()
    other = explorer_in(lab_page, 'Reconstruction explorer')
    before = answered(other)  # while it trains, the kernel answers
    other.locator('[data-trait=picture] button').nth(2).click()
    wait_answer(other, before)
    assert root.get_attribute('data-running') == 'true'
    root.locator('[data-trait=stop_gradient]').click()
    expect(root.locator('[data-trait=stop_gradient]')).to_have_attribute('aria-checked', 'false')
    assert 'stop(' not in root.get_attribute('data-formula')
    expect(verdict).to_contain_text('collapsed')
    assert float(root.get_attribute('data-std')) < 0.1
    root.locator('.vsl-start').focus()
    lab_page.keyboard.press('Space')
    expect(root).to_have_attribute('data-running', 'false')
    lab_page.wait_for_timeout(400)
    at = steps()
    lab_page.wait_for_timeout(600)
    assert steps() == at, "stopped is stopped"
    root.locator('.vsl-reset').click()
    expect(root).to_have_attribute('data-step', '0')
    expect(verdict).not_to_contain_text('collapsed')
    assert root.locator('.vsl-alert').text_content() == ''
    assert root.locator('[data-trait=stop_gradient]').get_attribute('aria-checked') == 'false'
