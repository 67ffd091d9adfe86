"""What holds for every recipe of every method, in miniature."""

import pytest
import torch
from small_recipes import every_recipe, few_pictures, inputs_of, small_method
from torch import nn
from vit_ssl_lab.components.processes import unread_parameters


def only_pooled(encoder: nn.Module, images: torch.Tensor) -> set[str]:
    "The parameters of an encoder on which its pooled vector depends, and its patches don't."
    loss = encoder(images).patches.float().square().sum()
    return {f'encoder.{name}' for name in unread_parameters(encoder, loss)}


@pytest.mark.parametrize('method, scale', list(every_recipe()))
def test_what_is_trained_gets_a_gradient(method, scale):
    """Every parameter that is trained, but the weights behind the patches of an encoder whose pooled vector
    no loss reads. What has a gradient is what the graph of the loss says."""
    data = few_pictures()
    made = small_method(method, scale).train()
    views, needed = inputs_of(made, data)
    loss = made(views, **needed)['loss']
    unread = unread_parameters(made, loss)
    loss.backward()
    trained = {name: p for name, p in made.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == unread
    if unread:
        images = views if isinstance(views, torch.Tensor) else views[0]
        assert set(unread) <= only_pooled(made.encoder, images)
    assert len(unread) < len(trained) / 2
