"""`make bench-torch`: the same work in PyTorch and in ddpm.c, in turn (A B A B), as ratios. From the root:

    python tests/parity/bench_torch.py [--rounds N] [--only WORK] [--no-compile] [DDPM]     (default $DDPM, else ./ddpm)

Each round times ddpm bench --json --only WORK, then PyTorch's variants: eager and torch.compile, each with ordinary and
with channels-last memory. The first round runs all of them, later ones those within 15 % of the best. A round's ratio
is that of the fastest variant's median to ours; the table gives the median of all rounds, the smallest and the largest.
Training steps are forward, backward, clipping and Adam, without a moving average on either side. Memory is the peak of
a process that does nothing else, PyTorch's that of its most frugal variant. "At most" is the ratio of a program that
does 3x3 convolutions of stride 1 by F(4x4,3x3), with a quarter of the multiply-adds, all products at this machine's
peak, and everything else in no time. Prints the table as markdown; a run of all work also puts it between the markers
in docs/PERFORMANCE.md.
Contents: the work; PyTorch's side; ours; the table; main.
"""
import argparse
import json
import os
import platform
import resource
import shutil
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
    "lab_train_b4": (networks.LAB, True, 4), "lab_train_b8": (networks.LAB, True, 8),
    "small_forward_b32": (SMALL, False, 32), "small_train_b32": (SMALL, True, 32)}


# ---- PyTorch's side -------------------------------------------------------------------------------------------------

class Work:
    def __init__(self, spec, training, batch, variant):
        self.training = training
        layout = torch.channels_last if "channels-last" in variant else torch.contiguous_format
        self.model = networks.build(spec, coarse=False).to(memory_format=layout)
        self.unet = torch.compile(self.model.unet) if "compiled" in variant else self.model.unet
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
    """milliseconds, MiB, variant; None (with the reason on stderr) where this PyTorch cannot run the variant"""
    command = [sys.executable, "-W", "ignore", __file__, "--torch-alone", name, variant]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"{name}, {variant}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return [float(x) for x in done.stdout.split()[-2:]] + [variant]


# ---- Ours -----------------------------------------------------------------------------------------------------------

def time_ours(ddpm, name):
    out = subprocess.run([ddpm, "bench", "--json", "--only", name, "--threads", str(torch.get_num_threads())],
                         capture_output=True, text=True, check=True).stdout
    measured = json.loads(out)
    return dict(measured["work"][name], peak=measured["peak_gflops"], isa=measured["isa"])


# ---- The table ------------------------------------------------------------------------------------------------------

def median(values):
    return statistics.median(list(values))


def products_left(name):
    """Of a pass's multiply-adds those that are left when 3x3 convolutions of stride 1 need a quarter of theirs."""
    work, done = Work(*WORKS[name], "eager"), [0.0, 0.0]

    def count(module, _, out):
        adds = out.numel() / module.weight.shape[0] * module.weight.numel()
        quarter = getattr(module, "kernel_size", 0) == (3, 3) and module.stride == (1, 1)
        done[0] += adds
        done[1] += adds / 4 if quarter else adds

    for module in work.model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    work.training = False
    work()
    return done[1] / done[0]


def compare(ddpm, name, rounds, variants):
    """A line of the table for a given peak, and the highest peak seen: what else runs can only lower it."""
    ours, theirs, frugal, left = [], [], [], products_left(name)
    for _ in range(rounds):
        ours.append(time_ours(ddpm, name))
        times = [t for t in (time_torch(name, v) for v in variants) if t]
        theirs.append(min(times))
        frugal += [t[1] for t in times]
        variants = [t[2] for t in times if t[0] <= 1.15 * min(times)[0]]
    ratio = sorted(b[0] / a["ms"] for a, b in zip(ours, theirs))
    own, memory = max(a["peak_rss_mib"] for a in ours), min(frugal)
    speed, work = median(a["gflops"] for a in ours), ours[0]["gflops"] * ours[0]["ms"]
    torch_ms = median(b[0] for b in theirs)

    def line(peak):
        return (f"| {name} | {median(a['ms'] for a in ours):.0f} | {torch_ms:.0f} | {theirs[-1][2]} "
                f"| {median(ratio):.2f} ({ratio[0]:.2f} to {ratio[-1]:.2f}) | {torch_ms * peak / (work * left):.2f} "
                f"| {speed / peak:.2f} | {own:.0f} | {memory:.0f} | {own / memory:.2f} |")
    return line, max(a["peak"] for a in ours)


def processor():
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


DOCS, BEGIN, END = "docs/PERFORMANCE.md", "<!-- bench-torch: begin -->", "<!-- bench-torch: end -->"


def write_docs(lines):
    text = open(DOCS).read()
    before, rest = text.split(BEGIN)
    with open(DOCS + ".new", "w") as out:
        out.write(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1])
    os.replace(DOCS + ".new", DOCS)


# ---- main -----------------------------------------------------------------------------------------------------------

def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ddpm", nargs="?", default=os.environ.get("DDPM", "./ddpm"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=list(WORKS))
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--torch-alone", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.torch_alone:
        return torch_alone(*arguments.torch_alone)
    compiles = not arguments.no_compile and any(shutil.which(c) for c in ("c++", "g++", "clang++"))
    variants = ["eager", "eager channels-last"] + ["compiled", "compiled channels-last"] * compiles
    lines = [f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {processor()}; best of: "
             f"{', '.join(variants)}{'' if compiles else ' (torch.compile: not tried)'}; {arguments.rounds} rounds; "
             f"load before them {os.getloadavg()[0]:.1f}", "",
             "| work | ours, ms | PyTorch, ms | its best variant | ratio (smallest to largest) | at most | ours, of "
             "the multiply-add peak | ours, MiB | PyTorch, MiB | ratio |",
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    print("\n".join(lines), flush=True)
    rows, peak = [], 0
    for name in [arguments.only] if arguments.only else WORKS:
        line, seen = compare(arguments.ddpm, name, arguments.rounds, variants)
        rows.append(line)
        peak = max(peak, seen)
        print(line(peak), flush=True)
    if not arguments.only:
        write_docs(lines + [line(peak) for line in rows])


if __name__ == "__main__":
    main()
