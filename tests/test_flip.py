"""FLIP, its loss, its text encoder and its data, against open_clip, timm and formulas worked out by hand."""

import math, warnings
from helpers import check_moves, close_states, equal, seeded, weights
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from open_clip.transformer import TextTransformer
from PIL import Image
from timm.layers.patch_dropout import patch_dropout_forward
from timm.models.vision_transformer import VisionTransformer
from vit_ssl_lab.components.clip import LogitScale, clip_loss
from vit_ssl_lab.components.masking import random_masking
from vit_ssl_lab.data import DataError, load
from vit_ssl_lab.data.image_text import captions_of
from vit_ssl_lab.data.views import views
from vit_ssl_lab.encoders.text import TextEncoder, vocabulary_of, text_encoder
from vit_ssl_lab.encoders.vit import ViT, vit_nano
from vit_ssl_lab.evaluation.zero_shot import zero_shot_classifier, recall_at_k
from vit_ssl_lab.methods.flip import FLIP
from vit_ssl_lab.methods.mae import MAE
from vit_ssl_lab.training import build, pretrain, recipe
from vit_ssl_lab.training.loop import load_run
from vit_ssl_lab.recipe import change

WORDS = [
    'a red bag',
    'a blue coat on brick',
    'two cats',
    'an orange shirt',
    'a teal dress on grass',
    'white trousers',
    'a dog',
    'a purple sneaker',
]


def small(seed=0, mask_ratio=0.5, words=WORDS, **kw):
    torch.manual_seed(seed)
    encoder = vit_nano(
        img_size=24,
        patch_size=6,
        embed_dim=32,
        depth=2,
        num_heads=2,
        positions='sincos',
        global_pool='avg',
        class_token=False,
        fc_norm=False,
    )
    return FLIP(
        encoder,
        TextEncoder(10, 32, 2, 2, vocabulary_of(words)),
        dim=16,
        mask_ratio=mask_ratio,
        views=views('mae', 24, (0.5,) * 3, (0.25,) * 3),
        **kw,
    )


def batch(n=8, seed=0):
    g = seeded(seed)
    return torch.randn(n, 3, 24, 24, generator=g), torch.rand(n, 16, generator=g)


# --- the loss


@pytest.mark.parametrize('t', [math.log(1 / 0.07), 0.0, math.log(100.0)])
def test_loss_and_gradients_are_those_of_open_clip(t):
    u, v = torch.randn(2, 12, 16).unbind(0)
    grads = []
    for ours in (True, False):
        a = u.clone().requires_grad_()
        b = v.clone().requires_grad_()
        s = torch.tensor(t, requires_grad=True)
        loss = (
            clip_loss(a, b, s.exp()).loss
            if ours
            else ClipLoss()(F.normalize(a, dim=1), F.normalize(b, dim=1), s.exp())
        )
        loss.backward()
        grads.append((loss.detach(), a.grad, b.grad, s.grad))
    for ours, theirs in zip(*grads):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_loss_is_the_papers_formula():
    """L = 1/2 [mean(-l_ii + ln sum_j e^l_ij) + mean(-l_ii + ln sum_j e^l_ji)], t clipped to [0, ln 100] in
    the forward pass, in float64."""
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((2, 9, 5))

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    for t in (-1.0, 2.659, 6.0):
        logits = np.exp(np.clip(t, 0, np.log(100))) * unit(u) @ unit(v).T
        to_texts = -np.diag(logits) + np.log(np.exp(logits).sum(1))
        to_images = -np.diag(logits) + np.log(np.exp(logits).sum(0))
        want = 0.5 * (to_texts.mean() + to_images.mean())
        scale = LogitScale()
        scale.log_scale.data.fill_(t)
        s = scale()
        loss = clip_loss(torch.tensor(u, dtype=torch.float32), torch.tensor(v, dtype=torch.float32), s).loss
        loss.backward()
        assert loss.item() == pytest.approx(want, rel=1e-5)
        assert (scale.log_scale.grad == 0) == (not 0 <= t <= math.log(100)), (
            "beyond the bound nothing is learned"
        )


def test_equal_captions_are_no_rivals():
    """Published losses count an equal caption as a negative.
    Spread over all equal captions, the target gives the same loss and gradients, since their columns are
    the same vector."""
    names = torch.tensor([1, 2, 1, 3, 1])
    texts = torch.randn(4, 8)[names]
    right = (names[:, None] == names).float()
    right /= right.sum(1, keepdim=True)
    u = (texts + torch.randn(5, 8)).requires_grad_()
    s = torch.tensor(7.0, requires_grad=True)
    logits = s * F.normalize(u, dim=1) @ F.normalize(texts, dim=1).T
    to_texts = (right * logits.log_softmax(1)).sum(1).mean()
    to_images = (right * logits.T.log_softmax(1)).sum(1).mean()
    want = -(to_texts + to_images) / 2
    loss = clip_loss(u, texts, s).loss
    torch.testing.assert_close(loss, want)
    for a, b in zip(torch.autograd.grad(loss, (u, s)), torch.autograd.grad(want, (u, s))):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_loss_at_the_start_is_ln_batch():
    m = small()
    x, noise = batch()
    m.image_head.weight.data.zero_()  # nothing known: every picture is at the same place
    assert m(x, m.tokenize(WORDS), noise=noise)['loss'].item() == pytest.approx(math.log(8), abs=1e-4)
    m = small(1, temperature=1.0)  # at scale 1 a fresh network is near it
    assert m(x, m.tokenize(WORDS), noise=noise)['loss'].item() == pytest.approx(math.log(8), abs=0.3)


# --- masks


def test_masks_are_those_of_mae():
    m = small()
    x, noise = batch()
    mae = MAE(
        vit_nano(img_size=24, patch_size=6),
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=2,
        mask_ratio=0.5,
    )
    ours = m.draw_mask(x, noise)
    theirs = mae.draw_mask(x, noise)
    assert torch.equal(ours.keep, theirs.keep)
    assert torch.equal(ours.mask, theirs.mask)
    assert torch.equal(ours.keep, noise.argsort(1)[:, :8])  # models_flip.py: random_mask keeps the smallest


def test_hidden_patches_do_not_matter():
    m = small().eval()
    x, noise = batch()
    tokens = m.tokenize(WORDS)
    mask = m.draw_mask(x, noise)
    hidden = mask.mask.view(8, 1, 4, 4).repeat_interleave(6, 2).repeat_interleave(6, 3)
    other = torch.where(hidden > 0, torch.randn_like(x), x)
    torch.testing.assert_close(m(other, tokens, mask=mask)['loss'], m(x, tokens, mask=mask)['loss'])
    x.requires_grad_()
    m(x, tokens, mask=mask)['loss'].backward()
    assert (x.grad * hidden).abs().max() == 0 < x.grad.abs().max()


def test_image_tower_is_timms_with_patch_dropout():
    """FLIP's own image tower: fixed positions, a class token without one, the mean of all tokens behind the
    last norm; timm drops patches behind the positions, which is the same as embedding only those that
    stay."""
    torch.manual_seed(0)
    size = dict(
        img_size=24,
        patch_size=6,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=0,
        class_token=True,
        no_embed_class=True,
        global_pool='avg',
        pool_include_prefix=True,
        fc_norm=False,
    )
    ours = ViT(positions='sincos', **size).eval()
    theirs = VisionTransformer(**size).eval()
    theirs.load_state_dict(ours.state_dict())
    x, noise = batch()
    keep = random_masking(8, 16, 0.5, noise=noise).keep
    torch.testing.assert_close(ours(x).pooled, theirs(x), atol=1e-5, rtol=1e-5)
    tokens = theirs._pos_embed(theirs.patch_embed(x))
    kept = torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, keep[..., None].expand(-1, -1, 32))], 1)
    want = theirs.norm(theirs.blocks(theirs.norm_pre(kept))).mean(1)
    torch.testing.assert_close(ours(x, keep).pooled, want, atol=1e-5, rtol=1e-5)
    dropped, _ = patch_dropout_forward(tokens, prob=0.5, num_prefix_tokens=1, ordered=False, training=True)
    assert dropped.shape[1] == kept.shape[1] == 1 + 8


# --- text


def test_text_tower_is_open_clips():
    torch.manual_seed(0)
    ours = TextEncoder(12, 32, 2, 4).eval()
    theirs = TextTransformer(
        12, 49408, 32, 4, 2, output_dim=None, no_causal_mask=True, pool_type='first'
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    from open_clip.tokenizer import SimpleTokenizer

    assert torch.equal(ours.tokenize(WORDS), SimpleTokenizer(context_length=12)(WORDS))
    torch.testing.assert_close(
        ours(ours.tokenize(WORDS)), theirs(SimpleTokenizer(context_length=12)(WORDS)), atol=1e-5, rtol=1e-5
    )
    long = ['one two three four five six seven eight nine ten eleven twelve']
    assert torch.equal(
        TextEncoder(12, 32, 1, 4, truncate=True).tokenize(long), SimpleTokenizer(context_length=12)(long)
    )


def test_words_are_part_of_the_weights():
    a = TextEncoder(10, 32, 1, 2, vocabulary_of(WORDS))
    b = TextEncoder(10, 32, 1, 2, vocabulary_of(WORDS[::-1]))
    assert torch.equal(a.vocabulary, b.vocabulary)
    assert 'vocabulary' in a.state_dict()
    assert a.tokenize(['a zebra'])[0, 2] == len(a.vocabulary)
    assert a.unknown('a zebra') == ['zebra']


# --- the method


def test_one_step_is_that_of_open_clip():
    """The same towers, heads and SGD under open_clip's loss, whose scale is clamped after the step: the same
    weights after it."""
    ours, theirs = small(clamp='step').double(), small(clamp='step').double()
    before = weights(ours)
    x, noise = batch()
    x = x.double()
    tokens = ours.tokenize(WORDS)
    keep = ours.draw_mask(x, noise).keep
    for m, mine in ((ours, True), (theirs, False)):
        # AdamW would blow up the noise of key biases, whose true gradient is 0
        opt = torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=0.2)
        if mine:
            loss = m(x, tokens, noise=noise)['loss']
        else:
            loss = ClipLoss()(
                F.normalize(m.image_head(m.encoder(x, keep).pooled), dim=-1),
                F.normalize(m.text_head(m.text_encoder(tokens)), dim=-1),
                m.scale.log_scale.exp(),
            )
        loss.backward()
        opt.step()
        m.after_step(0.5)
    learned = {n: before[n] for n, _ in ours.named_parameters()}
    check_moves(learned, dict(ours.named_parameters()), dict(theirs.named_parameters()), rtol=1e-7)


def test_patches_add_up_to_the_cosine():
    m = small().eval()
    x, _ = batch()
    v = F.normalize(m.embed_texts(WORDS), dim=1)
    u = F.normalize(m.embed_images(x), dim=1)
    torch.testing.assert_close((m.embed_patches(x) @ v.T).mean(1), u @ v.T, atol=1e-5, rtol=1e-4)


def test_intact_pictures_need_no_noise():
    m = small(mask_ratio=0.0)
    x, noise = batch()
    tokens = m.tokenize(WORDS)
    assert torch.equal(m(x, tokens)['loss'], m(x, tokens, noise=noise)['loss'])


def part(rank, world):
    """Loss and gradients of one process's rows of a batch of seven, in float64; equal captions lie in both
    parts."""
    m = small().double()
    x, noise = batch(7)
    tokens = m.tokenize(WORDS[:2] + WORDS[:5])
    lo = rank * 7 // world
    hi = (rank + 1) * 7 // world
    loss = m(x[lo:hi].double(), tokens[lo:hi], noise=noise[lo:hi])['loss'] * (hi - lo) / 7
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in m.named_parameters() if p.grad is not None}


def part_here():
    import torch.distributed as dist

    return part(dist.get_rank(), 2)


def test_two_processes_equal_one(two_processes):
    loss, grads = part(0, 1)
    answers = two_processes(part_here)
    torch.testing.assert_close(sum(part for part, _ in answers), loss)
    assert 'scale.log_scale' in grads
    assert 'text_encoder.token_embedding.weight' in grads
    for name, g in grads.items():
        torch.testing.assert_close(sum(other[name] for _, other in answers), g, atol=1e-7, rtol=1e-5)


# --- training: captions reach the method, also from a stream, after a stop, and on two processes

SMALL = dict(
    img_size=24,
    patch_size=6,
    batch_size=30,
    steps=6,
    log_every=1,
    checkpoint_every=2,
    encoder_options=dict(embed_dim=24, depth=1, num_heads=2),
    data_options=dict(n=90, size=24),
    method_options=dict(
        text_options=dict(context_length=12, own_words=True, width=24, layers=1, heads=2), dim=16
    ),
)


def rows(history):
    return [(r['loss'], r['grad_norm'], r['temperature']) for r in history.rows]


def test_a_stopped_run_goes_on_and_is_read_back(tmp_path):
    r = recipe('flip', 'laptop', **SMALL)
    data = load('scenes', n=90, size=24)
    whole = build(r, data)
    history = pretrain(whole, data, r, quiet=True, device='cpu')

    class Stop(Exception):
        pass

    def stop(method, step):
        raise Stop

    half = build(r, data)
    with pytest.raises(Stop):
        pretrain(
            half, data, change(r, probe_every=3), out=tmp_path / 'run', quiet=True, device='cpu', probe=stop
        )
    again = build(r, data)
    resumed = pretrain(again, data, r, out=tmp_path / 'run', quiet=True, device='cpu')
    assert rows(resumed)[-3:] == rows(history)[-3:]
    assert equal(whole.state_dict().values(), again.state_dict().values())
    back = load_run(tmp_path / 'run')  # no data set: the words are in the checkpoint
    assert torch.equal(back.text_encoder.vocabulary, whole.text_encoder.vocabulary)
    assert torch.equal(
        back.embed_texts(['a red bag on brick']), whole.eval().embed_texts(['a red bag on brick'])
    )


def test_a_stream_of_pairs_trains(tmp_path):
    "Pictures and captions in a folder, one picture damaged: what takes its place brings its own caption."
    data = load('scenes', n=40, size=24)
    for i in range(40):
        Image.fromarray(data.images[i].permute(1, 2, 0).numpy()).save(tmp_path / f'{i:02}.png')
        (tmp_path / f'{i:02}.txt').write_text(data.truths['caption'][i])
    stream = load(
        f'pairs:{tmp_path}', size=24, crop='centre', margin=1.0, workers=0, mean=data.mean, std=data.std
    )
    asked = []

    def run(data):
        r = recipe('flip', 'laptop', **{**SMALL, 'batch_size': 20, 'steps': 4})
        m = build(r, data)
        of = m.forward

        def forward(views, captions, noise=None):
            asked.append(captions.clone())
            return of(views, captions, noise=noise)

        m.forward = forward
        return rows(pretrain(m, data, r, quiet=True, device='cpu'))

    assert run(stream) == run(data)
    assert equal(asked[:4], asked[4:])
    (tmp_path / '07.png').write_bytes(b'no picture')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        broken = run(stream)
    assert all(np.isfinite(broken).flatten())


def train(r):
    torch.set_num_threads(1)
    data = load('scenes', n=90, size=24)
    m = build(r, data)
    return rows(pretrain(m, data, r, quiet=True, device='cpu')), m.state_dict()


def test_two_processes_train_as_one(two_processes):
    # uneven parts
    r = recipe(
        'flip', 'laptop', **{**SMALL, 'batch_size': 31, 'optimizer': 'sgd', 'base_lr': 0.05, 'steps': 4}
    )
    alone, state = train(r)
    for theirs, other in two_processes(train, r):
        for a, b in zip(alone, theirs, strict=True):
            assert a == pytest.approx(b, rel=1e-4)
        close_states(other, state, rtol=1e-4, atol=1e-5)


def test_it_learns():
    "A dozen pairs by heart in a hundred steps."
    m = small(mask_ratio=0.25, words=WORDS)
    x = batch()[0]
    tokens = m.tokenize(WORDS)
    opt = torch.optim.AdamW(m.parameters(), lr=3e-3)
    for _ in range(100):
        loss = m(x, tokens)['loss']
        loss.backward()
        opt.step()
        opt.zero_grad()
    assert loss < 0.3 < math.log(8) / 2
    assert m(x, tokens)['accuracy'] > 0.8


def test_the_temperature_at_its_bound_is_said():
    m = small()
    m.scale.log_scale.data.fill_(5.0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        m.after_step(0.5)
    with pytest.warns(
        UserWarning, match='logit scale has reached its bound of 100, it has no gradient there'
    ):
        m.after_step(1.0)
    m = small(clamp='step')
    m.scale.log_scale.data.fill_(-1.0)
    m.after_step(0.5)
    assert m.scale.log_scale == 0


def test_recipes():
    assert recipe('flip', 'paper').lr == pytest.approx(1.024e-3)
    assert {recipe('flip', s).scale for s in ('laptop', 'slow', 'gpu', 'paper')} == {
        'laptop',
        'slow',
        'gpu',
        'paper',
    }
    m = build(recipe('flip', 'gpu'), load('scenes', n=50, size=64))
    assert m.text_encoder.width == 192
    assert m.text_encoder.context_length == 16
    assert m.encoder.grid == (8, 8)


# --- data and evaluation


def test_shards_that_webdataset_wrote(tmp_path):
    wds = pytest.importorskip('webdataset')
    images = torch.randint(256, (6, 3, 20, 20), dtype=torch.uint8)
    with wds.ShardWriter(str(tmp_path / '%05d.tar'), maxcount=4, verbose=0) as out:
        for i, image in enumerate(images):
            out.write(
                {
                    '__key__': f'{i:04}',
                    'png': image.permute(1, 2, 0).numpy(),
                    **(
                        {'txt': f'picture {i}'} if i % 2 else {'json': dict(caption=f'picture {i}', width=20)}
                    ),
                }
            )
    data = load(f'webdataset:{tmp_path}', crop='centre', size=20, margin=1.0)
    assert captions_of(data) == [f'picture {i}' for i in range(6)]
    assert torch.equal(data.memory().images, images)
    shards = [str(tmp_path / f'{i:05}.tar') for i in range(2)]
    there = [(s['__key__'], s['png']) for s in wds.WebDataset(shards, shardshuffle=False)]
    for member, (key, png) in zip(data.files, there):
        assert member.open().read() == png
        assert member.name.startswith(key)
    # a member travels to a worker process
    back = next(
        load(f'webdataset:{tmp_path}', crop='centre', size=20, margin=1.0, workers=2).batches(
            6, shuffle=False
        )
    )
    assert torch.equal(back[0], images)
    assert captions_of(data.at(torch.tensor([4, 1]))) == [
        'picture 4',
        'picture 1',
    ]


def test_zero_shot_head_is_open_clips():
    from open_clip.zero_shot_classifier import build_zero_shot_classifier

    m = small(words=WORDS).eval()
    templates = ['a red {}', 'a blue {}', 'an orange {} on brick']

    class Theirs:
        def encode_text(self, tokens, normalize):
            return F.normalize(m.embed_texts(tokens), dim=-1)

    want = build_zero_shot_classifier(
        Theirs(), m.tokenize, ['bag', 'coat', 'dog', 'shirt'], [lambda c, t=t: t.format(c) for t in templates]
    ).T
    torch.testing.assert_close(
        zero_shot_classifier(m, ['bag', 'coat', 'dog', 'shirt'], templates), want, atol=1e-6, rtol=1e-5
    )


def test_recall_is_counted_by_hand():
    g = seeded(0)
    u, v = (F.normalize(torch.randn(12, 5, generator=g), dim=1) for _ in range(2))
    captions = [f'{i % 9}' for i in range(12)]
    found = recall_at_k(u, v, captions, ks=(1, 3), chunk=5)
    for way, ask, answers in (('text to image', v, u), ('image to text', u, v)):
        for k in (1, 3):
            hits = []
            for i in range(12):
                nearest = (answers @ ask[i]).argsort(descending=True)[:k]
                hits.append(any(captions[j] == captions[i] for j in nearest))
            assert found[f'{way}, R@{k}'] == pytest.approx(100 * np.mean(hits))


@pytest.mark.parametrize(
    'case, match',
    [
        (lambda: small()(batch()[0], small().tokenize(WORDS[:5])), 'got 8 pictures and 5 captions'),
        (lambda: small().tokenize(['']), "one of these is ''"),
        (lambda: small().tokenize([None]), 'one of these is None'),
        (
            lambda: small().tokenize(['a red bag ' * 5]),
            'has 17 word pieces with start and end, more than the context of 10',
        ),
        (lambda: small(temperature=0.001), 'logit scale outside 1 to 100'),
        (lambda: small(temperature=3.0), 'outside 1 to 100'),
        (lambda: small(temperature=-0.1), 'A temperature of -0.1'),
        (lambda: small(mask_ratio=1.0), '0 <= ratio < 1'),
        (lambda: small(mask_ratio=0.99), 'leaves none of 16 patches'),
        (lambda: small(clamp='after'), 'There is no way to bound the temperature'),
        (lambda: text_encoder('text_mini'), "There is no text encoder 'text_mini'"),
        (lambda: small().text_encoder(torch.zeros(2, 10)), 'takes int64 tokens'),
        (lambda: captions_of(load('digits')), "'digits' has no captions"),
        (lambda: clip_loss(torch.zeros(3, 4), torch.zeros(2, 4), 1.0), 'got 3 pictures'),
        (lambda: build(recipe('flip', 'laptop'), load('digits')), "'digits' has no captions"),
        (
            lambda: small()(batch()[0], small().tokenize(WORDS), noise=torch.rand(8, 9)),
            r'is \(8, 16\), not \(8, 9\)',
        ),
    ],
)
def test_bad_input(case, match):
    with pytest.raises(ValueError, match=match):
        case()


def test_bad_data(tmp_path, monkeypatch):
    monkeypatch.setattr('vit_ssl_lab.data.image_text.icon_folders', lambda root: [tmp_path])
    with pytest.raises(DataError, match="'emoji' can't be had.*run npm install --prefix"):
        load('emoji')
    with pytest.raises(DataError, match='is no folder'):
        load(f'pairs:{tmp_path / "no"}')
    with pytest.raises(DataError, match='there is no tar file'):
        load(f'webdataset:{tmp_path}')
    with pytest.raises(ValueError, match="There is no option of 'emoji' called 'sise'"):
        load('emoji', sise=3)
    (tmp_path / 'cut.tar').write_bytes(b'\0' * 100)
    with pytest.raises(DataError, match='must be an uncompressed tar file|is empty'):
        load(f'webdataset:{tmp_path}')


def test_emoji_where_they_are_installed():
    try:
        train, test = load('emoji', 'train'), load('emoji', 'test')
    except DataError as e:
        pytest.skip(str(e)[:80])
    assert len(train) == 3 * len(test) > 4000
    assert len(set(test.classes)) == len(test.classes)
    assert captions_of(test) == test.classes
    assert sorted(train.truths['designer'].unique().tolist()) == [0, 1, 2]
    assert test.truths['designer'].unique().tolist() == [3]
    assert (train.images.float().mean((1, 2, 3)) < 255).all(), "no picture is blank"
    assert not any(torch.equal(train.images[i], test.images[i]) for i in range(0, len(test), 50))
