"""PositionPuzzle: what it computes, its state and errors, its page in a real Chromium with the network off,
and a kernel behind it. The methods are fakes that keep the contract and nothing else."""

import json, re
from helpers import seeded
import numpy as np
import pytest
import torch
from browser import PATIENCE, jupyter_lab, nameless, run_all
from matplotlib.figure import Figure
from torch import nn
from vit_ssl_lab.components.patches import patchify
from vit_ssl_lab.encoders.vit import vit_nano
from vit_ssl_lab.explorers import PositionPuzzle
from vit_ssl_lab.explorers.base import read_static
from vit_ssl_lab.explorers.puzzle import put_back, shuffle_patches
from vit_ssl_lab.methods.mp3 import MP3

# not square: rows and columns must not be mixed up
GRID = (4, 6)
N = 24
# Each patch of a picture has its place as its grey value; a little of it is the picture's.
PICTURES = (
    torch.stack(
        [
            torch.arange(N).view(1, 4, 6).repeat_interleave(8, 1).repeat_interleave(8, 2) * 10 + i
            for i in range(4)
        ]
    )
    .to(torch.uint8)
    .expand(-1, 3, -1, -1)
)


class Knows(nn.Module):
    """Reads the place from the grey value; is unsure, and the more so the less it may look at; takes place 7
    for place 8."""

    grid, mask_ratio = GRID, 0.5

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))
        self.calls = 0
        self.broken = False

    def locate(self, images, mask=None):
        self.calls += 1
        assert not self.training
        assert mask is not None
        if self.broken:
            raise RuntimeError("out of memory")
        place = patchify(images.float(), 8).mean(-1).div(10).floor().long()  # (B, N)
        place = torch.where(place == 7, 8, place)
        return (8 * (1 - mask.ratio) * nn.functional.one_hot(place, N).float()).softmax(-1)


class Sits(Knows):
    "Cheats: says that every patch belongs where it lies."

    def locate(self, images, mask=None):
        return torch.eye(N).expand(len(images), N, N)


def puzzle(**kw):
    return PositionPuzzle(Knows(), PICTURES, **kw)


def grid_of(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.float32).reshape(N, N)


# --- what it computes


def test_put_back():
    p = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.4, 0.3, 0.3]])
    assert put_back(p) == [0, 1, 2]
    assert put_back(p, 'most likely') == [0, 0, 0]
    p = torch.rand(6, 6, generator=seeded(0)).softmax(-1)
    from itertools import permutations

    best = max(
        permutations(range(6)), key=lambda order: sum(p[i, j].log().item() for i, j in enumerate(order))
    )
    assert tuple(put_back(p)) == best, "of all permutations the most likely one"
    assert put_back(torch.eye(5)[[3, 1, 0, 4, 2]]) == [3, 1, 0, 4, 2], "a probability of zero is no trouble"
    with pytest.raises(ValueError, match="Did you mean 'most likely'"):
        put_back(p, 'most likly')


def test_shuffle_and_back():
    order = torch.rand(4, N).argsort(1)
    mixed = shuffle_patches(PICTURES, order, GRID)
    assert torch.equal(
        patchify(mixed.float(), 8), patchify(PICTURES.float(), 8)[torch.arange(4)[:, None], order]
    )
    assert torch.equal(shuffle_patches(mixed, order.argsort(1), GRID), PICTURES)
    with pytest.raises(ValueError, match='grid of 5 x 6'):
        shuffle_patches(PICTURES, order, (5, 6))


def test_the_method_s_answer_is_shown():
    e = puzzle()
    p = grid_of(e.probabilities)
    assert e.ratio == 0.5
    assert len(e.context) == 12
    assert sorted(e.order) == list(range(N))
    assert e.order != list(range(N))
    for slot, home in enumerate(e.order):
        assert e.likely[slot] == (8 if home == 7 else home) == p[slot].argmax()
    assert sorted(e.placed) == list(range(N))
    assert sum(a == b for a, b in zip(e.placed, e.order)) >= N - 2
    confusion = grid_of(e.confusion)
    assert confusion[7].argmax() == 8
    assert all(confusion[i].argmax() == i for i in range(N) if i != 7)
    assert np.allclose(confusion.sum(1), 1, atol=1e-5)


def test_a_method_that_reads_the_place_is_caught():
    e = PositionPuzzle(Sits(), PICTURES)
    assert e.likely == list(range(N)), "it leaves the patches shuffled"
    assert sum(a == b for a, b in zip(e.likely, e.order)) < 5, "it leaves the patches shuffled"


def test_a_context_of_the_slider():
    e = puzzle()
    sure = grid_of(e.probabilities).max(1).mean()
    order = e.order
    e.ratio = 0.9
    assert len(e.context) == 2
    assert grid_of(e.probabilities).max(1).mean() < sure
    assert e.order == order
    assert e.error == ''
    e.seed = 1
    assert e.order != order
    e.seed, e.ratio = 0, 0.5
    assert e.order == order


def test_work_is_done_once():
    e = puzzle()
    e.method.calls = 0
    e.picture = 2
    assert e.method.calls == 1, "the confusion map is kept"
    e.set_state({'ratio': 0.25, 'seed': 3})
    assert e.method.calls == 1 + 2
    for change in ({'patch': 3}, {'assign': 'most likely'}, {'show': 'all pictures'}):
        e.set_state(change)
    assert e.method.calls == 3, "pointing and putting back ask nothing"


@pytest.mark.parametrize(
    'change, message',
    [
        ({'ratio': 1.0}, '0 <= ratio < 1'),
        ({'ratio': 0.97}, 'leaves none of 24'),
        ({'picture': 9}, 'no picture 9'),
    ],
)
def test_errors_are_sentences_and_pass(change, message):
    e = puzzle()
    before = e.probabilities
    e.set_state(change)
    assert re.search(message, e.error)
    assert e.probabilities == before
    e.set_state({'ratio': 0.5, 'picture': 0})
    assert e.error == ''
    e.method.broken = True
    e.seed = 1
    assert e.error == 'RuntimeError: out of memory'


def test_bad_input():
    for bad, message in (
        (lambda: PositionPuzzle(nn.Linear(2, 2), PICTURES), 'has no locate'),
        (lambda: PositionPuzzle(Knows(), PICTURES[..., :30, :]), "don't divide"),
        (lambda: PositionPuzzle(Knows(), torch.randn(2, 3, 32, 48)), 'undo the normalisation'),
    ):
        with pytest.raises(ValueError, match=message):
            bad()
    line = Knows()
    line.grid = (24,)
    with pytest.raises(ValueError, match=r'rows and columns; this method\'s grid is \(24,\)'):
        PositionPuzzle(line, PICTURES)


def test_mp3_plays_and_is_left_as_it_was():
    torch.manual_seed(0)
    m = MP3(vit_nano(img_size=(32, 48), patch_size=8, depth=1, positions='none')).train()
    e = PositionPuzzle(m, PICTURES)
    assert e.ratio == 0.75
    assert len(e.context) == 6
    assert m.training
    assert all(x.training for x in m.modules())
    grey = PositionPuzzle(Knows(), PICTURES[:1, :1])
    assert grey.likely == [8 if i == 7 else i for i in grey.order]
    assert isinstance(grey.figure(), Figure)


@pytest.mark.parametrize('assign', ['each once', 'most likely'])
@pytest.mark.parametrize('show', ['this patch', 'all pictures'])
def test_figure(assign, show):
    e = puzzle()
    e.assign, e.show = assign, show
    fig = e.figure()
    assert len(fig.axes) == 5
    assert 'of 24 in place' in fig.get_suptitle()


def test_page_is_one_file(tmp_path):
    text = puzzle().to_html(tmp_path / 'page.html')
    assert not re.search(r'https?:|src=|<link|@import|\bimport\b[^a-z]*[\'"(]|fetch\(', text)
    assert '{{' not in text
    state = json.loads(
        re.search(r'<script type="application/json" id="state">(.*?)</script>', text, re.S).group(1)
    )
    assert state['keys'] == ['picture']
    assert len(state['answers']) == 4
    assert 'confusion' not in state['answers']['[1]']
    module = read_static('base.js') + read_static('puzzle.js')
    assert module.count('export default { render };') == 1
    assert re.search(r"return \(\) => ui\.close\(\)", module)
    assert not re.search(r'^\s*import\b', module, re.M)


# --- a browser


def point(page, canvas, cell):
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(
        box['x'] + (cell % 6 + 0.5) * box['width'] / 6,
        box['y'] + (cell // 6 + 0.5) * box['height'] / 4,
        steps=2,
    )


def status_text(page) -> str:
    return page.locator('.vsl-status').inner_text()


@pytest.mark.browser
def test_pointing_at_patches(open_page):
    e = puzzle()
    page = open_page(e)
    root = page.locator('.vsl')
    canvas = page.locator('canvas.vsl-shuffled')
    p = grid_of(e.probabilities)
    for slot in (0, 13, 23):
        point(page, canvas, slot)
        assert root.get_attribute('data-patch') == str(slot)
        assert root.get_attribute('data-home') == str(e.order[slot])
        assert root.get_attribute('data-place') == str(e.placed[slot])
        assert root.get_attribute('data-best') == str(e.likely[slot])
        assert float(root.get_attribute('data-top')) == pytest.approx(p[slot].max(), abs=1e-3)
        home = e.order[slot]
        assert f'patch from row {home // 6 + 1}, column {home % 6 + 1}' in status_text(page)
    right = sum(a == b for a, b in zip(e.placed, e.order))
    assert root.get_attribute('data-right') == str(right)
    assert f'{right} of 24 in place' in status_text(page)
    assert root.get_attribute('data-context') == '12'
    assert root.get_attribute('data-answered') == '0', "no kernel was asked"
    back = page.locator('canvas.vsl-back')
    point(page, back, 9)
    assert root.get_attribute('data-place') == '9'
    assert root.get_attribute('data-patch') == str(e.placed.index(9))
    page.mouse.move(1, 1)
    assert root.get_attribute('data-patch') == str(e.patch), (
        "away from the panes the pinned patch is shown again"
    )


@pytest.mark.browser
def test_put_back_where_most_likely(open_page):
    e = puzzle()
    page = open_page(e)
    root, back = page.locator('.vsl'), page.locator('canvas.vsl-back')
    page.locator('[data-trait=assign] [data-value="most likely"]').click()
    assert root.get_attribute('data-right') == str(sum(a == b for a, b in zip(e.likely, e.order))) == '23'
    point(page, back, 8)
    assert root.get_attribute('data-place') == '8'
    assert root.get_attribute('data-home') in ('7', '8')
    point(page, back, 7)
    assert root.get_attribute('data-patch') == str(e.patch), "a place that none wants is empty"


@pytest.mark.browser
def test_the_confusion_map(open_page):
    e = puzzle()
    page = open_page(e)
    root = page.locator('.vsl')
    page.locator('[data-trait=show] [data-value="all pictures"]').click()
    slot = e.order.index(7)
    point(page, page.locator('canvas.vsl-shuffled'), slot)
    assert float(root.get_attribute('data-shown')) == pytest.approx(grid_of(e.confusion)[7, 7], abs=1e-3)
    assert 'all pictures' in page.locator('figure:has(.vsl-places) figcaption').inner_text()


@pytest.mark.browser
def test_by_keyboard(open_page):
    e = puzzle()
    e.patch = 0
    page = open_page(e)
    root = page.locator('.vsl')
    canvas = page.locator('canvas.vsl-shuffled')
    canvas.focus()
    assert canvas.evaluate("c => getComputedStyle(c).outlineStyle") in ('solid', 'auto'), "the focus is seen"
    page.keyboard.press('ArrowDown')
    page.keyboard.press('ArrowRight')
    assert root.get_attribute('data-patch') == '7'
    for _ in range(9):
        page.keyboard.press('ArrowLeft')
    assert root.get_attribute('data-patch') == '6', "the cursor stays inside"
    back = page.locator('canvas.vsl-back')
    back.focus()
    page.keyboard.press('ArrowRight')
    want = e.placed[6] + (1 if e.placed[6] % 6 < 5 else 0)
    assert root.get_attribute('data-place') == str(want)
    page.locator('[data-trait=show] [aria-checked=true]').focus()
    page.keyboard.press('ArrowRight')
    assert page.locator('[data-trait=show] [aria-checked=true]').get_attribute('data-value') == 'all pictures'


@pytest.mark.browser
def test_pictures_are_stored_and_the_rest_is_off(open_page):
    e = puzzle()
    page = open_page(e)
    root = page.locator('.vsl')
    assert page.locator('[data-trait=ratio]').is_disabled()
    assert page.locator('[data-trait=seed]').is_disabled()
    assert 'no Python' in page.locator('.vsl-note').last.inner_text()
    page.locator('[data-trait=picture] button').nth(2).click()
    e.picture = 2
    from playwright.sync_api import expect

    expect(root).to_have_attribute('data-answered', '1')
    point(page, page.locator('canvas.vsl-shuffled'), 5)
    assert root.get_attribute('data-home') == str(e.order[5])


@pytest.mark.browser
def test_everything_has_a_name(open_page):
    page = open_page(puzzle())
    assert nameless(page) == []
    assert page.locator('canvas:not([aria-label]):not([aria-hidden])').count() == 0


@pytest.mark.browser
def test_errors_are_announced(open_page):
    e = puzzle()
    e.ratio = 1.0
    alert = open_page(e).get_by_role('alert')
    assert alert.is_visible()
    assert '0 <= ratio < 1' in alert.inner_text()


NOTEBOOK = '''
import torch; torch.set_num_threads(1); torch.manual_seed(0)
from vit_ssl_lab.encoders.vit import vit_nano
from vit_ssl_lab.explorers import PositionPuzzle
from vit_ssl_lab.methods.mp3 import MP3
method = MP3(vit_nano(img_size=48, patch_size=8, depth=1, positions='none'))
PositionPuzzle(method, torch.randint(256, (3, 3, 48, 48), dtype=torch.uint8))
---
print('ALL' + 'DONE')
'''


@pytest.mark.browser
def test_a_kernel_answers(browser, tmp_path):
    "In JupyterLab: the slider and the shuffle ask the kernel, pointing does not."
    import nbformat
    from playwright.sync_api import expect

    cells = [nbformat.v4.new_markdown_cell('# Widgets')] + [
        nbformat.v4.new_code_cell(c.strip()) for c in NOTEBOOK.split('---')
    ]
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=cells,
            metadata={'kernelspec': dict(display_name='Python 3', language='python', name='python3')},
        ),
        tmp_path / 'widgets.ipynb',
    )
    with jupyter_lab(tmp_path, OMP_NUM_THREADS='1') as (address, token):
        page = browser.new_page(viewport=dict(width=1400, height=1200), reduced_motion='reduce')
        page.set_default_timeout(1000 * PATIENCE)
        wrong = []
        page.on('pageerror', lambda e: wrong.append(str(e)))
        run_all(page, address, token, 'widgets.ipynb', 'ALLDONE')
        root = page.locator('.vsl')
        root.wait_for()
        root.scroll_into_view_if_needed()
        assert root.get_attribute('data-context') == '9'
        slider = root.locator('[data-trait=ratio]')
        slider.focus()
        page.keyboard.press('Home')
        expect(root).to_have_attribute('data-answered', '1')
        assert root.get_attribute('data-context') == '36'
        home = root.get_attribute('data-home')
        root.get_by_role('button', name='next shuffle').click()
        expect(root).to_have_attribute('data-answered', '2')
        seen = {home, root.get_attribute('data-home')}
        canvas = root.locator('canvas.vsl-shuffled')
        canvas.focus()
        page.keyboard.press('ArrowRight')
        page.keyboard.press('ArrowDown')
        seen.add(root.get_attribute('data-home'))
        assert len(seen) > 1
        assert root.get_attribute('data-answered') == '2'
        assert not wrong
        page.close()
