"""One MAE training step (forward, backward, AdamW) of ViT-S/16 at 224 pixels, batch 4, float32, beside
transformers' ViTMAE and lightly's parts.

All arms do the same work: encoder of 12 blocks and width 384 on 49 visible patches, decoder of 8 blocks
and width 512 on 196, loss on normalised pixels. Arms take turns in one process, in an order drawn for each
round; figures are medians over the turns, ratios are taken turn by turn, by the clock (with their
quartiles) and by the processor's time of this process.

Memory is measured in a process of its own for each arm, beside the built model's weights, over three
steps, in four ways:
 - activations: what the forward pass leaves for the backward pass;
 - tensors: the most bytes that tensors hold at a time, gradients and AdamW's averages included, whatever
   the allocator does;
 - peak: growth of the resident set with each large tensor in a mapping of its own
   (MALLOC_MMAP_THRESHOLD_, the same for all arms), so that freed memory is given back; code and libraries'
   buffers included;
 - heap: the same with glibc's malloc as it is. It keeps the holes that freed tensors leave and fills them
   badly (a block of memory can't take an aligned tensor of its own size), so this figure contains 80 to
   130 MiB of holes in all arms.
Run: python -m benchmarks.mae_step"""

import json, os, random, resource, subprocess, sys, time, warnings
from statistics import median, quantiles
import torch
import torch.nn.functional as F
from torch import nn
from vit_ssl_lab.components.lean import LiveBytes
from vit_ssl_lab.results import save_result

BATCH, SIZE, PATCH = 4, 224, 16


def ours() -> nn.Module:
    from vit_ssl_lab.encoders.vit import vit_small
    from vit_ssl_lab.methods.mae import MAE

    model = MAE(vit_small(positions='sincos'))
    model.step = lambda x: model(x)['loss']
    return model


def transformers() -> nn.Module:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=384,
            num_hidden_layers=12,
            num_attention_heads=6,
            intermediate_size=1536,
            norm_pix_loss=True,
        )
    )
    model.step = lambda x: model(x).loss
    return model


class Lightly(nn.Module):
    "A MAE put together from lightly's parts, as its documentation shows; it predicts hidden patches only."

    def __init__(self):
        super().__init__()
        from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

        warnings.simplefilter('ignore', FutureWarning)  # the decoder is renamed in lightly 1.7
        from timm import create_model

        vit = create_model('vit_small_patch16_224', num_classes=0)
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.decoder = MAEDecoderTIMM(
            num_patches=vit.patch_embed.num_patches,
            patch_size=PATCH,
            embed_dim=384,
            decoder_embed_dim=512,
            decoder_depth=8,
            decoder_num_heads=16,
            mlp_ratio=4.0,
            proj_drop_rate=0.0,
            attn_drop_rate=0.0,
        )

    def step(self, x):
        from lightly.models import utils

        keep, hidden = utils.random_token_mask(
            size=(len(x), self.backbone.sequence_length), mask_ratio=0.75, device=x.device
        )
        seen = self.decoder.embed(self.backbone.encode(images=x, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(x), self.backbone.sequence_length))
        tokens = self.decoder.decode(utils.set_at_index(tokens, keep, seen.type_as(tokens)))
        pred = self.decoder.predict(utils.get_at_index(tokens, hidden))
        target = utils.get_at_index(utils.patchify(x, PATCH), hidden - 1)  # the class token comes first
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return F.mse_loss(pred, target)


ARMS = {'ours': ours, 'transformers': transformers, 'lightly': Lightly}


def make(name: str):  # the step, which returns the loss, and the model
    torch.manual_seed(0)
    model = ARMS[name]().train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    x = torch.randn(BATCH, 3, SIZE, SIZE)

    def step():
        optimizer.zero_grad()
        loss = model.step(x)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, model


def grown(name: str) -> float:
    """MiB by which the resident set grows from the built model to the peak of three steps; to be run in a
    process of its own."""
    step, _ = make(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def counted(name: str) -> list[float]:
    "MiB of activations, and the most MiB of tensors alive beside the weights in two steps."
    step, model = make(name)
    with LiveBytes() as live:
        loss = model.step(torch.randn(BATCH, 3, SIZE, SIZE))
        activations = live.now - BATCH * 3 * SIZE * SIZE * 4
    del loss
    with LiveBytes() as live:
        step()
        step()
    return [activations / 2**20, live.peak / 2**20]


def apart(what: str, name: str, **env: str):
    done = subprocess.run(
        [sys.executable, '-m', 'benchmarks.mae_step', what, name],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ, OMP_NUM_THREADS='1', **env),
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def memory(name: str) -> dict[str, float]:
    activations, tensors = apart('counted', name)
    return dict(
        activations=activations,
        tensors=tensors,
        peak=apart('grown', name, MALLOC_MMAP_THRESHOLD_='131072'),
        heap=apart('grown', name),
    )


def turns(threads: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    "For each arm its steps: seconds by the clock, and of processor time."
    torch.set_num_threads(threads)
    steps = {name: make(name)[0] for name in ARMS}
    times = {name: [] for name in ARMS}
    order = random.Random(0)
    for step in [*steps.values()] * 2:
        step()  # warm-up
    for _ in range(rounds):
        # in a random order: no arm always inherits the same arm's heap and caches
        for name in order.sample(list(steps), len(steps)):
            start = time.perf_counter()
            cpu_start = time.process_time()
            steps[name]()
            seconds = time.perf_counter() - start
            times[name].append((seconds, time.process_time() - cpu_start))
    return times


def main(rounds: int = 21) -> dict:
    rows = []
    kept = {name: memory(name) for name in ARMS}
    for threads in (1, 2):
        times = turns(threads, rounds)
        for name in ARMS:
            rounds_of_both = list(zip(times[name], times['ours']))
            ratios = [t[0] / o[0] for t, o in rounds_of_both]
            cpu_ratios = [t[1] / o[1] for t, o in rounds_of_both]
            low, _, high = quantiles(ratios, n=4)
            rows.append(
                dict(
                    arm=name,
                    threads=threads,
                    step_ms=round(1000 * median(t for t, _ in times[name]), 1),
                    time_to_ours=round(median(ratios), 3),
                    quartiles=f'{low:.3f} to {high:.3f}',
                    cpu_to_ours=round(median(cpu_ratios), 3),
                    **{f'{k}_mib': round(v, 1) for k, v in kept[name].items()},
                    **{f'{k}_to_ours': round(v / kept['ours'][k], 3) for k, v in kept[name].items()},
                )
            )
    save_result(
        'bench_mae_step', rows, batch=BATCH, size=SIZE, rounds=rounds, model='ViT-S/16, decoder 8 x 512'
    )
    return dict(rows=rows)


if __name__ == '__main__':
    if sys.argv[1:]:
        torch.set_num_threads(1)
        print(json.dumps(dict(grown=grown, counted=counted)[sys.argv[1]](sys.argv[2])))
    else:
        print(json.dumps(main(), indent=1))
