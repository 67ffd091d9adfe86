"""The explorers without a browser: what they compute, their state, their errors, their pictures and their
pages. The model is a fake that keeps the contracts and nothing else."""

import asyncio, base64, json, re, statistics, time
from types import SimpleNamespace
from typing import NamedTuple
from helpers import differing, seeded
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from vit_ssl_lab.components.masking import random_masking
from vit_ssl_lab.components.patches import mask_to_pixels
from vit_ssl_lab.components.positions import position_similarity, sincos_2d
from vit_ssl_lab.core import Features
from vit_ssl_lab.data.views import Policy, Views
from vit_ssl_lab.data.views import views as preset
from vit_ssl_lab.encoders.vit import vit_nano
from vit_ssl_lab.explorers import (
    AttentionExplorer,
    CollapseExplorer,
    FeatureExplorer,
    MaskExplorer,
    PositionExplorer,
    ReconstructionExplorer,
    SiameseExplorer,
    ViewsExplorer,
)
from vit_ssl_lab.explorers.base import Explorer, read_static
from vit_ssl_lab.explorers.collapse import CollapseRun
from vit_ssl_lab.explorers.siamese import infonce_row
from vit_ssl_lab.training import build, recipe


class Encoder(nn.Module):
    "Patch means: the Encoder contract and nothing else (no `grid`, no weights, no positions)."

    width = 3

    def forward(self, images, keep=None):
        patches = nn.functional.avg_pool2d(images, 8).flatten(2).mT
        if keep is not None:
            patches = patches.gather(1, keep[..., None].expand(-1, -1, 3))
        return Features(patches.mean(1), patches, (images.shape[2] // 8, images.shape[3] // 8))


class Reconstruction(NamedTuple):
    input: Tensor
    masked: Tensor
    prediction: Tensor
    composite: Tensor
    error: Tensor
    mask: Tensor


class Method(nn.Module):
    "Paints hidden patches in the mean of the visible ones; 'true' knows them."

    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.calls = 0
        self.broken = False

    def reconstruct(self, images, mask=None, generator=None, pixels='estimated'):
        self.calls += 1
        assert not self.training
        assert mask is not None
        assert generator is not None
        if self.broken:
            raise RuntimeError("out of memory")
        x = images.float() / 255
        hidden = mask_to_pixels(mask.mask, 8, (x.shape[2] // 8, x.shape[3] // 8))
        mean = (x * (1 - hidden)).sum((2, 3), keepdim=True) / (1 - hidden).sum((2, 3), keepdim=True)
        guess = x.clone() if pixels == 'true' else mean.expand_as(x)
        composite = x * (1 - hidden) + guess * hidden
        return Reconstruction(x, x * (1 - hidden), guess, composite, (composite - x).abs().mean(1), mask.mask)


class Pair(nn.Module):
    """Two views and an embedding: what a Siamese method must have, and a predictor that turns the vector
    round."""

    temperature = 0.5

    def __init__(self, views=None, predictor=False):
        super().__init__()
        self.encoder = Encoder()
        self.views = views or preset('simsiam', (32, 24), (0.4,) * 3, (0.2,) * 3)
        self.calls = 0
        if predictor:
            self.predictor = nn.Linear(6, 6, bias=False)
            nn.init.orthogonal_(self.predictor.weight)

    def embed(self, x):
        self.calls += 1
        patches = self.encoder(x).patches
        return torch.cat([patches.mean(1), patches.std(1)], 1)


# not square: rows and columns must not be mixed up
PICTURES = torch.randint(256, (4, 3, 32, 48), generator=seeded(0), dtype=torch.uint8)
PATTERNS = torch.randint(256, (8, 1, 4, 4), generator=seeded(0), dtype=torch.uint8).repeat(
    8, 1, 3, 3
)  # eight pictures, eight times


def vit():
    torch.manual_seed(0)
    return vit_nano(img_size=(32, 48), patch_size=8)


def mask_explorer():
    return MaskExplorer(PICTURES, 8)


def reconstruction():
    return ReconstructionExplorer(Method(), PICTURES)


def attention():
    return AttentionExplorer(vit(), PICTURES)


def positions():
    return PositionExplorer(
        {'a': sincos_2d((4, 6), 16), 'b': torch.randn(1, 25, 16, generator=seeded(0))},
        grid=(4, 6),
    )


def views():
    return ViewsExplorer(PICTURES, preset='byol', size=32)


def features():
    return FeatureExplorer(Encoder(), PICTURES)


def siamese():
    torch.manual_seed(0)
    return SiameseExplorer(Pair(predictor=True), PICTURES)


def collapse():
    explorer = CollapseExplorer(PATTERNS, batch=32, width=32, dim=8)
    explorer.advance(20)
    return explorer


ALL = [mask_explorer, reconstruction, attention, positions, views, features, siamese, collapse]


def names(f):
    return f.__name__


def state_of(text: str) -> dict:
    return json.loads(
        re.search(r'<script type="application/json" id="state">(.*?)</script>', text, re.S).group(1)
    )


def raw(value: dict) -> bytes:
    return base64.b64decode(value['base64'])


# --- every explorer


@pytest.mark.parametrize('make', ALL, ids=names)
def test_page_is_one_file(make, tmp_path):
    explorer = make()
    text = explorer.to_html(tmp_path / 'page.html')
    assert (tmp_path / 'page.html').read_text('utf-8') == text
    assert text.startswith('<!DOCTYPE html>')
    assert "default-src 'none'" in text
    assert not re.search(r'https?:|src=|<link|@import|\bimport\b[^a-z]*[\'"(]|fetch\(', text), (
        "the page asks for something"
    )
    assert '{{' not in text
    assert 'export default' not in text
    assert text.count('const widget = { render };') == 1
    state = state_of(text)
    assert state['traits']['live'] is False
    assert set(state['keys']) <= set(state['traits']['offline'])
    if state['answers']:
        assert (
            json.dumps([state['traits'][k] for k in state['keys']], separators=(',', ':')) in state['answers']
        ), "the stored state is one of the answers"


@pytest.mark.parametrize('make', ALL, ids=names)
def test_state_is_all_that_travels(make):
    explorer = make()
    sizes = {k: len(v) if isinstance(v, bytes) else len(json.dumps(v)) for k, v in explorer.state().items()}
    assert not explorer.error
    assert {'error', 'answered', 'live'} <= set(sizes)
    assert 'layout' not in sizes
    assert all(size < 20_000 for k, size in sizes.items() if not isinstance(explorer.state()[k], bytes)), (
        "tensors travel as bytes"
    )


@pytest.mark.parametrize('make', ALL, ids=names)
def test_figure_draws_the_state(make):
    figure = make().figure()
    assert isinstance(figure, Figure)
    assert len(figure.axes) + sum(len(s.axes) for s in figure.subfigs) >= 2


@pytest.mark.parametrize(
    'name', ['mask', 'attention', 'positions', 'views', 'features', 'siamese', 'collapse']
)
def test_script_is_one_module(name):
    text = read_static('base.js') + read_static(f'{name}.js')
    assert text.count('export default { render };') == 1
    assert not re.search(r'^\s*import\b', text, re.M)
    assert re.search(r"return \(\) => ui\.close\(\)", text), "a view stops listening when it is closed"


def test_class_names_cannot_end_the_script():
    class Shouting(Explorer):
        _esm = 'function render() {}\nexport default { render };'

    explorer = Shouting(note='</script><script>alert(1)</script>')
    assert '</script><script>alert' not in explorer.to_html()
    assert state_of(explorer.to_html())['traits']['note'] == explorer.note


def test_unexpected_errors_are_shown_and_survived():
    explorer = reconstruction()
    explorer.method.broken = True
    explorer.seed = 1
    assert explorer.error == 'RuntimeError: out of memory'
    explorer.method.broken = False
    explorer.seed = 2
    assert explorer.error == ''


@pytest.mark.parametrize(
    'bad, message',
    [
        (torch.rand(2, 5, 8, 8), 'C = 1 or 3'),
        (torch.rand(0, 3, 8, 8), 'n at least 1'),
        (torch.randn(2, 3, 8, 8), 'undo the normalisation'),
        (torch.rand(8, 8), 'takes \\(n, C, H, W\\)'),
    ],
)
def test_wrong_pictures(bad, message):
    with pytest.raises(ValueError, match=message):
        MaskExplorer(bad, 8)


def test_one_grey_picture_will_do():
    explorer = MaskExplorer(torch.rand(1, 16, 16), 4)
    assert explorer.shape == [1, 16, 16]
    assert len(explorer.images) == 16 * 16 * 3


# --- masks and reconstruction


def test_mask_is_the_library_s():
    explorer = MaskExplorer(PICTURES, 8, ratio=0.5, seed=7)
    same = random_masking(1, (4, 6), 0.5, generator=seeded(7))
    assert explorer.grid == [4, 6]
    assert torch.equal(explorer.mask.mask, same.mask)
    assert set(explorer.mask.keep[0].tolist()) == set(same.keep[0].tolist())


def test_painting_and_back():
    explorer = mask_explorer()
    explorer.paint(torch.eye(4, 6))
    assert explorer.kind == 'by hand'
    assert explorer.ratio == round(4 / 24, 4)
    assert sum(explorer.hidden) == 4
    explorer.set_state({'kind': 'block', 'ratio': 0.5})  # as the browser does: two traits, one message
    assert sum(explorer.hidden) == 12
    assert explorer.error == ''


@pytest.mark.parametrize(
    'change, message',
    [
        ({'ratio': 1.0}, '0 <= ratio < 1'),
        ({'ratio': -0.1}, '0 <= ratio < 1'),
        ({'kind': 'blok'}, "Did you mean 'block'"),
        ({'picture': 9}, 'no picture 9'),
    ],
)
def test_mask_errors_are_sentences_and_pass(change, message):
    explorer = mask_explorer()
    before = mask_explorer().hidden
    explorer.set_state(change)
    assert re.search(message, explorer.error)
    assert explorer.hidden == before
    explorer.set_state({'ratio': 0.75, 'kind': 'random', 'picture': 0})
    assert explorer.error == ''


def test_all_hidden_is_refused():
    explorer = reconstruction()
    # what arrives from a browser
    explorer.set_state({'hidden': memoryview(bytes([1] * 24)), 'kind': 'by hand'})
    assert 'leave at least one visible' in explorer.error
    explorer.set_state({'hidden': bytes([1] * 23 + [0])})
    assert explorer.error == ''
    assert explorer.ratio == round(23 / 24, 4)


def test_a_message_costs_one_reconstruction():
    explorer = reconstruction()
    explorer.method.calls = 0
    explorer.set_state({'kind': 'block', 'ratio': 0.5, 'seed': 4, 'picture': 2})
    assert explorer.method.calls == 1
    explorer.set_state({'hidden': bytes([1, 0] * 12), 'kind': 'by hand'})
    assert explorer.method.calls == 1 + 1
    explorer.set_state({'pixels': 'true'})
    assert explorer.method.calls == 3


def test_results_are_the_method_s():
    explorer = reconstruction()
    r = explorer.reconstruction(0, 'estimated')
    size = 32 * 48
    data = torch.tensor(list(explorer.results))
    prediction = data[: 3 * size].view(32, 48, 3).permute(2, 0, 1) / 255
    assert (prediction - r.prediction[0]).abs().max() <= 0.5 / 255 + 1e-6
    assert (
        data[6 * size :].view(32, 48) / 255 * explorer.error_top - r.error[0]
    ).abs().max() <= 0.5 / 255 + 1e-6
    hidden = r.mask[0].view(4, 6).repeat_interleave(8, 0).repeat_interleave(8, 1).bool()
    assert explorer.mse == pytest.approx(
        float((r.prediction - r.input)[0][:, hidden].square().mean()), rel=1e-5
    )
    explorer.pixels = 'true'
    assert explorer.mse == 0


def test_stored_answers_of_a_reconstruction():
    explorer = reconstruction()
    state = state_of(explorer.to_html())
    assert state['keys'] == ['picture', 'pixels']
    assert len(state['answers']) == 4 * 2
    assert raw(state['answers']['[0,"estimated"]']['results']) == explorer.results
    assert explorer.picture == 0
    assert explorer.pixels == 'estimated'


def test_the_method_keeps_its_mode():
    explorer = reconstruction()
    explorer.method.train()
    explorer.seed = 5
    assert explorer.method.training
    assert explorer.error == ''


def test_not_every_method_reconstructs():
    with pytest.raises(ValueError, match='has no reconstruct'):
        ReconstructionExplorer(nn.Linear(2, 2), PICTURES)
    method = Method()
    method.encoder.grid = (4, 6)
    with pytest.raises(ValueError, match="don't divide"):
        ReconstructionExplorer(method, PICTURES[..., :30, :])


def test_an_update_takes_less_than_100_ms():
    """The laptop model, all panels.
    Processor time of one thread: what a machine with nothing else to do needs by the clock."""
    threads = torch.get_num_threads()
    method = build(
        recipe('mae', 'laptop'),
        SimpleNamespace(images=torch.zeros(1, 3, 48, 48, dtype=torch.uint8), mean=(0.5,) * 3, std=(0.5,) * 3),
    )
    explorer = ReconstructionExplorer(method, torch.randint(256, (2, 3, 48, 48), dtype=torch.uint8))
    times = []
    torch.set_num_threads(1)
    try:
        for seed in range(1, 16):
            start = time.process_time()
            explorer.seed = seed
            times.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert explorer.error == ''
    assert statistics.median(times) <= 0.1


# --- attention


def browser_row(explorer, head, query):
    "The row of attention as the browser computes it from bytes."
    tokens = explorer.prefix + 24
    data = np.frombuffer(explorer.attention, np.uint8).reshape(-1, tokens, tokens)
    peaks = np.frombuffer(explorer.peaks, np.float32).reshape(-1, tokens)
    return data[head, query].astype(np.float32) * peaks[head, query] / 255


def test_attention_is_the_model_s():
    explorer = attention()
    maps = explorer.maps(0)
    assert explorer.prefix == 1
    assert explorer.layers == len(maps)
    assert explorer.layer == len(maps) - 1
    for head in range(maps.shape[1]):
        for query in (0, 1, 20):
            error = np.abs(browser_row(explorer, head, query) - maps[-1, head, query].numpy()).max()
            assert error <= maps[-1, head, query].max() / 500
    assert all(0 < e <= np.log2(25) + 1e-4 for e in explorer.entropy)
    assert all(0 < d < 58 for d in explorer.distance)


def test_layers_and_rollout():
    explorer = attention()
    explorer.layer = 0
    assert np.abs(browser_row(explorer, 1, 3) - explorer.maps(0)[0, 1, 3].numpy()).max() < 2e-3
    explorer.rollout = True
    assert len(explorer.peaks) == 25 * 4
    assert len(explorer.entropy) == 1
    assert browser_row(explorer, 0, 5).sum() == pytest.approx(1, abs=0.03)


def test_attention_of_another_picture_is_its_own():
    explorer = attention()
    before = explorer.attention
    explorer.picture = 2
    assert explorer.attention != before, "only the last picture's maps are kept"
    assert list(explorer._maps) == [2], "only the last picture's maps are kept"


def test_attention_page_answers_layers():
    explorer = attention()
    state = state_of(explorer.to_html())
    assert {'query', 'head', 'direction', 'stretch', 'layer', 'rollout', 'picture'} <= set(
        state['traits']['offline']
    )
    explorer.layer = 1
    explorer.picture = 2
    answer = state['answers'][
        json.dumps(
            [{'layer': 1, 'rollout': False, 'picture': 2}[k] for k in state['keys']], separators=(',', ':')
        )
    ]
    assert raw(answer['attention']) == explorer.attention
    assert answer['entropy'] == explorer.entropy


def test_attention_errors():
    explorer = attention()
    explorer.layer = 99
    assert explorer.error == f'There is no layer 99; there are 0 to {explorer.layers - 1}.'
    with pytest.raises(ValueError, match='take a Vision Transformer'):
        AttentionExplorer(Encoder(), PICTURES)


# --- positions


def test_positions_are_cosines():
    explorer = positions()
    seen = np.frombuffer(explorer.similarity, np.uint8).reshape(2, 24, 24) / 127.5 - 1
    assert np.abs(seen[0] - position_similarity(sincos_2d((4, 6), 16), (4, 6)).numpy()).max() <= 0.004
    assert explorer.tables == ['a', 'b'], "the prefix row of the second table was left out"
    assert explorer.grid == [4, 6], "the prefix row of the second table was left out"


def test_positions_of_an_encoder_and_errors():
    assert PositionExplorer(vit()).grid == [4, 6]
    with pytest.raises(ValueError, match='give grid='):
        PositionExplorer(torch.zeros(1, 24, 8))
    with pytest.raises(ValueError, match='has no table of positions'):
        PositionExplorer(Encoder())
    with pytest.raises(ValueError, match='have one grid'):
        PositionExplorer({'a': vit(), 'b': vit_nano(img_size=32, patch_size=8)})


# --- views


def test_views_fit_their_boxes():
    explorer = views()
    assert len(explorer.boxes) == len(explorer.words) == 2 * 6
    assert sum(h * w for h, w in explorer.sizes) * 6 * 3 == len(explorer.views)
    assert all(
        top >= 0 and left >= 0 and top + h <= 32 and left + w <= 48 for top, left, h, w in explorer.boxes
    )


def test_strength_zero_is_off():
    explorer = ViewsExplorer(PICTURES, preset='byol', colour=0, grey=0, blur=0, solarize=0, crop=0)
    assert all(re.fullmatch(r'crop \d+ x \d+ px(, mirrored)?', w) for w in explorer.words)


def test_views_keep_the_dice():
    explorer = views()
    before = explorer.boxes, explorer.views
    explorer.blur = 0.0
    assert explorer.boxes == before[0], "a strength changes no other draw"
    assert explorer.views != before[1], "a strength changes no other draw"
    explorer.blur = 1.0
    assert explorer.views == before[1]
    explorer.seed = 1
    assert explorer.boxes != before[0]


def test_views_of_grey_pictures_and_many_crops():
    explorer = ViewsExplorer(torch.rand(2, 1, 32, 32), preset='dino')
    assert len(explorer.sizes) == 4
    assert explorer.sizes[0] != explorer.sizes[-1]
    assert explorer.error == ''


def test_views_errors():
    explorer = views()
    explorer.preset = 'bjol'
    assert "Did you mean 'byol'" in explorer.error
    with pytest.raises(ValueError, match='There is no preset'):
        ViewsExplorer(PICTURES, preset='nothing like it')


# --- features


def test_features_are_the_encoder_s():
    explorer = features()
    assert explorer.grid == [4, 6]
    assert explorer.shown[0] == 0
    assert len(explorer.gram) == (4 * 24) ** 2
    cosines = np.frombuffer(explorer.gram, np.uint8).reshape(96, 96) / 127.5 - 1
    P = nn.functional.normalize(explorer.features.patches[explorer.shown].flatten(0, 1), dim=-1)
    assert np.abs(cosines - (P @ P.T).numpy()).max() <= 0.005
    points = np.frombuffer(explorer.points, np.float32).reshape(4, 2)
    assert points.min() == 0
    assert points.max() == 1
    assert sum(explorer.explained) <= 1.0001


def test_choosing_a_picture_compares_its_patches():
    explorer = features()
    explorer.picture = 3
    assert explorer.shown == [3, *explorer.near[3, :3].tolist()]
    assert 3 not in explorer.near[3]
    explorer.picture = 12
    assert 'There is no picture 12' in explorer.error


def test_alike_features_are_neighbours():
    pictures = torch.zeros(6, 3, 16, 16, dtype=torch.uint8)
    for i, colour in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]):
        pictures[i, colour[0]] = 200 + 20 * colour[1]
    explorer = FeatureExplorer(Encoder(), pictures, k=1, mean=(0.0,), std=(1.0,))
    assert explorer.near.flatten().tolist() == [1, 0, 3, 2, 5, 4]


# --- Siamese methods


def vectors_of(explorer) -> dict:
    "The vectors as the browser has them, of length 1."
    return dict(
        zip(
            explorer.vector_names,
            np.frombuffer(explorer.vectors, np.float32).reshape(len(explorer.vector_names), -1)
            / explorer.width**0.5,
        )
    )


def test_siamese_vectors_are_the_method_s():
    explorer = siamese()
    method = explorer.method
    assert explorer.vector_names == ['z1', 'z2', 'p1', 'p2']
    assert explorer.temperature == 0.5
    assert explorer.trained_word == 'as trained'
    assert explorer.size == [32, 24]
    # the batch of this seed, by the method's own views
    draws = method.views.sample(4, (32, 48), generator=seeded(0))
    assert explorer.boxes == [d.box[0].tolist() for d in draws]
    x1, x2 = method.views(PICTURES, draws)
    z1 = method.embed(x1)
    z2 = method.embed(x2)
    p1 = method.predictor(method.embed(x1))

    def unit(v):
        return nn.functional.normalize(v, dim=-1).detach().numpy()

    seen = vectors_of(explorer)
    for name, v in dict(z1=z1, z2=z2, p1=p1).items():
        assert np.abs(seen[name] - unit(v)[0]).max() < 1e-6
    assert np.abs(np.frombuffer(explorer.logits, np.float32) - unit(z2) @ unit(p1)[0]).max() < 1e-6
    assert dict(map(tuple, explorer.cosines))['p1 · z2'] == pytest.approx(
        float(unit(p1)[0] @ unit(z2)[0]), abs=1e-6
    )
    assert explorer.views[: 32 * 24 * 3] == bytes(
        (method.views.restore(x1[0]) * 255).round().to(torch.uint8).permute(1, 2, 0).flatten().tolist()
    )


def test_row_is_a_softmax():
    cosines = np.random.default_rng(0).uniform(-1, 1, 9)
    for t in (0.01, 0.2, 2.0):
        row = infonce_row(cosines, 3, t)
        assert row['loss'] == pytest.approx(
            nn.functional.cross_entropy(torch.tensor(cosines)[None] / t, torch.tensor([3])).item(), rel=1e-9
        )
        assert row['p'].sum() == pytest.approx(1)
    assert infonce_row(cosines, int(cosines.argmax()), 0.2)['rank'] == 1
    assert infonce_row(cosines, int(cosines.argmin()), 0.2)['rank'] == 9
    assert infonce_row([1.0], 0, 0.2)['loss'] == 0
    assert 1 <= infonce_row(cosines, 3, 0.01)['negatives'] <= infonce_row(cosines, 3, 2.0)['negatives'] <= 8


def test_crops_move_by_hand():
    explorer = siamese()
    random_boxes = explorer.boxes
    words = explorer.words
    explorer.method.calls = 0
    explorer.set_state({'boxes': [[2, 3, 10, 20], random_boxes[1]], 'hand': True})
    assert explorer.method.calls == 2, "two views of one picture; the batch stays"
    assert explorer.words[0].startswith('crop 10 x 20 px'), "the rest of the draw is kept"
    assert explorer.words[0].split(', ')[1:] == words[0].split(', ')[1:], "the rest of the draw is kept"
    explorer.picture = 1
    assert explorer.boxes[0] == [2, 3, 10, 20]
    assert explorer.error == ''
    explorer.place(1, (0, 0, 32, 48))
    assert explorer.words[1].startswith('crop 32 x 48 px')
    explorer.set_state({'hand': False, 'picture': 0})
    assert explorer.boxes == random_boxes
    assert explorer.words == words


def test_a_picture_costs_nothing_and_a_seed_one_batch():
    explorer = siamese()
    explorer.method.calls = 0
    explorer.picture = 2
    assert explorer.method.calls == 0
    explorer.seed = 3
    assert explorer.method.calls == 2
    boxes = explorer.boxes
    explorer.strength = 0.0
    assert explorer.method.calls == 4
    assert explorer.boxes == boxes
    assert all(re.fullmatch(r'crop \d+ x \d+ px(, mirrored)?', w) for w in explorer.words)


@pytest.mark.parametrize('box', [(-1, 0, 8, 8), (30, 0, 8, 8), (0, 0, 0, 8), (0, 45, 8, 8)])
def test_a_crop_outside_is_a_sentence(box):
    explorer = siamese()
    before = explorer.views
    explorer.place(0, box)
    assert 'lies within the picture of 32 x 48 pixels' in explorer.error
    assert explorer.views == before
    assert state_of(explorer.to_html())['answers'] == {}
    explorer.place(0, (0, 0, 8, 8))
    assert explorer.error == ''


def test_momentum_makes_the_key():
    method = Pair()
    method.momentum_embed = lambda x: -method.embed(x)
    explorer = SiameseExplorer(method, PICTURES)
    assert explorer.vector_names == ['z1', 'z2', 'k1', 'k2']
    assert explorer.key_name == 'k2'
    seen = vectors_of(explorer)
    assert np.abs(seen['k2'] + seen['z2']).max() < 1e-6
    assert np.frombuffer(explorer.logits, np.float32)[0] == pytest.approx(
        float(seen['z1'] @ seen['k2']), abs=1e-6
    )


def test_pooled_features_will_do_and_views_of_another_make():
    class Halves(nn.Module):
        def forward(self, images):
            return [images[..., :16].float() / 255 + 0.01 * torch.randn(1), images[..., -16:].float() / 255]

    method = nn.Module()
    method.encoder = Encoder()
    method.views = Halves()
    state = torch.random.get_rng_state()
    explorer = SiameseExplorer(method, PICTURES)
    assert torch.equal(state, torch.random.get_rng_state()), "torch's global generator is left alone"
    assert not explorer.movable
    assert explorer.boxes == []
    assert explorer.size == [32, 16]
    assert explorer.width == 3
    assert explorer.temperature == 0.2
    assert explorer.trained_word == 'usual'
    before = explorer.vectors
    explorer.seed = 1
    assert explorer.vectors != before
    explorer.seed = 0
    assert explorer.vectors == before
    with pytest.raises(ValueError, match="can't be moved"):
        explorer.place(0, (0, 0, 8, 8))


def test_siamese_errors_and_mode():
    with pytest.raises(ValueError, match='makes one view of a picture'):
        SiameseExplorer(Pair(Views(32, (0.5,) * 3, (0.5,) * 3, [Policy()])), PICTURES)
    with pytest.raises(ValueError, match='has no views and encoder'):
        SiameseExplorer(nn.Linear(2, 2), PICTURES)
    with pytest.raises(ValueError, match='must be above 0, not 0'):
        SiameseExplorer(Pair(), PICTURES, temperature=0.0)
    with pytest.raises(ValueError, match='3 channel'):
        SiameseExplorer(Pair(), PICTURES[:, :1])
    explorer = siamese()
    explorer.method.train()
    explorer.picture = 9
    assert 'no picture 9' in explorer.error
    assert explorer.method.training


def test_an_identity_is_no_predictor():
    method = Pair()
    method.predictor = nn.Identity()
    assert SiameseExplorer(method, PICTURES).vector_names == ['z1', 'z2']


def test_one_picture_has_no_negatives():
    explorer = SiameseExplorer(Pair(), PICTURES[:1])
    assert len(explorer.logits) == 4
    assert isinstance(explorer.figure(), Figure)


# --- the run that collapses


def end(seed=0, steps=50, **switches) -> dict:
    run = CollapseRun(seed=seed, **switches)
    run.advance(steps)
    return run.state


def test_it_collapses_without_stop_gradient_and_not_with_it():
    good, bad = end(0), end(0, stop_gradient=False)
    assert good['sentence'].startswith('healthy')
    assert good['std'] > 0.7
    assert good['rank'] > 10
    assert bad['sentence'].startswith('collapsed')
    assert bad['std'] < 0.1
    assert bad['rank'] < 6
    assert bad['loss'] < -0.98
    assert end(1, 30, predictor=False)['std'] < 0.15
    assert end(1, 30, momentum=True)['std'] > 0.7
    assert end(1, 30, predictor=False, centre=True)['std'] > 0.5, "what all targets share is taken away"


def test_a_run_is_its_seed():
    state = torch.random.get_rng_state()
    a = CollapseRun(PATTERNS, 3)
    b = CollapseRun(PATTERNS, 3)
    c = CollapseRun(PATTERNS, 4)
    a.advance(7)
    b.advance(3)
    b.advance(4)
    c.advance(7)  # in other pieces
    assert a.losses == b.losses != c.losses
    assert [r['step'] for r in a.records] == [0, 5]
    assert torch.equal(a.net[1][0].weight, b.net[1][0].weight)
    assert torch.equal(state, torch.random.get_rng_state())
    for run in (a, b):
        run.momentum = True
        run.advance(2)
        run.centre = True
        run.momentum = False
        run.advance(2)
    assert a.losses == b.losses
    assert a.momentum_net is None


def test_records_are_the_health_of_the_sample():
    from vit_ssl_lab.evaluation.health import describe_health, health

    run = CollapseRun(PATTERNS, batch=32, width=32, dim=8)
    run.advance(5)
    z = run.net(run.sample).detach()
    r = run.state
    h = health(z)
    assert r['std'] == pytest.approx(h['std'], rel=1e-4)
    assert r['rank'] == pytest.approx(h['effective_rank'], rel=1e-4)
    assert r['sentence'] == describe_health(z)
    s = torch.linalg.svdvals(z)
    assert torch.allclose(r['values'], s / s[0], atol=1e-5)
    assert r['loss'] == pytest.approx(sum(run.losses) / 5)
    run.every = 1
    run.advance(210)
    assert len(run.records) <= 200
    assert run.records[0]['step'] == 0
    assert run.every > 1


def test_switches_act_and_are_marked():
    explorer = collapse()
    explorer.set_state({'stop_gradient': False})
    explorer.advance(5)
    explorer.set_state({'momentum': True, 'predictor': False})
    assert explorer.marks == [[20, 'stop-gradient off'], [25, 'momentum on'], [25, 'predictor off']]
    assert not differing(explorer.run, stop_gradient=False, momentum=True, predictor=False)
    explorer.set_state({'resets': 1})  # the switches stay, the run is new
    assert explorer.step == 0
    assert explorer.marks == []
    assert explorer.run.momentum
    assert not explorer.run.predictor
    before = explorer.points
    explorer.seed = 1
    assert explorer.step == 0
    assert explorer.points != before


def test_it_trains_in_the_loop_and_stops():
    async def scene():
        explorer = CollapseExplorer(PATTERNS, batch=32, width=32, dim=8)
        beats = 0
        explorer.set_state({'running': True})
        assert explorer.step == 0
        while explorer.step < 200:  # several pieces of 50 ms
            await asyncio.sleep(0.001)
            assert explorer.running, explorer.error
            beats += 1
        assert beats > 1, "the loop had time for others"
        explorer.set_state({'running': False})
        task, at = explorer._task, explorer.step
        await asyncio.wait_for(task, 300)
        await asyncio.sleep(0.05)
        assert explorer.step == explorer.run.count == at
        assert explorer.sentence == explorer.run.state['sentence']
        explorer.limit = at + 10
        explorer.start()
        await asyncio.wait_for(explorer._task, 300)
        assert explorer.step == at + 10, "it stops by itself"
        assert not explorer.running, "it stops by itself"
        explorer.limit = 10**6
        explorer.start()
        await asyncio.sleep(0.05)
        task = explorer._task
        explorer.set_state({'resets': 1})
        await asyncio.wait_for(task, 300)
        assert not explorer.running
        assert explorer.step == explorer.run.count == 0
        explorer.start()
        explorer.stop()
        explorer.start()
        first = explorer._task
        await asyncio.sleep(0.1)
        explorer.close()
        await asyncio.wait_for(first, 300)
        return explorer

    assert asyncio.run(scene()).error == ''


def test_errors_of_a_run_are_shown():
    explorer = collapse()
    explorer.running = True
    assert not explorer.running
    assert 'event loop of Jupyter' in explorer.error

    async def scene():
        explorer.run.net[1][0].weight.data.fill_(float('nan'))
        explorer.start()
        await asyncio.wait_for(explorer._task, 300)

    asyncio.run(scene())
    assert explorer.error.startswith('The loss is nan after 20 steps')
    assert not explorer.running
    explorer.moment = 9
    assert 'no record 9' in explorer.error
    explorer.reset()
    assert explorer.error == ''
    assert explorer.moment == -1
    with pytest.raises(ValueError, match='16 pictures or more'):
        CollapseExplorer(PATTERNS[:3])


def test_looking_back():
    explorer = collapse()
    latest = explorer.stds
    explorer.moment = 0
    assert explorer.stds != latest
    assert explorer.stds == explorer.run.records[0]['stds'].numpy().tobytes()
    state = state_of(explorer.to_html())
    assert state['keys'] == ['moment']
    assert len(state['answers']) == 1 + len(explorer.run.records)
    assert raw(state['answers']['[-1]']['stds']) == latest
