"""`make bench-torch`: the same work in PyTorch and in ddpm.c, in turn (A B A B), as ratios. From the root:

    python tests/parity/bench_torch.py [--rounds N] [--only WORK] [--compile] [DDPM]      (default $DDPM, else ./ddpm)

Each round times ddpm bench --json --only WORK, then PyTorch's variants: eager, eager with channels-last memory and,
with --compile, torch.compile. A round's ratio is that of the best variant's median to ours; the table gives the median
ratio of all rounds, with the smallest and the largest. Training steps are forward, backward, clipping and Adam; ours
keeps the moving average as well. Prints the table as markdown.
Contents: the work; PyTorch's side; ours; main.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings

warnings.filterwarnings("ignore")
import torch

import networks

# ---- The work -------------------------------------------------------------------------------------------------------

SMALL = dict(name="small", size=(32, 32), t=[0.0], label=(24, 64), unet=dict(
    sample_size=32, block_out_channels=(64, 128, 128, 256), layers_per_block=2, class_embed_type="identity",
    down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D")))
WORKS = {  # as ddpm bench names them: network, training, batch
    "lab_forward_b1": (networks.LAB, False, 1), "lab_forward_b8": (networks.LAB, False, 8),
    "lab_train_b8": (networks.LAB, True, 8), "small_train_b32": (SMALL, True, 32)}


# ---- PyTorch's side -------------------------------------------------------------------------------------------------

class Work:
    def __init__(self, spec, training, batch, variant):
        self.training = training
        layout = torch.channels_last if variant == "channels-last" else torch.contiguous_format
        self.model = networks.build(spec, coarse=False).to(memory_format=layout)
        self.unet = torch.compile(self.model.unet) if variant == "compiled" else self.model.unet
        height, width = spec["size"]
        self.sample = torch.randn(batch, 3, height, width).to(memory_format=layout)
        self.noise, self.labels = torch.randn_like(self.sample), (torch.rand(batch, 24) < 0.1).float()
        self.t = torch.randint(0, 1000, (batch,))
        self.adam = torch.optim.Adam(self.model.parameters(), lr=1e-4) if training else None

    def __call__(self):
        if not self.training:
            with torch.inference_mode():
                return self.unet(self.sample, self.t, self.model.label_encoder(self.labels)).sample
        self.adam.zero_grad()
        prediction = self.unet(self.sample, self.t, self.model.label_encoder(self.labels)).sample
        torch.nn.functional.mse_loss(prediction, self.noise).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.adam.step()


def torch_alone(name, variant, seconds=4.0):
    """What the process that this script starts for each measurement prints: median milliseconds of a call (at least
    3, for about `seconds`) and peak memory in MiB. On its own, so that no idle thread of it disturbs the other side."""
    work = Work(*WORKS[name], variant)
    work()
    times, start = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - begin))
    print(statistics.median(times), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def time_torch(name, variant):
    command = [sys.executable, "-W", "ignore", __file__, "--torch-alone", name, variant]
    return [float(x) for x in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


# ---- Ours -----------------------------------------------------------------------------------------------------------

def time_ours(ddpm, name):
    out = subprocess.run([ddpm, "bench", "--json", "--only", name, "--threads", str(torch.get_num_threads())],
                         capture_output=True, text=True, check=True).stdout
    return json.loads(out)["work"][name]


# ---- main -----------------------------------------------------------------------------------------------------------

def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ddpm", nargs="?", default=os.environ.get("DDPM", "./ddpm"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=list(WORKS))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--torch-alone", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.torch_alone:
        return torch_alone(*arguments.torch_alone)
    variants = ["eager", "channels-last"] + ["compiled"] * arguments.compile
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, best of: {', '.join(variants)}; "
          f"{arguments.rounds} rounds\n")
    print("| work | ours, ms | PyTorch, ms | its best variant | ratio (smallest to largest) | ours, MiB | PyTorch, MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in [arguments.only] if arguments.only else WORKS:
        ours, theirs = [], []
        for _ in range(arguments.rounds):
            ours.append(time_ours(arguments.ddpm, name))
            theirs.append(min((time_torch(name, v) + [v] for v in variants)))
        ratio = sorted(b[0] / a["ms"] for a, b in zip(ours, theirs))
        median = lambda values: statistics.median(list(values))
        print(f"| {name} | {median(a['ms'] for a in ours):.0f} | {median(b[0] for b in theirs):.0f} | {theirs[0][2]} "
              f"| {median(ratio):.2f} ({ratio[0]:.2f} to {ratio[-1]:.2f}) | {ours[0]['peak_rss_mib']:.0f} "
              f"| {theirs[0][1]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
