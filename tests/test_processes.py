"What processes do together equals what one does with the whole batch: values, gradients, running statistics. Real processes over gloo."
import copy
import pytest, torch
import torch.nn.functional as F
from torch import nn
from two_processes import group
from vit_ssl_lab.components import processes as P
from vit_ssl_lab.components.queue import Queue

@pytest.fixture(scope='module')
def two():
    with group(2) as g: yield g

@pytest.fixture(scope='module')
def three():
    with group(3) as g: yield g

def own(x, counts): return x.split(counts)[P.rank()]

SPLITS = [[4, 4], [2, 6], [7, 1]]

# -- gathering

def gather_job(x, target, counts):
    "A loss over rows that looks at all rows, weighted as the loop does: share of the batch times processes, then the mean over processes."
    mine = own(x, counts).clone().requires_grad_()
    rows = P.gather(mine)
    logits = mine @ rows.T
    loss = F.cross_entropy(logits, P.offset(len(mine)) + torch.arange(len(mine)))
    (loss * (len(mine) / len(x) * P.world())).backward()
    return rows.detach(), P.offset(len(mine)), loss.item(), mine.grad / P.world()

@pytest.mark.parametrize('counts', SPLITS)
def test_gather_rows_and_gradient(two, counts):
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    answers = two(gather_job, x, None, counts)
    whole = x.clone().requires_grad_()
    loss = F.cross_entropy(whole @ whole.T, torch.arange(8)); loss.backward()
    for (rows, at, _, _), start in zip(answers, (0, counts[0])): assert torch.equal(rows, x) and at == start
    assert sum(l * n / 8 for (_, _, l, _), n in zip(answers, counts)) == pytest.approx(loss.item(), abs=1e-6)
    torch.testing.assert_close(torch.cat([g for *_, g in answers]), whole.grad, atol=1e-6, rtol=1e-5)
