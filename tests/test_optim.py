"""Optimizers: LARS equals each official form over many steps, any optimizer of timm by name, what decays."""

import copy
import json
import numpy as np
import pytest
import torch
from helpers import seeded
from test_initialisation import small_paper
from timm.optim import list_optimizers
from torch import nn
from vit_ssl_lab.data import load
from vit_ssl_lab.recipe import Recipe
from vit_ssl_lab.training import build, pretrain, recipe
from vit_ssl_lab.training.build import method_names
from vit_ssl_lab.training.checkpoints import pack_optimizer, unpack_optimizer
from vit_ssl_lab.training.optim import LARS, make_optimizer, param_groups

pytestmark = pytest.mark.unit

STEPS, DECAY, MU = 200, 0.02, 0.9
SHAPES = {
    'matrix': (5, 7),
    'conv': (4, 3, 3, 3),
    'token': (1, 1, 6),
    'zero': (3, 4),  # starts at zero
    'bias': (9,),
    'scalar': (),
}


def rate(t, peak):
    "A warm-up, a cosine, and a rate of 0 in between: whatever depends on the rate of old steps shows."
    if t == 77:
        return 0.0
    return peak * min(1, (t + 1) / 20) * (0.5 + 0.5 * np.cos(np.pi * t / STEPS))


def start(name):
    shape = SHAPES[name]
    if name == 'zero':
        return np.zeros(shape)
    return torch.randn(shape, generator=seeded(len(name)), dtype=torch.float64).numpy()


def gradient(w, name, t):
    "It depends on the weights, so that a wrong step is seen in all later ones; now and then it is 0."
    noise = torch.randn(SHAPES[name], generator=seeded(1000 + t), dtype=torch.float64).numpy()
    scale = 1.0 if w.ndim > 1 else 0.004  # what isn't adapted has the plain rate, which is large here
    return np.zeros_like(w) if t % 50 == 13 else scale * (np.sin(3 * w) + 0.3 * noise)


# The official forms, in numpy and float64. Each takes a weight, its gradient and the state of its tensor.


def torch_form(w, g, state, lr, nesterov=False):
    "moco-v3, moco/optimizer.py and mae, util/lars.py: `if p.ndim > 1`."
    if w.ndim > 1:
        g = g + DECAY * w
        q = 1.0
        if np.linalg.norm(w) > 0 and np.linalg.norm(g) > 0:
            q = 0.001 * np.linalg.norm(w) / np.linalg.norm(g)
        g = q * g
    state['mu'] = MU * state.get('mu', 0.0) + g
    step = g + MU * state['mu'] if nesterov else state['mu']
    return w - lr * step


def tensorflow_form(w, g, state, lr, nesterov=False):
    "simclr, lars_optimizer.py with classic_momentum: biases and norms excluded by their names."
    trust = 1.0
    if w.ndim > 1:
        g = g + DECAY * w
        if np.linalg.norm(w) > 0 and np.linalg.norm(g) > 0:
            trust = 0.001 * np.linalg.norm(w) / np.linalg.norm(g)
    scaled_lr = lr * trust
    state['v'] = MU * state.get('v', 0.0) + scaled_lr * g
    return w - (MU * state['v'] + scaled_lr * g if nesterov else state['v'])


def jax_form(w, g, state, lr):
    "byol, optimizers.py: add_weight_decay, scale_by_lars, scale(-lr), each with its filter."
    update = g + DECAY * w if w.ndim > 1 else g
    if w.ndim > 1 and np.linalg.norm(w) > 0 and np.linalg.norm(update) > 0:
        update = update * (0.001 * np.linalg.norm(w) / np.linalg.norm(update))
    state['mu'] = MU * state.get('mu', 0.0) + update
    return w + -lr * state['mu']


def solo_form(w, g, state, lr, eta=0.02, eps=1e-8):
    "solo-learn, lars.py with clipping: |g| + decay |w|, at most the plain step; then SGD with momentum."
    if w.ndim > 1:
        w_norm, g_norm = np.linalg.norm(w), np.linalg.norm(g)
        q = eta * w_norm / (g_norm + w_norm * DECAY + eps) if w_norm > 0 else 1.0
        q = min(q / lr, 1.0) if lr else 1.0
        g = (g + DECAY * w) * q
    state['b'] = MU * state.get('b', 0.0) + g
    return w - lr * state['b']


FORMS = {
    'torch': (torch_form, {}),
    'torch, nesterov': (lambda *a: torch_form(*a, nesterov=True), dict(nesterov=True)),
    'tensorflow': (tensorflow_form, dict(lr_in_momentum=True)),
    'tensorflow, nesterov': (
        lambda *a: tensorflow_form(*a, nesterov=True),
        dict(lr_in_momentum=True, nesterov=True),
    ),
    'jax': (jax_form, {}),
    'solo-learn': (solo_form, dict(norms='apart', trust=0.02, clip=True, eps=1e-8)),
}


def run_ours(options, through_groups, peak):
    weights = {name: nn.Parameter(torch.tensor(start(name))) for name in SHAPES}
    if through_groups:  # as training makes them
        groups = param_groups(nn.ParameterDict(weights), DECAY)
        optimizer = make_optimizer('lars', groups, lr=peak, momentum=MU, options=options)
    else:  # as somebody else would use it
        optimizer = LARS(weights.values(), lr=peak, momentum=MU, weight_decay=DECAY, **options)
    for t in range(STEPS):
        for group in optimizer.param_groups:
            group['lr'] = rate(t, peak)
        for name, p in weights.items():
            p.grad = torch.tensor(gradient(p.detach().numpy(), name, t))
        optimizer.step()
    return {name: p.detach().numpy() for name, p in weights.items()}


def run_theirs(form, peak=8.0):
    weights = {name: start(name) for name in SHAPES}
    states = {name: {} for name in SHAPES}
    for t in range(STEPS):
        for name, w in weights.items():
            weights[name] = form(w, gradient(w, name, t), states[name], rate(t, peak))
    return weights


@pytest.mark.parametrize('through_groups', [True, False], ids=['groups', 'plain'])
@pytest.mark.parametrize('name', FORMS)
def test_lars_is_the_official_one_over_many_steps(name, through_groups):
    "200 steps with a changing rate: the weights agree to 1e-12, having moved by more than a tenth."
    form, options = FORMS[name]
    peak = 1.0 if 'trust' in options else 8.0  # a larger trust coefficient, a smaller rate
    ours, theirs = run_ours(options, through_groups, peak), run_theirs(form, peak)
    for part, w in theirs.items():
        np.testing.assert_allclose(ours[part], w, rtol=1e-12, atol=1e-12, err_msg=part)
        assert np.abs(w - start(part)).max() > 0.1, part


def test_the_conventions_differ():
    "What the test above compares is no rounding: the forms end far apart."
    ends = [run_theirs(FORMS[name][0])['matrix'] for name in ('torch', 'tensorflow', 'solo-learn')]
    for i, a in enumerate(ends):
        for b in ends[i + 1 :]:
            assert np.abs(a - b).max() > 1e-3


def test_a_lars_without_a_gradient_stays():
    still, moving = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    moving.grad = torch.ones(2, 2)
    optimizer = LARS([still, moving], lr=1.0)
    assert optimizer.step(lambda: torch.tensor(3.0)) == 3.0
    assert torch.equal(still, torch.ones(2, 2))
    assert not torch.equal(moving, torch.ones(2, 2))


@pytest.mark.parametrize(
    'wrong, sentence',
    [
        (dict(lr=-1), 'lr of LARS must be 0 or more'),
        (dict(trust=0), 'trust of LARS must be above 0'),
        (dict(momentum=2), 'Momentum is the share'),
        (dict(eps=-1), 'eps of LARS must be 0 or more'),
        (dict(norms='both'), 'There is no way to add the norms'),
    ],
)
def test_lars_refuses(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        LARS([nn.Parameter(torch.ones(2))], **(dict(lr=0.1) | wrong))


def test_a_state_of_timm_s_lars_is_refused():
    from timm.optim.lars import Lars

    p = nn.Parameter(torch.ones(2, 2))
    p.grad = torch.ones(2, 2)
    old = Lars([p], lr=0.1, momentum=0.9)
    old.step()
    with pytest.raises(ValueError, match='written by another kind of LARS'):
        LARS([p], lr=0.1).load_state_dict(old.state_dict())


@pytest.mark.parametrize(
    'method, options',
    [
        ('simclr', dict(lr_in_momentum=True)),
        ('byol', {}),
        ('momentum_projector', dict(norms='apart', trust=0.02, clip=True, eps=1e-8)),
    ],
)
def test_each_paper_s_recipe_has_its_own_form(method, options):
    r = recipe(method, 'paper')
    assert (r.optimizer, r.optimizer_options) == ('lars', options)
    assert not r.decay_all, "biases and norms are excluded"
    others = [m for m in method_names() if recipe(m, 'paper').optimizer == 'lars']
    assert sorted(others) == ['byol', 'momentum_projector', 'simclr']


# --- any optimizer of timm


def cannot_run_here(name):
    "Needs apex or bitsandbytes, or second derivatives, which the loop doesn't make."
    return name.startswith(('fused', 'bnb')) or name == 'adahessian'


def check_it_goes_on(name, net, optimizer):
    "Packed for a checkpoint, through JSON, and unpacked, it makes the same next step."
    tensors, rest = pack_optimizer(optimizer)
    other = copy.deepcopy(net)
    again = make_optimizer(name, param_groups(other, 0.01), lr=1e-3)
    unpack_optimizer(again, {key: t.clone() for key, t in tensors.items()}, json.loads(json.dumps(rest)))
    x = torch.randn(4, 8)
    for network, its_optimizer in ((net, optimizer), (other, again)):
        network(x).square().mean().backward()
        torch.manual_seed(3)  # some draw random numbers in a step
        its_optimizer.step()
    for a, b in zip(net.parameters(), other.parameters()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize('name', [n for n in list_optimizers() if not cannot_run_here(n)])
def test_every_optimizer_of_timm_makes_a_step(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = make_optimizer(name, param_groups(net, 0.01), lr=1e-3)
    for _ in range(2):
        loss = net(torch.randn(4, 8)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters()))
    if not name.startswith('kron'):  # it throws a die of its own, which no state holds
        check_it_goes_on(name, net, optimizer)
    assert Recipe('mae', steps=1, optimizer=name).optimizer == name


def test_an_unknown_optimizer_is_one_sentence_with_near_names():
    with pytest.raises(ValueError, match="There is no optimizer 'lionn'. Near it are 'lion'") as refused:
        Recipe('mae', steps=1, optimizer='lionn')
    assert len(str(refused.value)) < 200
    with pytest.raises(ValueError, match="no optimizer 'zzz'. 'adamw'"):
        make_optimizer('zzz', [], 0.1)
    with pytest.raises(ValueError, match="There is no optimizer 'adahessian'"):
        make_optimizer('adahessian', [], 0.1)
    with pytest.raises(ValueError, match="The optimizer 'bnbadam' can't be made"):
        make_optimizer('bnbadam', param_groups(nn.Linear(2, 2)), 0.1)


@pytest.mark.parametrize('name', ['lars', 'sgd', 'adamw', 'lamb'])
def test_an_unknown_option_is_named(name):
    groups = param_groups(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=f"The optimizer '{name}' can't be made with .*epps"):
        make_optimizer(name, groups, 0.1, options=dict(epps=1))


def test_options_and_betas_reach_it():
    groups = lambda: param_groups(nn.Linear(2, 2))
    assert make_optimizer('lamb', groups(), 0.1, betas=(0.5, 0.6)).defaults['betas'] == (0.5, 0.6)
    assert make_optimizer('nadamw', groups(), 0.1, options=dict(eps=1e-3)).defaults['eps'] == 1e-3
    assert make_optimizer('rmsprop', groups(), 0.1, momentum=0.7).defaults['momentum'] == 0.7
    assert len(make_optimizer('adan', groups(), 0.1).defaults['betas']) == 3, "its own three betas stay"
    assert make_optimizer('adamw', groups(), 0.1, options=dict(amsgrad=True)).defaults['amsgrad']


@pytest.mark.parametrize('name', ['lars', 'lion', 'lamb', 'adan', 'adafactor', 'nadamw', 'muon'])
def test_resume_is_bitwise(name, tmp_path):
    "Stopped after three steps and gone on with, a run ends with the same weights as one that wasn't stopped."
    digits = load('digits')
    r = recipe(
        'mae',
        'laptop',
        data='digits',
        steps=6,
        batch_size=16,
        img_size=16,
        checkpoint_every=3,
        log_every=1,
        base_lr=1e-3,
        optimizer=name,
        encoder_options=dict(embed_dim=24, depth=1, num_heads=2),
        method_options=dict(decoder_width=16, decoder_heads=1),
    )

    class Stop(Exception):
        pass

    def stop_after_four(method, step):
        if step == 4:
            raise Stop
        return {}

    whole = build(r, digits)
    pretrain(whole, digits, r, quiet=True, device='cpu')
    folder = tmp_path / 'run'
    probed = r.but(probe_every=1)
    with pytest.raises(Stop):
        pretrain(
            build(probed, digits), digits, probed, out=folder, probe=stop_after_four, quiet=True, device='cpu'
        )
    again = build(probed, digits)
    log = pretrain(again, digits, probed, out=folder, quiet=True, device='cpu')
    assert log.rows[-1]['step'] == 6
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


# --- what decays


def decaying(method, **how):
    groups = param_groups(method, 0.1, **how)
    decay = {id(p): g['weight_decay'] for g in groups for p in g['params']}
    return {name for name, p in method.named_parameters() if decay.get(id(p))}


def test_cmae_decays_by_name():
    "paramwise_cfg of the official configuration: ln, bias, pos_embed, mask_token and cls_token don't decay."
    r, data = small_paper('cmae')
    assert recipe('cmae', 'gpu').no_decay == r.no_decay
    method = build(r, data)
    ours = decaying(method, no_decay=r.no_decay, also_decay=r.also_decay)

    def spared(name):
        is_layer_norm = 'norm' in name  # mmengine calls it ln1, ln2
        words = ('bias', 'pos_embed', 'mask_token', 'cls_token')
        return is_layer_norm or any(word in name for word in words)

    expected = {n for n, p in method.named_parameters() if p.requires_grad and not spared(n)}
    assert ours == expected
    assert 'projector.1.weight' in ours and 'decoder.mask_token' not in ours


def test_fcmae_decays_grn_and_the_mask_token():
    "timm 0.3.2's add_weight_decay over the official sparse model, where GRN has two dimensions or more."
    r, data = small_paper('fcmae')
    method = build(r, data)
    ours = decaying(method, no_decay=r.no_decay, also_decay=r.also_decay)
    learned = {n: p for n, p in method.named_parameters() if p.requires_grad}
    expected = {n for n, p in learned.items() if p.ndim > 1 or '.grn.' in n}
    assert ours == expected
    assert 'decoder.mask_token' in ours and any('.grn.weight' in n for n in ours)


def test_flip_spares_positions_and_decays_the_temperature():
    "opt_util.py: filter_bias_and_norm and filter_posembed; cls and logit_scale decay."
    r, data = small_paper('flip')
    method = build(r, data)
    ours = decaying(method, no_decay=r.no_decay, also_decay=r.also_decay)
    assert {'encoder.cls_token', 'scale.log_scale', 'text_encoder.token_embedding.weight'} <= ours
    assert not any('positional' in n or 'bias' in n or '.ln_' in n or '.norm' in n for n in ours)


def test_a_part_can_t_decay_and_not():
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="0.weight can't both decay and not"):
        param_groups(net, no_decay=('0.weight',), also_decay=('0',))
    with pytest.raises(ValueError, match='There is no parameter or part'):
        param_groups(net, also_decay=('*.grn.*',))
    with pytest.raises(ValueError, match='no_decay of the recipe is a tuple'):
        Recipe('mae', steps=1, no_decay='cls_token')
