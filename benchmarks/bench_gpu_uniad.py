"""UniAD's first training steps on a GPU in several ways: the losses side by side, and steps per second.

    python benchmarks/bench_gpu_uniad.py --dataset mvtec_256 --minutes 1 --out losses.csv

The network has the paper's width, the features are EfficientNet-Lite0's at 224 pixels, a batch has 64 images. Each way starts
from the same weights and sees the same batches, and its jitter and dropout have the same seed; compiled code draws other random
numbers unless it is told to draw torch's, which it is here. Faster arithmetic is usable if its losses follow those of float32.
`--device cpu` takes few steps of a small batch, to try the script.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch._inductor.config as inductor
from torch import Tensor

from adcore.data import load_dataset
from adcore.experiments.provenance import commit, machine
from adcore.files import write_text
from adcore.models import UniAD
from adcore.papers.uniad2022.losses import mse
from adcore.papers.uniad2022.uniad import UniADNetwork, jitter_features
from adcore.training import seeded

STEPS, WARM = 200, 20  # steps whose losses are kept, and the first of them whose time does not count


@dataclass(frozen=True)
class Way:
    """How the steps are computed: precision of float32 products, bfloat16 autocast, and torch.compile's mode, '' for none."""

    name: str
    matmul: str = "highest"
    amp: bool = False
    compiled: str = ""


WAYS = (Way("eager float32"), Way("TF32", "high"), Way("bfloat16", "high", True),
        Way("compiled TF32", "high", False, "default"), Way("compiled bfloat16", "high", True, "default"),
        Way("compiled bfloat16, CUDA graphs", "high", True, "reduce-overhead"))


def stepper(way: Way, detector: UniAD, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function that trains on one batch (B, C, h, w) and returns its loss, which stays on the device."""
    c = detector.config
    with seeded(0):
        network = UniADNetwork(sum(detector.extractor.channels), detector.grid, c).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), c.lr, weight_decay=c.weight_decay, fused=True)

    def loss_of(tokens: Tensor) -> Tensor:
        return mse(tokens, network(jitter_features(tokens, c.jitter_scale)))
    forward = torch.compile(loss_of, mode=way.compiled) if way.compiled else loss_of

    def step(features: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=way.amp):
            loss = forward(features.flatten(2).transpose(1, 2))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), c.clip_norm)
        optimizer.step()
        return loss.detach().clone()  # CUDA graphs write the next loss to the same place
    return step


def losses_of(way: Way, detector: UniAD, features: Tensor, batch: int, steps: int, warm: int) -> tuple[list[float], float]:
    """The losses of the first steps, and steps per second after the first `warm`."""
    before, device = torch.get_float32_matmul_precision(), features.device
    torch.set_float32_matmul_precision(way.matmul)
    try:
        step, order = stepper(way, detector, device), torch.Generator().manual_seed(0)
        losses: list[Tensor] = []
        start = time.perf_counter()
        torch.manual_seed(0)
        for number in range(steps):
            if number == warm:
                _ = float(losses[-1]) if losses else 0.0  # waits for the device
                start = time.perf_counter()
            chosen = torch.randperm(len(features), generator=order)[:batch]
            losses.append(step(features[chosen.to(device)]))
        values = torch.stack(losses).float().tolist()
        return values, (steps - warm) / (time.perf_counter() - start)
    finally:
        torch.set_float32_matmul_precision(before)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", default="mini", help="its training images give the features (default: mini)")
    parser.add_argument("--minutes", type=float, default=3, help="no way is begun after so many minutes (default 3)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("gpu_losses.csv"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("these ways to train are for a GPU, and torch finds none here: run this where torch.cuda.is_available()",
              file=sys.stderr)
        return 2
    end, device = time.monotonic() + 60 * arguments.minutes, torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    inductor.fallback_random = True
    images, batch, steps, warm = (512, 64, STEPS, WARM) if on_gpu else (8, 4, 3, 1)
    samples = load_dataset(arguments.dataset).train
    detector = UniAD(UniAD.Config.make(UniAD.open), device=device, seed=0)
    features = detector.extract(samples[::max(1, len(samples) // images)][:images])[0].to(device)
    text, failed = io.StringIO(), False
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("way", "step", "loss", "steps_per_second", "dataset", "machine", "torch", "commit"))
    for way in WAYS if on_gpu else WAYS[:3]:
        if time.monotonic() > end:
            print(f"the time is up before '{way.name}'")
            break
        try:
            losses, speed = losses_of(way, detector, features, batch, steps, warm)
        except Exception as problem:  # of a compiler or a driver: the other ways are measured all the same
            print(f"{way.name}: failed ({type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''})")
            failed = True
            continue
        print(f"{way.name}: {speed:.1f} steps per second, loss {losses[0]:.4f} to {losses[-1]:.4f}", flush=True)
        origin = (f"{speed:.2f}", arguments.dataset, machine(device), torch.__version__, commit())
        writer.writerows((way.name, number, f"{loss:.6f}", *origin) for number, loss in enumerate(losses, 1))
        write_text(arguments.out, text.getvalue())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
