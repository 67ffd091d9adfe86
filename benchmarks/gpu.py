"""On one CUDA GPU: MAE ViT-L/16 at 224 pixels in bf16, ours with and without compile beside transformers', as a share of the measured matmul peak;
and the two-view ViT-S/16 pipeline with augmentation.  Run: python -m benchmarks.gpu"""
import json, time
from statistics import median
import torch
from torch.utils.flop_counter import FlopCounterMode
from vit_ssl_lab.results import save_result

def timed(step, rounds: int = 20, warm: int = 5) -> float:
    "Median seconds of a step, the queue emptied before and after."
    for _ in range(warm): step()
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize(); start = time.perf_counter(); step(); torch.cuda.synchronize(); times.append(time.perf_counter() - start)
    return median(times)

def matmul_peak(n: int = 8192) -> float:
    "TFLOP/s of one large bf16 product: what this card reaches, not what its sheet says."
    a, b = (torch.randn(n, n, device='cuda', dtype=torch.bfloat16) for _ in range(2))
    return 2 * n ** 3 / timed(lambda: a @ b) / 1e12

def mae_rows(batch: int, peak: float) -> list[dict]:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining
    from vit_ssl_lab.encoders.vit import vit_large
    from vit_ssl_lab.methods.mae import MAE
    torch.manual_seed(0)
    large = ViTMAEConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, norm_pix_loss=True)
    arms = {'ours': lambda: MAE(vit_large(positions='sincos')), 'ours, compiled': lambda: torch.compile(MAE(vit_large(positions='sincos'))), 'transformers': lambda: ViTMAEForPreTraining(large)}
    x, rows = torch.randn(batch, 3, 224, 224, device='cuda'), []
    for name, make in arms.items():
        torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
        model = make().cuda().train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
        def step():
            with torch.autocast('cuda', torch.bfloat16): out = model(x)
            loss = out['loss'] if isinstance(out, dict) else out.loss
            optimizer.zero_grad(); loss.backward(); optimizer.step()
        if name == 'ours':
            with FlopCounterMode(display=False) as counter: step()
            work = counter.get_total_flops()
        seconds = timed(step)
        rows.append(dict(what='MAE ViT-L/16 step', arm=name, batch=batch, ms=round(1000 * seconds, 1), images_per_second=round(batch / seconds), peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 1),
                         share_of_matmul_peak=round(work / seconds / 1e12 / peak, 3)))
        del model, optimizer
    return rows

def two_view_rows(batch: int = 256) -> list[dict]:
    from vit_ssl_lab.data.views import views
    from vit_ssl_lab.encoders.vit import vit_small
    images = torch.randint(0, 256, (batch, 3, 256, 256), dtype=torch.uint8, device='cuda')
    two, encoder = views('mocov3', 224, (.485, .456, .406), (.229, .224, .225)).cuda(), torch.compile(vit_small().cuda())
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-4, fused=True)
    def augment(): return two(images)
    def step():
        a, b = augment()
        with torch.autocast('cuda', torch.bfloat16): loss = (encoder(a).pooled - encoder(b).pooled).square().mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    whole, part = timed(step), timed(augment)
    return [dict(what='two views, ViT-S/16', arm='ours, compiled', batch=batch, ms=round(1000 * whole, 1), images_per_second=round(batch / whole), augmentation_share=round(part / whole, 3))]

def main() -> dict:
    if not torch.cuda.is_available(): raise SystemExit("This benchmark needs a CUDA GPU, and there is none here: run the others with python -m benchmarks.")
    torch.set_float32_matmul_precision('high')
    peak = matmul_peak()
    rows = [dict(what='bf16 matmul peak', arm='torch', tflops=round(peak))] + mae_rows(128, peak) + two_view_rows()
    save_result('bench_gpu', rows)
    return dict(rows=rows)

if __name__ == '__main__': print(json.dumps(main(), indent=1))
