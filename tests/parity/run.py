"""`make parity`: ddpm.c against PyTorch and diffusers themselves. Run from the root of the repository:

    python tests/parity/run.py [--only vectors|tiny|saved|schedulers|pictures|distance|example|run|lab] [DDPM]

DDPM: default $DDPM, else ./ddpm. `distance` is no check, and runs only where it is named: it draws docs/rng_torch.png.
Prints a line for each check, with the measured figure and its bound; exit 1 if one failed.
Contents: reporting; vectors made anew; networks through the command line; what ddpm saved, in diffusers; schedulers;
TensorBoard and the report in a browser.
"""
import argparse
import csv
import glob
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import warnings

warnings.filterwarnings("ignore")
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image, ImageChops
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import make_scheduler_vectors as schedulers
import networks

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
UNIT = 2.0 ** -24  # largest relative error of one rounded float32 operation
failures = 0


# ---- Reporting ------------------------------------------------------------------------------------------------------

def report(name, figure, bound, note=""):
    """One line; a figure that is NaN or above its bound is a failure."""
    global failures
    good = figure <= bound
    failures += not good
    print(f"{'ok  ' if good else 'FAIL'}  {name:<58} {figure:9.2e}   bound {bound:8.2e}  {note}".rstrip(), flush=True)


def run(*command):
    """Runs the program; a failure is reported and ends this script."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        print("FAIL ", *command)
        sys.exit(done.stdout + done.stderr)
    return done.stdout


# ---- Vectors made anew ----------------------------------------------------------------------------------------------

def tensor_difference(name, a, b):
    """How far two versions of a stored tensor are apart, relative to its largest value; 0 if the same. What only
    measures torch's own rounding (.float32) may be anything; a bound may move by its last digits."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if torch.equal(torch.nan_to_num(a.double()), torch.nan_to_num(b.double())) or "float32" in name:
        return 0.0
    a, b = torch.nan_to_num(a.double()), torch.nan_to_num(b.double())
    scale = max(float(b.abs().max()), 1e-6)  # below it is a gradient that is zero but for rounding in float64
    return float((a - b).abs().max()) / scale


def without_version(metadata):
    lines = lambda text: [line for line in text.split("\n") if "_diffusers_version" not in line]
    return {k: lines(v) for k, v in (metadata or {}).items()}


def file_difference(old, new):
    if not os.path.exists(new):
        return math.inf
    if old.endswith(".safetensors"):
        with safe_open(old, "pt") as a, safe_open(new, "pt") as b:
            if set(a.keys()) != set(b.keys()) or without_version(a.metadata()) != without_version(b.metadata()):
                return math.inf
            return max(tensor_difference(k, a.get_tensor(k), b.get_tensor(k)) for k in a.keys())
    if open(old, "rb").read() == open(new, "rb").read():
        return 0.0
    if old.endswith(".json"):
        drop = lambda path: {k: v for k, v in json.load(open(path)).items() if k != "_diffusers_version"}
        return 0.0 if drop(old) == drop(new) else math.inf
    with Image.open(old) as a, Image.open(new) as b:  # another libjpeg or zlib: the pixels may move by 2 of 255
        difference = max(high for _, high in ImageChops.difference(a.convert("RGB"), b.convert("RGB")).getextrema())
        return 0.0 if difference <= 2 else math.inf


def check_vectors():
    """Every make_*.py writes tests/vectors/ below the directory it runs in. Values in float64 or exact ones come out
    the same; gradients and such, stored in float32, may be off by one rounding: 4 u."""
    with tempfile.TemporaryDirectory() as directory:
        os.makedirs(os.path.join(directory, "tests", "vectors"))
        for script in sorted(glob.glob(os.path.join(HERE, "make_*.py"))):
            extra = [os.path.join("tests", "vectors")] if script.endswith("make_vectors.py") else []
            subprocess.run([sys.executable, "-W", "ignore", script, *extra], cwd=directory, check=True,
                           capture_output=True)
        committed = os.path.join(ROOT, "tests", "vectors")
        for entry in sorted(os.listdir(committed)):  # a file, or a folder of small ones
            below = glob.glob(os.path.join(committed, entry, "**", "*"), recursive=True)
            files = [f for f in [os.path.join(committed, entry)] + below if os.path.isfile(f)]
            anew = lambda f: os.path.join(directory, "tests", "vectors", os.path.relpath(f, committed))
            worst, name = max((file_difference(f, anew(f)), f) for f in files)
            label = f"{entry} ({len(files)} files)" if len(files) > 1 else entry
            report(f"vectors made anew: {label}", worst, 4 * UNIT, "" if worst <= 4 * UNIT else name)


# ---- Networks through the command line ------------------------------------------------------------------------------

def predict(ddpm, model_directory, sample, t, label_name=None, labels=None, target=None, backend="reference"):
    with tempfile.TemporaryDirectory() as directory:
        source, result = os.path.join(directory, "in.safetensors"), os.path.join(directory, "out.safetensors")
        tensors = {"sample": sample, "timestep": t.float()}
        if labels is not None:
            tensors[label_name] = labels.float()
        if target is not None:
            tensors["target"] = target
        save_file({k: v.contiguous() for k, v in tensors.items()}, source)
        run(ddpm, "predict", "--backend", backend, "--model", model_directory, "--in", source, "--out", result,
            *(["--grad"] if target is not None else []))
        return load_file(result)


def gradient_distance(out, reference, floor):
    """The worst |g - r| / max(|r|, floor |r_all| / sqrt(tensors)) and its tensor; infinite if a gradient is missing or
    extra."""
    if {k for k in out if k.startswith("grad.")} != {"grad." + k for k in reference}:
        return math.inf, "names differ"
    total = math.sqrt(sum(float(r.double().pow(2).sum()) for r in reference.values()))
    least = floor * total / math.sqrt(len(reference))
    return max((float((out["grad." + k].double() - r.double()).norm()) / max(float(r.double().norm()), least), k)
               for k, r in reference.items())


def check_network(ddpm, spec, prediction_bound, gradient_bound, floor, backends=("reference",)):
    """Bounds None: 8 times the distance of torch's own float32, plus 16 u (prediction) or 256 u (gradients); see
    tests/test_vectors.c. floor: see gradient_distance."""
    model = networks.build(spec, coarse=False)
    model.unet.register_to_config(dropout=0.0)  # with --grad ddpm trains, and what dropout drops is chance
    sample, t, labels, target = networks.inputs(spec, model)
    prediction32, _, grads32 = networks.evaluate(model, sample, t, labels, target)
    with tempfile.TemporaryDirectory() as directory:
        networks.save_directory(spec, model, directory)
        outs = {b: predict(ddpm, directory, sample, t, networks.class_labels(spec), labels, target, b) for b in backends}
    prediction, loss, grads = networks.truth(model, sample, t, labels, target)
    distance = lambda p: float((p.double() - prediction).abs().max()) / float(prediction.abs().max())
    theirs, theirs_grad = distance(prediction32), gradient_distance({"grad." + k: g for k, g in grads32.items()}, grads,
                                                                    floor)[0]
    bound = prediction_bound or 8 * theirs + 16 * UNIT
    for backend, out in outs.items():
        name = spec["name"] if backend == "reference" else f"{spec['name']}, {backend}"
        worst_grad, worst = gradient_distance(out, grads, floor)
        report(f"{name}: prediction", distance(out["prediction"]), bound, f"(torch in float32: {theirs:.1e})")
        report(f"{name}: loss", abs(float(out["loss"]) - float(loss)) / float(loss), 2 * bound)
        report(f"{name}: {len(grads)} gradients", worst_grad, gradient_bound or 8 * theirs_grad + 256 * UNIT,
               f"(torch in float32: {theirs_grad:.1e}; worst: {worst})")


# ---- What ddpm saved, in diffusers ----------------------------------------------------------------------------------

def check_saved(ddpm):
    """Renders a few scenes, trains a tiny model on them for two epochs, and loads what was saved with diffusers. Both
    then compute in float32: 128 u of the largest value apart at most (each is some 16 u from the truth)."""
    with tempfile.TemporaryDirectory() as directory:
        data, runs = os.path.join(directory, "data"), os.path.join(directory, "run")
        run(ddpm, "render", "--out", data, "--scenes", 4, "--size", "64x48", "--seed", 1)
        run(ddpm, "train", data, "--out", runs, "--model", "tiny", "--epochs", 2, "--batch-size", 5,
            "--backend", "reference", "--timesteps", 500, "--beta-schedule", "linear")
        for link in ("latest", "best"):
            saved = os.path.join(runs, link)
            unet = UNet2DModel.from_pretrained(saved, subfolder="unet").eval()
            scheduler = DDPMScheduler.from_pretrained(saved, subfolder="scheduler")
            state = load_file(os.path.join(saved, "label_encoder", "model.safetensors"))
            shapes = [state[f"{i}.weight"].shape for i in range(2)]
            encoder = torch.nn.Sequential(*(torch.nn.Linear(inner, outer) for outer, inner in shapes))
            encoder.load_state_dict(state)
            g = networks.generator("saved")
            sample, t = torch.randn(3, 3, 32, 32, generator=g), torch.tensor([0.0, 250.0, 499.0])
            labels = (torch.rand(3, 24, generator=g) < 0.1).float()
            with torch.no_grad():
                expected = unet(sample, t, encoder(labels)).sample
            out = predict(ddpm, saved, sample, t, "labels", labels)["prediction"]
            error = float((out - expected).abs().max() / expected.abs().max())
            report(f"UNet2DModel.from_pretrained({link}): prediction", error, 128 * UNIT)
            reference = DDPMScheduler(num_train_timesteps=500, beta_schedule="linear")
            same = torch.equal(scheduler.alphas_cumprod, reference.alphas_cumprod) and all(
                scheduler.config[k] == reference.config[k] for k in reference.config if not k.startswith("_"))
            report(f"DDPMScheduler.from_pretrained({link}): alpha_bar and config", 0.0 if same else math.inf, 0.0)


# ---- Schedulers -----------------------------------------------------------------------------------------------------

def build_test(name):
    """A test program of the C side, made by the Makefile: its path."""
    program = os.path.join(os.environ.get("BUILD", "build"), os.environ.get("COMPILER", "cc"), "tests", name)
    made = subprocess.run([os.environ.get("MAKE", "make"), program], capture_output=True, text=True)
    report(f"{name} is built", made.returncode, 0, made.stderr[-200:])
    return program


def check_schedulers(ddpm):
    """tests/test_schedules on tables of many T, on every number of steps, and on trajectories of all fields crossed;
    and a scheduler_config.json of each class, read and written again by `ddpm train --scheduler`, in diffusers."""
    program = build_test("test_schedules")
    with tempfile.TemporaryDirectory() as directory:
        cases = os.path.join(directory, "exhaustive.safetensors")
        subprocess.run([sys.executable, "-W", "ignore", os.path.join(HERE, "make_scheduler_vectors.py"), "--exhaustive",
                        cases], check=True)
        done = subprocess.run([program, cases], capture_output=True, text=True)
        print("".join(f"      {line.strip()}\n" for line in done.stdout.splitlines() if line.startswith("    ")), end="")
        report("schedulers: tables, timesteps, trajectories", done.returncode, 0, done.stderr[-400:] * (done.returncode > 0))
        data, count = os.path.join(directory, "data"), 0
        run(ddpm, "render", "--out", data, "--scenes", 1, "--size", "16x16", "--seed", 1)
        for name, (kind, _, _, fields) in schedulers.PATHS.items():
            reference, saved = schedulers.CLASSES[kind](**fields), os.path.join(directory, name)
            reference.save_pretrained(saved)
            run(ddpm, "train", data, "--out", saved + "_run", "--model", "tiny", "--resolution", 8, "--epochs", 1,
                "--scheduler", os.path.join(saved, "scheduler_config.json"))
            read = schedulers.CLASSES[kind].from_pretrained(saved + "_run/latest", subfolder="scheduler")
            count += all(read.config[k] == v for k, v in reference.config.items() if not k.startswith("_"))
        report(f"schedulers: {count} of {len(schedulers.PATHS)} configs come back whole", len(schedulers.PATHS) - count, 0)


# ---- TensorBoard, the report in a browser ----------------------------------------------------------------------------

def check_run(ddpm):
    """Five steps of training: TensorBoard reads from --log-dir what metrics.csv holds; the report works in Chromium."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    with tempfile.TemporaryDirectory() as directory:
        data, out, log, page = (os.path.join(directory, name) for name in ("data", "run", "log", "report.html"))
        run(ddpm, "render", "--out", data, "--scenes", "4", "--size", "32x32")
        run(ddpm, "train", data, "--out", out, "--model", "tiny", "--batch-size", "4", "--max-steps", "5", "--log-dir", log)
        with open(os.path.join(out, "metrics.csv")) as file:
            rows = list(csv.DictReader(file))
        events = EventAccumulator(log).Reload()
        for tag, column in (("loss/train", "loss"), ("lr", "lr"), ("grad_norm", "grad_norm")):
            points = events.Scalars(tag)
            same = [p.step for p in points] == [int(row["step"]) for row in rows] and len(rows) == 5
            error = max(abs(p.value / float(row[column]) - 1) for p, row in zip(points, rows)) if same else math.inf
            report(f"TensorBoard: {tag}", error, UNIT)
        run(ddpm, "test", "--model", out, "--out", os.path.join(out, "test"), "--sampler", "ddim", "--steps", "10")
        run(ddpm, "report", out, "--out", page)
        if not (os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")):
            print("report in a browser: skipped, no Chromium (CHROMIUM=/path/to/it)")
            return
        check = subprocess.run([sys.executable, os.path.join(os.path.dirname(__file__), "check_report.py"), page])
        report("report in headless Chromium", 0.0 if check.returncode == 0 else math.inf, 0.0)


# ---- Pictures -------------------------------------------------------------------------------------------------------

def check_pictures(ddpm):
    """`ddpm sample --rng torch --seed 529` and the same loop in diffusers, with a model trained for a moment: no pixel
    more than 1 of 255 apart on the reference rows; on the fast backend the distance is printed, and is 1 as well."""
    from diffusers import DDIMScheduler
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        data, runs, png = (os.path.join(directory, name) for name in ("data", "run", "a.png"))
        run(ddpm, "render", "--out", data, "--scenes", 4, "--size", "64x48", "--seed", 1)
        run(ddpm, "train", data, "--out", runs, "--model", "tiny", "--epochs", 2, "--batch-size", 5, "--resolution", 16)
        saved = os.path.join(runs, "latest")
        unet = UNet2DModel.from_pretrained(saved, subfolder="unet").eval()
        state = load_file(os.path.join(saved, "label_encoder", "model.safetensors"))
        names = json.load(open(os.path.join(saved, "model_index.json")))["class_names"]
        labels = torch.tensor([[float(name in ("red sphere", "cyan cube")) for name in names]])
        for i in range(2):
            labels = torch.nn.functional.linear(labels, state[f"{i}.weight"], state[f"{i}.bias"])
        for cls, steps, backends in ((DDIMScheduler, 5, ("cpu",)), (DDIMScheduler, 50, ("reference", "cpu")),
                                     (DDPMScheduler, 1000, ("reference", "cpu"))):
            scheduler = cls.from_pretrained(saved, subfolder="scheduler")
            scheduler.set_timesteps(steps)
            generator = torch.Generator().manual_seed(529)
            x = torch.randn(1, 3, 16, 16, generator=generator)
            for t in scheduler.timesteps:
                x = scheduler.step(unet(x, t, labels).sample, t, x, generator=generator).prev_sample
            expected = ((x[0] / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0)
            for backend in backends:
                name = "ddim" if cls is DDIMScheduler else "ddpm"
                run(ddpm, "sample", "red sphere, cyan cube", "--model", saved, "--rng", "torch", "--seed", 529,
                    "--sampler", name, "--steps", steps, "--backend", backend, "--out-dir", directory + "/out")
                with Image.open(directory + "/out/0.png") as picture:
                    ours = torch.tensor(list(picture.convert("RGB").getdata())).reshape(16, 16, 3)
                os.remove(directory + "/out/0.png")
                apart = (ours - expected).abs()
                report(f"--rng torch: {name}, {steps} steps on {backend}: of 255 apart", float(apart.max()), 1,
                       f"{float((apart > 0).double().mean()):.2%} of the values differ")


def draw_distance():
    """docs/rng_torch.png: the largest distance between x of ddpm_sample and of diffusers' loop after each step, in the
    same random numbers, on the reference rows and on the fast backend."""
    program = build_test("test_vectors")
    with tempfile.TemporaryDirectory() as directory:
        paths = os.path.join(directory, "paths.safetensors")
        subprocess.run([sys.executable, "-W", "ignore", os.path.join(HERE, "make_torch_vectors.py"), "--paths", paths],
                       check=True)
        print(run(program, "--distance", paths, os.path.join(ROOT, "docs", "rng_torch.png")), end="")


def check_example(ddpm):
    """examples/from_diffusers.py, run as its reader would, on a model of pixel_unshuffle 2 that was exported with a
    sampler, steps and guidance of its own: the pictures of `ddpm sample --rng torch` that names none of them."""
    with tempfile.TemporaryDirectory() as directory:
        data, runs, mini = (os.path.join(directory, name) for name in ("data", "run", "mini"))
        run(ddpm, "render", "--out", data, "--scenes", 4, "--size", "64x48", "--seed", 1)
        run(ddpm, "train", data, "--out", runs, "--model", "tiny", "--pixel-unshuffle", 2, "--resolution", 32,
            "--cond-drop", 0.1, "--epochs", 2, "--batch-size", 5)
        for sampler, steps, guidance in (("ddim", 10, 3), ("ddpm", 1000, 1), ("dpmsolver++", 10, 2)):
            run(ddpm, "export", runs, "--out", mini, "--dtype", "f16", "--sampler", sampler, "--steps", steps,
                "--guidance", guidance, "--lambda-min-clipped", -5.1)
            theirs, ours = os.path.join(directory, "theirs.png"), os.path.join(directory, "ours.png")
            run(sys.executable, "-W", "ignore", os.path.join(ROOT, "examples", "from_diffusers.py"),
                "red sphere, cyan cube", "--model", mini, "--n", 2, "--seed", 7, "--out", theirs)
            run(ddpm, "sample", "red sphere, cyan cube", "--model", mini, "--n", 2, "--seed", 7, "--rng", "torch",
                "--out", ours)
            with Image.open(theirs) as a, Image.open(ours) as b:
                same = a.size == b.size
                apart = max(h for _, h in ImageChops.difference(a.convert("RGB"), b.convert("RGB")).getextrema())
            report(f"examples/from_diffusers.py: {sampler}, {steps} steps, of 255 apart", apart if same else math.inf, 1)


# ---- main -----------------------------------------------------------------------------------------------------------

def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ddpm", nargs="?", default=os.environ.get("DDPM", "./ddpm"))
    parser.add_argument("--only", choices=["vectors", "tiny", "saved", "schedulers", "pictures", "distance", "example", "run",
                                           "lab"])
    arguments = parser.parse_args()
    if arguments.only in (None, "vectors"):
        check_vectors()
    if arguments.only in (None, "tiny"):
        for spec in networks.TINY:
            check_network(arguments.ddpm, spec, None, None, 1e-2)
    if arguments.only in (None, "saved"):
        check_saved(arguments.ddpm)
    if arguments.only in (None, "schedulers"):
        check_schedulers(arguments.ddpm)
    if arguments.only in (None, "run"):
        check_run(arguments.ddpm)
    if arguments.only in (None, "pictures"):
        check_pictures(arguments.ddpm)
    if arguments.only == "distance":
        draw_distance()
    if arguments.only in (None, "example"):
        check_example(arguments.ddpm)
    if arguments.only in (None, "lab"):
        check_network(arguments.ddpm, networks.LAB, 1e-4, 1e-3, 1e-4, backends=("reference", "cpu"))
    print(f"{failures} failed" if failures else "all agree")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
