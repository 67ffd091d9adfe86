"""One MAE training step (forward, backward, AdamW) of ViT-S/16 at 224 pixels, batch 4, float32, beside transformers' ViTMAE and lightly's parts.

All arms do the same work: encoder of 12 blocks and width 384 on 49 visible patches, decoder of 8 blocks and width 512 on 196, loss on normalised pixels.
Arms take turns in one process; figures are medians over the turns, ratios are taken turn by turn. Peak memory is measured in a process of its own for each
arm, as the growth of the resident set from the built model to the peak of three steps. Run: python -m benchmarks.mae_step
"""
import json, resource, subprocess, sys, time, warnings
from statistics import median
import torch
import torch.nn.functional as F
from torch import nn
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
    model = ViTMAEForPreTraining(ViTMAEConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, norm_pix_loss=True))
    model.step = lambda x: model(x).loss
    return model

class Lightly(nn.Module):
    "A MAE put together from lightly's parts, as its documentation shows; it predicts hidden patches only."
    def __init__(self):
        super().__init__()
        from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
        warnings.simplefilter('ignore', FutureWarning) # the decoder is renamed in lightly 1.7
        from timm import create_model
        vit = create_model('vit_small_patch16_224', num_classes=0)
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.decoder = MAEDecoderTIMM(num_patches=vit.patch_embed.num_patches, patch_size=PATCH, embed_dim=384, decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16, mlp_ratio=4., proj_drop_rate=0., attn_drop_rate=0.)

    def step(self, x):
        from lightly.models import utils
        keep, hidden = utils.random_token_mask(size=(len(x), self.backbone.sequence_length), mask_ratio=.75, device=x.device)
        seen = self.decoder.embed(self.backbone.encode(images=x, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(x), self.backbone.sequence_length))
        tokens = self.decoder.decode(utils.set_at_index(tokens, keep, seen.type_as(tokens)))
        pred = self.decoder.predict(utils.get_at_index(tokens, hidden))
        target = utils.get_at_index(utils.patchify(x, PATCH), hidden - 1) # the class token comes first
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return F.mse_loss(pred, target)

ARMS = {'ours': ours, 'transformers': transformers, 'lightly': Lightly}

def make(name: str):
    torch.manual_seed(0)
    model = ARMS[name]().train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    x = torch.randn(BATCH, 3, SIZE, SIZE)
    def step():
        optimizer.zero_grad(); loss = model.step(x); loss.backward(); optimizer.step()
        return loss.item()
    return step

def saved(model: nn.Module, x: torch.Tensor) -> float:
    "MiB of the activations that one forward pass keeps for the backward pass: what a method can be lean or wasteful with."
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}
    def pack(t):
        if t.untyped_storage().data_ptr() not in own: kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): loss = model.step(x)
    return sum(kept.values()) / 2**20 + 0 * loss.item()

def peak(name: str) -> None:
    "In a process of its own: MiB from the built model to the peak of three steps, and MiB of activations."
    torch.set_num_threads(1)
    step = make(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3): step()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps([grown, saved(ARMS[name]().train(), torch.randn(BATCH, 3, SIZE, SIZE))]))

def memory(name: str) -> list[float]:
    done = subprocess.run([sys.executable, '-m', 'benchmarks.mae_step', '--peak', name], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])

def turns(threads: int, rounds: int) -> dict[str, list[float]]:
    torch.set_num_threads(threads)
    steps, times = {name: make(name) for name in ARMS}, {name: [] for name in ARMS}
    for step in steps.values(): step() # warm-up
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter(); step(); times[name].append(time.perf_counter() - start)
    return times

def main(rounds: int = 15) -> dict:
    rows, kept = [], {name: [median(m) for m in zip(*(memory(name) for _ in range(3)))] for name in ARMS}
    for threads in (1, 2):
        times = turns(threads, rounds)
        for name in ARMS:
            rows.append(dict(arm=name, threads=threads, step_ms=round(1000 * median(times[name]), 1), time_to_ours=round(median(t / o for t, o in zip(times[name], times['ours'])), 3),
                             peak_mib=round(kept[name][0], 1), peak_to_ours=round(kept[name][0] / kept['ours'][0], 3),
                             activations_mib=round(kept[name][1], 1), activations_to_ours=round(kept[name][1] / kept['ours'][1], 3)))
    save_result('bench_mae_step', rows, batch=BATCH, size=SIZE, rounds=rounds, model='ViT-S/16, decoder 8 x 512')
    return dict(rows=rows)

if __name__ == '__main__':
    if sys.argv[1:2] == ['--peak']: peak(sys.argv[2])
    else: print(json.dumps(main(), indent=1))
