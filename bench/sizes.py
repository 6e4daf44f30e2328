"""Prints what each method weighs at its official size, and what a training step of the two heaviest takes.

python bench/sizes.py [--no-steps]

Checkpoints are those of a run folder without the frozen backbone, which lies beside them in its own file. A step is of
random weights and one batch, in float32, in its own process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

HEAVY = {"draem": 2, "realnet": 1}
"""Images a step, so that it fits into 16 GB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-steps", action="store_true", help="leave out the steps, which take a minute and 10 GB")
    parser.add_argument("--step", metavar="METHOD", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(options.step)))
        return
    weigh()
    if not options.no_steps:
        print("\n| training step at official size | batch | peak memory, GiB | seconds |")
        print("|---|---|---|---|")
        for method, batch in HEAVY.items():
            command = [sys.executable, __file__, "--step", method]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            gigabytes, seconds = json.loads(done.stdout.splitlines()[-1])
            print(f"| {method} | {batch} | {gigabytes:.1f} | {seconds:.0f} |", flush=True)


def weigh() -> None:
    """One line a method: learnt parameters, checkpoint, frozen backbone; nothing is allocated."""
    import torch

    from threecad.methods import METHODS
    from threecad.nets.pyramid import Pyramid

    print("| method | parameters learnt, millions | checkpoint, GB | frozen backbone, GB |")
    print("|---|---|---|---|")
    for name, method in METHODS.items():
        with torch.device("meta"):
            detector = method(method.Config(weights="random"))
        frozen = {
            id(tensor)
            for part in detector.modules()
            if isinstance(part, Pyramid) and not any(p.requires_grad for p in part.parameters())
            for tensor in part.state_dict(keep_vars=True).values()
        }
        tensors = detector.state_dict(keep_vars=True).values()
        own, backbone = (
            sum(t.numel() * t.element_size() for t in tensors if (id(t) in frozen) is inside) / 1e9
            for inside in (False, True)
        )
        learnt = sum(p.numel() for p in detector.parameters() if p.requires_grad) / 1e6
        print(f"| {name} | {learnt:.1f} | {own:.2f} | {backbone:.2f} |", flush=True)


def step(name: str) -> tuple[float, float]:
    """Peak memory in GiB and seconds of one step of a method's last phase."""
    import torch

    from threecad.methods import METHODS
    from threecad.records import Batch
    from threecad.synthesis.textures import ProceduralTextures

    method = METHODS[name]
    detector = method(method.Config(weights="random")).to(memory_format=torch.channels_last).eval()
    *_, phase = detector.phases(ProceduralTextures())
    for part in phase.trains:
        part.train()
    image = torch.rand(HEAVY[name], 3, *detector.config.image_size)
    mask = torch.zeros_like(image[:, :1])
    mask[:, :, 50:90, 60:120] = 1
    start = time.perf_counter()
    torch.stack(list(phase.losses(Batch(image, image, mask)).values())).sum().backward()
    for optimizer in phase.optimizers:
        optimizer.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, time.perf_counter() - start


if __name__ == "__main__":
    main()
