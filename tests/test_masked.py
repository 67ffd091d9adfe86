"""Masked autoencoders: looking changes no mode, one loss over hidden patches, old names of statistics."""

import pytest
import torch
from vit_ssl_lab.components.losses import masked_mse
from vit_ssl_lab.components.patches import patchify
from vit_ssl_lab.core import Mask
from vit_ssl_lab.data import load
from vit_ssl_lab.data.views import MAEViews
from vit_ssl_lab.encoders.vit import vit_nano
from vit_ssl_lab.methods.base.masked import MaskedAutoencoder
from vit_ssl_lab.training import build, recipe

SIZES = dict(decoder_width=32, decoder_depth=1, decoder_heads=2)


def method(**options) -> MaskedAutoencoder:
    torch.manual_seed(0)
    views = MAEViews(24, (0.5,) * 3, (0.25,) * 3)
    encoder = vit_nano(img_size=24, patch_size=4, depth=2, positions='sincos')
    return MaskedAutoencoder(encoder, views, **SIZES, **options)


def modes(m) -> dict:
    return {name: part.training for name, part in m.named_modules()}


def test_reconstruct_leaves_every_part_in_its_mode():
    "A part that was set to eval inside a method that trains stays in eval; so does the training of the rest."
    m = method()
    m.train()
    m.encoder.eval()
    before = modes(m)
    assert before['']
    assert not before['encoder']
    m.reconstruct(torch.rand(2, 3, 24, 24))
    assert modes(m) == before


def test_reconstruct_that_raises_leaves_every_part_in_its_mode(monkeypatch):
    m = method()
    m.train()
    before = modes(m)

    def fails(*args):
        raise RuntimeError("no prediction")

    monkeypatch.setattr(m.decoder, 'forward', fails)
    with pytest.raises(RuntimeError, match='no prediction'):
        m.reconstruct(torch.rand(2, 3, 24, 24))
    assert modes(m) == before


@pytest.mark.parametrize('norm_pix', [True, False])
def test_the_loss_over_hidden_patches_is_the_naive_masked_loss(norm_pix):
    m = method(norm_pix=norm_pix).double().eval()
    x = torch.randn(3, 3, 24, 24, dtype=torch.float64)
    mask = m.draw_mask(x, torch.rand(3, 36))
    loss = m.pixel_loss(m.predict(x, mask, mask.hidden), m.hidden_patches(x, mask))
    naive = masked_mse(m.predict(x, mask), m.target(patchify(x, 4)), mask.mask.double())
    torch.testing.assert_close(loss, naive, rtol=1e-10, atol=0)


def test_of_nothing_hidden_the_loss_is_zero_and_has_a_gradient():
    m = method()
    x = torch.randn(2, 3, 24, 24)
    everything = Mask(torch.arange(36).expand(2, -1), torch.zeros(2, 36))
    loss = m.pixel_loss(m.predict(x, everything, everything.hidden), m.hidden_patches(x, everything))
    assert loss.item() == 0
    loss.backward()
    assert m.decoder.head.weight.grad.eq(0).all()


@pytest.mark.parametrize('old, new', [('honest', 'estimated'), ('leaky', 'true')])
def test_older_names_of_statistics_are_understood(old, new):
    m = method()
    images = torch.rand(2, 3, 24, 24)
    mask = m.draw_mask(images, torch.rand(2, 36))
    a = m.reconstruct(images, mask=mask, pixels=old)
    b = m.reconstruct(images, mask=mask, pixels=new)
    assert torch.equal(a.prediction, b.prediction)


MASKED = ('mae', 'maskfeat', 'supmae', 'cmae', 'macrl', 'fcmae', 'occlusion')


@pytest.mark.slow
@pytest.mark.parametrize('name', MASKED)
def test_torch_compile_sees_one_graph(name):
    "The mask's cache of hidden patches must not break the graph: on a GPU that would cost speed."
    digits = load('digits')
    chosen = recipe(name, 'laptop', data='digits', img_size=16, patch_size=4, batch_size=4)
    method = build(chosen, digits)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    views = method.views(digits.images[:4])
    labels = dict(labels=digits.labels[:4]) if 'labels' in method.needs else {}
    noise = torch.rand(4, *method.noise_shape)
    torch._dynamo.reset()
    torch.compile(method, backend=count)(views, noise=noise, **labels)
    assert len(graphs) == 1


@pytest.mark.parametrize('name', ['mae', 'cmae', 'occlusion', 'supmae', 'macrl', 'maskfeat', 'mp3'])
def test_a_gpu_recipe_scores_what_its_loss_has_read(name):
    "No loss of these reads a class token: what their GPU recipes pool is the mean of the patches."
    options = recipe(name, 'gpu').encoder_options
    encoder = vit_nano(img_size=24, patch_size=8, depth=1, **options).eval()
    features = encoder(torch.randn(2, 3, 24, 24))
    mean = encoder.fc_norm(features.patches.mean(1))
    torch.testing.assert_close(features.pooled, mean)
