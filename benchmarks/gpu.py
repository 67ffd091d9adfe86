"""On one CUDA GPU: MAE ViT-L/16 at 224 pixels in bf16, ours with and without compile beside transformers', as
a share of the measured matmul peak; and a two-view step (SimCLR, ViT-S/16) with augmentation, phase by
phase. Run: python -m benchmarks.gpu"""

import json, time
from statistics import median
import torch
from torch.utils.flop_counter import FlopCounterMode
from vit_ssl_lab.results import save_result


def timed(step, rounds: int = 20, warm: int = 5) -> float:
    "Median seconds of a step, the queue emptied before and after."
    for _ in range(warm):
        step()
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times)


def matmul_peak(n: int = 8192) -> float:
    "TFLOP/s of one large bf16 product: what this card reaches, not its data sheet's figure."
    a, b = (torch.randn(n, n, device='cuda', dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / timed(lambda: a @ b) / 1e12


def optimizer_of(model) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)


def training_step(model, x):
    "A function that does one update of a model on pictures in bf16."
    optimizer = optimizer_of(model)

    def step():
        with torch.autocast('cuda', torch.bfloat16):
            out = model(x)
        loss = out['loss'] if isinstance(out, dict) else out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def two_view_step(method, images):
    "A function that makes views and does one update, and tells a `mark` where each phase starts."
    optimizer = optimizer_of(method)

    def step(mark=lambda phase: None):
        mark('augmentation')
        views = method.views(images)
        mark('forward')
        with torch.autocast('cuda', torch.bfloat16):
            loss = method(views)['loss']
        mark('backward')
        loss.backward()
        mark('update')
        optimizer.step()
        optimizer.zero_grad()
        mark('end')

    return step


def mae_rows(batch: int, peak: float) -> list[dict]:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining
    from vit_ssl_lab.encoders.vit import vit_large
    from vit_ssl_lab.methods.mae import MAE

    torch.manual_seed(0)
    large = ViTMAEConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        norm_pix_loss=True,
    )
    arms = {
        'ours': lambda: MAE(vit_large(positions='sincos')),
        'ours, compiled': lambda: torch.compile(MAE(vit_large(positions='sincos'))),
        'transformers': lambda: ViTMAEForPreTraining(large),
    }
    x = torch.randn(batch, 3, 224, 224, device='cuda')
    rows = []
    for name, make in arms.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step = training_step(make().cuda().train(), x)
        if name == 'ours':
            with FlopCounterMode(display=False) as counter:
                step()
            work = counter.get_total_flops()
        seconds = timed(step)
        rows.append(
            dict(
                what='MAE ViT-L/16 step',
                arm=name,
                batch=batch,
                ms=round(1000 * seconds, 1),
                images_per_second=round(batch / seconds),
                peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 1),
                share_of_matmul_peak=round(work / seconds / 1e12 / peak, 3),
            )
        )
        del step  # with its network, before the next one is made
    return rows


def phases(step, rounds: int = 20, warm: int = 5) -> dict[str, float]:
    """Median milliseconds of each phase of a step on the GPU's own clock; the step calls the `mark` it is
    given before each phase, and at its end."""

    def events():
        out = []

        def mark(phase: str):
            out.append((phase, torch.cuda.Event(enable_timing=True)))
            out[-1][1].record()

        step(mark)
        return out

    for _ in range(warm):
        events()
    runs = [events() for _ in range(rounds)]
    torch.cuda.synchronize()
    times = {}
    for i, (phase, _) in enumerate(runs[0][:-1]):
        starts = [run[i][1] for run in runs]
        ends = [run[i + 1][1] for run in runs]
        times[phase] = round(median(start.elapsed_time(end) for start, end in zip(starts, ends)), 2)
    return times


def two_view_rows(batch: int = 256) -> list[dict]:
    from vit_ssl_lab.encoders.vit import vit_small
    from vit_ssl_lab.methods.simclr import SimCLR

    images = torch.randint(0, 256, (batch, 3, 256, 256), dtype=torch.uint8, device='cuda')
    rows = []
    for name in ('ours', 'ours, compiled'):
        method = SimCLR(vit_small()).cuda().train()
        if 'compiled' in name:
            method.encoder = torch.compile(method.encoder)
        step = two_view_step(method, images)
        whole = timed(step)
        parts = phases(step)
        rows.append(
            dict(
                what='two views, SimCLR ViT-S/16',
                arm=name,
                batch=batch,
                ms=round(1000 * whole, 1),
                images_per_second=round(batch / whole),
                augmentation_share=round(parts['augmentation'] / sum(parts.values()), 3),
                **{f'{k}_ms': v for k, v in parts.items()},
            )
        )
    return rows


def main() -> dict:
    if not torch.cuda.is_available():
        raise SystemExit(
            "This benchmark needs a CUDA GPU, and there is none here: "
            "run the others with python -m benchmarks."
        )
    torch.set_float32_matmul_precision('high')
    peak = matmul_peak()
    rows = (
        [dict(what='bf16 matmul peak', arm='torch', tflops=round(peak))]
        + mae_rows(128, peak)
        + two_view_rows()
    )
    save_result('bench_gpu', rows)
    return dict(rows=rows)


if __name__ == '__main__':
    print(json.dumps(main(), indent=1))
