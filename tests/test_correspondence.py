"""Correspondence: the score against a loop and the official rule, the explorer's state, and the explorer in a
real Chromium with the network off. The DOM is asserted, never pixels."""

from helpers import seeded
import numpy as np
import pytest, torch
import torch.nn.functional as F
from torch import nn
from vit_ssl_lab.core import Features
from vit_ssl_lab.data.scenes import Scenes
from vit_ssl_lab.evaluation.correspondence import (
    RawRegions,
    Warp,
    correspondence,
    find_matches,
    mirrored,
    recolour,
    true_points,
    true_regions,
    warped,
)
from vit_ssl_lab.explorers import CorrespondenceExplorer
from vit_ssl_lab.explorers.correspondence import points_back

MEAN = (0.5,) * 3
STD = (0.25,) * 3


class Cells(nn.Module):
    "Mean and mean square of the colours of each of 4 by 4 regions: the Encoder contract and nothing else."

    width = 6

    def forward(self, x, keep=None):
        patches = (
            torch.cat([F.adaptive_avg_pool2d(x, 4), F.adaptive_avg_pool2d(x.square(), 4)], 1).flatten(2).mT
        )
        return Features(patches.mean(1), patches, (4, 4))


def pictures(n=6, s=32):
    return (
        torch.randint(256, (n, 3, 4, 4), generator=seeded(0), dtype=torch.uint8)
        .repeat_interleave(s // 4, 2)
        .repeat_interleave(s // 4, 3)
    )


# --- the score


def test_the_official_rule_on_mirrored_pictures():
    """accuracy_correspondence: the ten most similar pairs; right = at the mirrored column and the same row;
    distance in pixels over the side of a region."""
    warp = mirrored(
        torch.randint(256, (5, 3, 32, 32), generator=seeded(1), dtype=torch.uint8),
        grey=True,
    )
    encoder = RawRegions(8)

    def norm(x):
        return (x.float() / 255 - 0.5) / 0.25

    a, b = (F.normalize(encoder(norm(x)).patches, dim=-1) for x in (warp.first, warp.second))
    right, off = [], []
    for x, y in zip(a, b):
        value, index = (x @ y.T).max(1)
        for i in value.argsort(descending=True)[:10].tolist():
            j = index[i].item()
            right.append(j == i // 4 * 4 + 3 - i % 4)
            off.append(((j // 4 - i // 4) ** 2 + (j % 4 - (3 - i % 4)) ** 2) ** 0.5)
    score = correspondence(encoder, warp, MEAN, STD, top=10 / 16)
    assert float(score) == pytest.approx(100 * np.mean(right))
    assert score.setting['off'] == pytest.approx(np.mean(off), abs=1e-3)


def test_equal_pictures_match_on_the_diagonal_and_mirrors_at_the_mirrored_place():
    x = pictures()
    grid = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing='xy'), -1).expand(
        6, -1, -1, -1
    )
    same = Warp(x, x, grid)
    assert float(correspondence(Cells(), same, MEAN, STD)) == 100
    assert find_matches(Cells(), same, MEAN, STD).truth.tolist() == [list(range(16))] * 6
    mirror = Warp(x, x.flip(-1), mirrored(x).flow)
    assert float(correspondence(Cells(), mirror, MEAN, STD)) == 100
    assert float(correspondence(Cells(), mirror, MEAN, STD, top=0.25)) == 100


def test_a_shift_leaves_regions_behind():
    "The second view lies 8 pixels to the right: what was in column 0 is outside."
    x = pictures()
    flow = torch.stack(torch.meshgrid(torch.arange(32.0) - 8, torch.arange(32.0), indexing='xy'), -1).expand(
        6, -1, -1, -1
    )
    truth = true_regions(true_points(flow, (4, 4)), (4, 4))[0].view(4, 4)
    assert (truth[:, 0] == -1).all()
    assert truth[:, 1:].tolist() == [[4 * r + c for c in range(3)] for r in range(4)]
    back = true_regions(points_back(flow, (4, 4)), (4, 4))[0].view(4, 4)
    assert (back[:, 3] == -1).all()
    assert back[:, :3].tolist() == [[4 * r + c + 1 for c in range(3)] for r in range(4)]
    moved = Warp(x, x.roll(-8, -1), flow)
    assert float(correspondence(Cells(), moved, MEAN, STD)) == 100


def test_truth_agrees_with_the_flow_of_scenes_and_there_and_back_is_the_same_place():
    w = warped(Scenes('test', 32), 20)
    points = true_points(w.flow, (4, 4))
    size = 8
    for k, (r, c) in enumerate(
        (r, c) for r in range(4) for c in range(4)
    ):  # the middle lies between four pixels
        middle = w.flow[:, r * size + 3 : r * size + 5, c * size + 3 : c * size + 5].mean((1, 2))
        torch.testing.assert_close(points[:, k], (middle.flip(-1) + 0.5) / size, rtol=0, atol=1e-3)
    back = points_back(w.flow, (32, 32))
    ok = (back >= 0).all(-1)  # the middle of a region of one pixel, there and back
    at = back[ok][:50]
    which = ok.nonzero()[:50]
    there = torch.stack([w.flow[b, int(y), int(x)] for (b, _), (y, x) in zip(which.tolist(), at.tolist())])
    assert ((there - torch.stack([which[:, 1] % 32, which[:, 1] // 32], -1)).norm(dim=-1) < 1.5).all()


def test_colours_change_and_places_do_not():
    x = pictures(8)
    y = recolour(x)
    assert not y.equal(x)
    assert recolour(x).equal(y)
    assert not recolour(x, 1).equal(y)
    assert (recolour(x, grey=True).float().std(1) < 1.0).all()
    assert recolour(x[:, :1]).shape == (8, 1, 32, 32)


def two_grids():
    return CorrespondenceExplorer({'a': Cells(), 'b': RawRegions(4)}, pictures(), mirrored(pictures()))


@pytest.mark.parametrize(
    'case, match',
    [
        (lambda: correspondence(Cells(), mirrored(pictures()), MEAN, STD, top=2.0), '10 of 49'),
        (lambda: warped(pictures()), 'Only scenes know the warp'),
        (two_grids, 'a 4 x 4, b 8 x 8'),
        (lambda: CorrespondenceExplorer(Cells(), pictures(), 'warp'), "Did you mean 'warped'"),
    ],
)
def test_bad_input(case, match):
    with pytest.raises(ValueError, match=match):
        case()


# --- the explorer


def make():
    scenes = Scenes('test', 32)
    return CorrespondenceExplorer({'colours': Cells(), 'pixels': RawRegions(8)}, scenes.dataset(8), limit=4)


def test_state_figure_and_page(tmp_path):
    e = make()
    state = e.state()
    assert len(state['gram']) == 2 * 4 * 256
    assert len(state['truth']) == 2 * 4 * 16 * 4
    assert state['encoders'] == ['colours', 'pixels']
    match, truth = e.matches(0, 0)
    w = e.warp
    data = Scenes('test', 32).dataset(8)
    assert match.equal(find_matches(Cells(), w, data.mean, data.std).index)
    assert truth.equal(true_regions(true_points(w.flow, (4, 4)), (4, 4)))
    assert len(e.figure().axes) == 6
    e.side = 1
    assert len(e.figure().axes) == 6
    e.picture = 9
    assert 'There is no picture 9' in e.error
    text = make().to_html(tmp_path / 'page.html')
    assert text.startswith('<!DOCTYPE html>')
    assert 'export default' not in text


sync = pytest.importorskip('playwright.sync_api', reason="there is no playwright: `make test` installs it")
from test_explorers_browser import hover, expect_status, status


def agrees(e, root, side, cell):
    "What the page shows for a region is what Python computes."
    which = int(root.get_attribute('data-which'))
    i = int(root.get_attribute('data-picture'))
    _, truth = e.matches(which, side)
    assert (root.get_attribute('data-side'), root.get_attribute('data-region')) == (str(side), str(cell))
    c = e.cosines[which, i] if side == 0 else e.cosines[which, i].T
    # The page has the cosines as bytes; where two are equal there, it takes the first.
    in_bytes = np.frombuffer(e.gram, np.uint8).reshape(e.cosines.shape)[which, i]
    match = torch.tensor((in_bytes if side == 0 else in_bytes.T).argmax(1))
    assert int(root.get_attribute('data-match')) == match[cell]
    assert float(c[cell].max() - c[cell, match[cell]]) < 0.01  # a byte's step
    assert root.get_attribute('data-truth') == str(int(truth[i, cell]))
    seen = truth[i] >= 0
    assert root.get_attribute('data-seen') == str(int(seen.sum()))
    assert root.get_attribute('data-correct') == str(int((match == truth[i])[seen].sum()))


@pytest.mark.browser
def test_pointer_in_both_views(open_page):
    e = make()
    page = open_page(e)
    root = page.locator('.vsl')
    for side, (row, col) in [(0, (0, 0)), (0, (2, 3)), (1, (1, 1)), (1, (3, 0))]:
        hover(page, page.locator(f'canvas.vsl-view{side + 1}'), 4, 4, row, col)
        agrees(e, root, side, 4 * row + col)
        assert f'view {side + 1}, row {row + 1}, column {col + 1}' in status(page)
    hover(page, page.locator('canvas.vsl-view1'), 4, 4, 1, 2)
    page.mouse.down()
    page.mouse.up()
    page.mouse.move(1, 1)
    agrees(e, root, 0, 6)  # a click stays


@pytest.mark.browser
def test_keyboard_and_choices(open_page):
    e = make()
    page = open_page(e)
    root = page.locator('.vsl')
    page.locator('canvas.vsl-view2').focus()
    page.keyboard.press('ArrowRight')
    page.keyboard.press('ArrowDown')
    agrees(e, root, 1, 5)
    assert page.locator('canvas.vsl-view2').evaluate("c => getComputedStyle(c).outlineStyle") in (
        'solid',
        'auto',
    ), "the focus is seen"
    page.locator('[data-trait=which] [data-value="1"]').click()
    sync.expect(root).to_have_attribute('data-which', '1')
    agrees(e, root, 1, 5)
    expect_status(page, 'pixels')
    page.locator('[data-trait=picture] button').nth(2).click()
    sync.expect(root).to_have_attribute('data-picture', '2')
    agrees(e, root, 1, 5)
    page.locator('[data-trait=which] [data-value="1"]').focus()
    page.keyboard.press('ArrowLeft')
    sync.expect(root).to_have_attribute('data-which', '0')
    agrees(e, root, 1, 5)


@pytest.mark.browser
def test_what_is_not_visible_is_said_and_everything_has_a_name(open_page):
    e = make()
    page = open_page(e)
    root = page.locator('.vsl')
    picture = next(i for i in range(4) if (e.true[0, i] < 0).any())
    if picture:
        page.locator('[data-trait=picture] button').nth(picture).click()
    row, col = divmod(int((e.true[0, picture] < 0).nonzero()[0]), 4)
    hover(page, page.locator('canvas.vsl-view1'), 4, 4, row, col)
    expect_status(page, 'not visible in the other view')
    assert root.get_attribute('data-truth') == '-1'
    for el in page.locator('.vsl [tabindex], .vsl button, .vsl canvas[role]').all():
        assert el.get_attribute('aria-label') or el.inner_text().strip()


@pytest.mark.browser
def test_one_encoder_one_picture_and_an_error(open_page):
    e = CorrespondenceExplorer(Cells(), pictures(1), mirrored(pictures(1)))
    e.picture = 3
    page = open_page(e)
    assert 'There is no picture 3' in page.get_by_role('alert').inner_text()
    assert page.locator('[data-trait=which]').count() == 0
    hover(page, page.locator('canvas.vsl-view1'), 4, 4, 0, 0)
    assert page.locator('.vsl').get_attribute('data-truth') == '3'
