"""HogExplorer and TargetExplorer: what they compute, their errors, pictures and pages; then in a real
Chromium, with the network off. Asserted on the DOM, never on pixels."""

import json, re
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from test_explorers import PICTURES, raw, state_of
from vit_ssl_lab.components.targets import CodeTarget, FeatureTarget, HOGTarget, LabelTarget, PixelTarget
from vit_ssl_lab.components.hog import hog
from vit_ssl_lab.components.tokenizer import Tokenizer
from vit_ssl_lab.encoders.vit import ViT
from vit_ssl_lab.explorers import HogExplorer, TargetExplorer
from vit_ssl_lab.explorers.base import read_static
from vit_ssl_lab.methods.maskfeat import MaskFeat


def vit():
    torch.manual_seed(0)
    return ViT(img_size=(32, 48), patch_size=8, embed_dim=24, depth=1, num_heads=2)


def model(target):
    return MaskFeat(vit(), target)


KINDS = {
    'raw': lambda: PixelTarget(8, normalise=False),
    'normal': lambda: PixelTarget(8),
    'HOG': lambda: HOGTarget(8, cell=4),
    'votes': lambda: HOGTarget(8, cell=4, norm='none'),
    'features': lambda: FeatureTarget(8, teacher=vit()),
    'labels': lambda: LabelTarget(8, teacher=vit(), head=nn.Linear(24, 5)),
    'hard': lambda: LabelTarget(8, teacher=vit(), head=nn.Linear(24, 5), hard=True),
    'words': lambda: CodeTarget(8, tokenizer=Tokenizer(8, size=16)),
}


def hogs():
    return HogExplorer(PICTURES)


def targets():
    return TargetExplorer(
        {'HOG': model(KINDS['HOG']()), 'pixels': model(KINDS['normal']())},
        PICTURES,
        targets={'raw': KINDS['raw']()},
    )


ALL = [hogs, targets]

# --- without a browser


@pytest.mark.parametrize('make', ALL, ids=lambda f: f.__name__)
def test_page_state_and_figure(make, tmp_path):
    explorer = make()
    text = explorer.to_html(tmp_path / 'page.html')
    assert "default-src 'none'" in text
    assert not re.search(r'https?:|src=|<link|@import|\bimport\b[^a-z]*[\'"(]|fetch\(', text)
    assert '{{' not in text
    assert text.count('const widget = { render };') == 1
    state = state_of(text)
    assert json.dumps([state['traits'][k] for k in state['keys']], separators=(',', ':')) in state['answers']
    assert set(state['keys']) <= set(state['traits']['offline'])
    assert isinstance(explorer.figure(), Figure)
    assert all(len(json.dumps(v)) < 20_000 for v in explorer.state().values() if not isinstance(v, bytes))
    assert len(text) < 6_000_000


@pytest.mark.parametrize('name', ['hog', 'target'])
def test_script_is_one_module(name):
    text = read_static('base.js') + read_static(f'{name}.js')
    assert text.count('export default { render };') == 1
    assert not re.search(r'^\s*import\b', text, re.M)
    assert re.search(r"return \(\) => ui\.close\(\)", text)


def test_votes_are_hogs():
    explorer = hogs()
    explorer.picture = 2
    explorer.cell = 4
    votes = np.frombuffer(explorer.votes, np.float32).reshape(explorer.dims)
    np.testing.assert_allclose(votes, hog(PICTURES[2:3].float() / 255, 4, norm='none')[0], atol=1e-5)
    answers = state_of(explorer.to_html())['answers']
    assert len(answers) == 4 * len(explorer.sizes)
    assert explorer.sizes == [4, 8, 16]
    assert raw(answers['[2,4]']['votes']) == explorer.votes
    assert state_of(HogExplorer(torch.rand(2, 3, 96, 96)).to_html())['keys'] == ['picture'], (
        "large pictures keep one size of cells"
    )


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(cell=7), 'Cells of 7 pixels do not divide a picture of 32 x 48'),
        (dict(picture=9), 'no picture 9'),
        (dict(bins=0), 'one bin or more'),
    ],
)
def test_hog_errors_pass(change, message):
    explorer = hogs()
    explorer.set_state(change)
    assert message in explorer.error
    explorer.set_state(dict(cell=8, picture=0, bins=9))
    assert explorer.error == ''


def test_hog_refuses():
    for bad, message in (
        (dict(cell=5), 'do not divide'),
        (dict(norm='l3'), "Did you mean 'l2'"),
        (dict(bins=0), 'one bin or more'),
    ):
        with pytest.raises(ValueError, match=message):
            HogExplorer(PICTURES, **bad)
    assert HogExplorer(torch.rand(1, 16, 16), cell=4).dims == [1, 9, 4, 4]


@pytest.mark.parametrize('name', KINDS)
def test_every_kind_is_drawn(name):
    m = model(KINDS[name]())
    m.train()
    explorer = TargetExplorer({name: m}, PICTURES)
    t, w = explorer.size
    shots = np.frombuffer(explorer.results, np.uint8).reshape(1, 2, t, w, 3)
    assert shots[0, 0].std() > 0
    assert explorer.constants[0] > 0 or name == 'words'
    assert not explorer.error
    assert m.training
    mask = explorer.mask
    x = m.views.prepare(PICTURES[:1])
    m.eval()
    with torch.no_grad():
        want = m.target.cost(m.predict(x, mask), m.target(x))[0]
    np.testing.assert_allclose(np.frombuffer(explorer.costs, np.float32), want, atol=1e-5)


def test_truth_of_raw_pixels_is_the_picture():
    explorer = TargetExplorer(model(KINDS['HOG']()), PICTURES, targets={'raw': KINDS['raw']()})
    t, w = explorer.size
    truth = np.frombuffer(explorer.results, np.uint8).reshape(2, 2, t, w, 3)[1, 0]
    assert explorer.targets == ['hog', 'raw']
    assert explorer.predicts_target == [True, False]
    assert np.abs(truth[:: t // 32, :: w // 48].astype(int) - PICTURES[0].permute(1, 2, 0).numpy()).max() <= 1


def test_masks_of_the_target_explorer():
    explorer = targets()
    assert explorer.kind == 'block'
    assert sum(explorer.hidden) == 10
    before = explorer.costs
    explorer.paint(torch.eye(4, 6))
    assert explorer.costs != before
    assert sum(explorer.hidden) == 4
    assert not explorer.error
    explorer.set_state({'hidden': memoryview(bytes([1] * 24)), 'kind': 'by hand'})
    assert 'leave at least one visible' in explorer.error
    explorer.set_state({'kind': 'random', 'ratio': 0.5})
    assert explorer.error == ''
    assert sum(explorer.hidden) == 12


def test_target_explorer_refuses():
    small = MaskFeat(ViT(img_size=(32, 48), patch_size=16, embed_dim=24, depth=1, num_heads=2))
    for case, message in (
        (lambda: TargetExplorer(vit(), PICTURES), 'give a MaskFeat'),
        (lambda: TargetExplorer({}, PICTURES), 'give a MaskFeat'),
        (lambda: TargetExplorer(model(KINDS['raw']()), PICTURES[..., :32]), 'resize them'),
        (
            lambda: TargetExplorer({'a': model(KINDS['raw']()), 'b': small}, PICTURES),
            'have one grid of patches',
        ),
    ):
        with pytest.raises(ValueError, match=message):
            case()


# --- in a browser

try:
    from test_explorers_browser import expect, hover, expect_status, status
except pytest.skip.Exception:
    browser = open_page = None


def values(page, k: int) -> list:
    return [float(v) for v in page.locator(f'.vsl-hog [data-bin="{k}"]').get_attribute('data-values').split()]


@pytest.mark.browser
def test_hover_reads_a_cell(open_page):
    explorer = hogs()
    page = open_page(explorer)
    root, canvas = page.locator('.vsl'), page.locator('canvas.vsl-cells')
    want = hog(PICTURES[:1].float() / 255, 8)[0].flatten(2)
    for row, col in ((0, 0), (3, 5), (1, 2)):
        hover(page, canvas, 4, 6, row, col)
        cell = row * 6 + col
        assert root.get_attribute('data-cell') == str(cell)
        assert f'row {row + 1}, column {col + 1}' in status(page)
        assert [values(page, k) for k in range(9)] == [
            pytest.approx(want[:, k, cell].tolist(), abs=2e-4) for k in range(9)
        ]
        assert root.get_attribute('data-length') == '1.0000'
        assert int(root.get_attribute('data-bin')) == int(want[..., cell].mean(0).argmax())
    assert root.get_attribute('data-answered') == '0', "no kernel was asked"


@pytest.mark.browser
def test_contrast_changes_votes_only_without_normalisation(open_page):
    page = open_page(hogs())
    root, canvas = page.locator('.vsl'), page.locator('canvas.vsl-cells')
    hover(page, canvas, 4, 6, 1, 1)
    page.mouse.down()
    page.mouse.up()
    slide = page.locator('[data-trait=contrast]')

    def read():
        return [values(page, k) for k in range(9)]

    before = read()
    slide.focus()
    page.keyboard.press('Home')
    assert page.locator('[data-trait=contrast]').input_value() == '0.1'
    assert read() == [pytest.approx(v, abs=2e-4) for v in before]
    page.locator('[data-trait=norm] [data-value=none]').click()
    assert root.get_attribute('data-norm') == 'none'
    faint = read()
    slide.focus()
    page.keyboard.press('End')
    assert read() == [pytest.approx([20 * v for v in f], rel=0.02, abs=2e-3) for f in faint]
    assert max(map(max, read())) > 1
    page.locator('[data-trait=brightness]').focus()
    bright = read()
    page.keyboard.press('End')
    assert read() == bright, "brightness moves no vote"
    page.locator('[data-trait=norm] [data-value=l1]').click()
    assert sum(v[0] for v in read()) == pytest.approx(1, abs=1e-3)


@pytest.mark.browser
def test_hog_by_keyboard_and_another_cell_size(open_page):
    page = open_page(hogs())
    root = page.locator('.vsl')
    canvas = page.locator('canvas.vsl-strokes')
    canvas.focus()
    page.keyboard.press('ArrowRight')
    page.keyboard.press('ArrowDown')
    assert root.get_attribute('data-cell') == '7'
    page.locator('[data-trait=cell] [data-value="4"]').click()
    expect_status(page, '8 x 12 cells')
    page.locator('[data-trait=picture] button').nth(2).click()
    expect(root).to_have_attribute('data-answered', '2')
    hover(page, page.locator('canvas.vsl-cells'), 8, 12, 7, 11)
    want = hog(PICTURES[2:3].float() / 255, 4)[0, :, :, 7, 11]
    assert values(page, 4) == pytest.approx(want[:, 4].tolist(), abs=2e-4)
    assert page.locator('[data-trait=bins] button').first.is_disabled(), (
        "another number of bins needs a kernel"
    )


@pytest.mark.browser
def test_targets_point_and_switch(open_page):
    explorer = targets()
    page = open_page(explorer)
    root = page.locator('.vsl')
    canvas = page.locator('canvas.vsl-truth').first
    costs = np.frombuffer(explorer.costs, np.float32).reshape(3, 24)
    hidden = np.array(list(explorer.hidden))
    note = page.locator('[data-target=HOG]')
    assert float(note.get_attribute('data-cost')) == pytest.approx(
        float(costs[0][hidden > 0].mean()), abs=1e-3
    )
    hover(page, canvas, 4, 6, 2, 4)
    assert root.get_attribute('data-hover') == '16'
    assert float(note.get_attribute('data-here')) == pytest.approx(float(costs[0][16]), abs=1e-3)
    assert ('hidden' if hidden[16] else 'visible') in status(page).split('·')[1]
    assert page.locator('[data-target=raw]').inner_text() == 'no model'
    assert page.locator('canvas.vsl-guess').count() == 2
    page.locator('[data-trait=everywhere] [data-value=true]').click()
    assert page.locator('[data-trait=everywhere] [aria-checked=true]').get_attribute('data-value') == 'true'
    page.locator('[data-trait=picture] button').nth(3).click()
    explorer.picture = 3
    costs = np.frombuffer(explorer.costs, np.float32).reshape(3, 24)
    expect(note).to_have_attribute('data-cost', f"{costs[0][hidden > 0].mean():.4f}")
    assert page.locator('[data-trait=ratio]').is_disabled()
    assert page.locator('canvas.vsl-mask').get_attribute('data-mask') == ''.join(map(str, hidden))


@pytest.mark.browser
def test_targets_by_keyboard(open_page):
    page = open_page(targets())
    canvas = page.locator('canvas.vsl-guess').first
    canvas.focus()
    assert canvas.evaluate("c => getComputedStyle(c).outlineStyle") in ('solid', 'auto'), "the focus is seen"
    page.keyboard.press('ArrowRight')
    page.keyboard.press('ArrowDown')
    assert page.locator('.vsl').get_attribute('data-hover') == '7'
    assert 'row 2, column 2' in status(page)
    before = page.locator('canvas.vsl-mask').get_attribute('data-hidden')
    page.locator('canvas.vsl-mask').focus()
    page.keyboard.press('Space')
    assert page.locator('canvas.vsl-mask').get_attribute('data-hidden') == before, (
        "a mask that nobody can answer is not painted"
    )
