"""The twin of a run of `ddpm train`: the same model, data and settings in PyTorch and diffusers, for the same wall time.

    python tests/parity/twin.py RUN OUT [--minutes M] [--threads N] [--model DIR]
                                                         from the folder that RUN/args.json's paths start from

RUN is a run directory; its args.json, model and class names are read, its weights are not. M: the minutes that RUN has
trained for, by its timing.csv; of one thread, processor time counts. --model: an earlier OUT, whose weights are begun with.
OUT becomes a model directory (averaged weights) which `ddpm test --model OUT` judges; OUT/twin.json says how many steps
PyTorch made in that time, and how many ours. Stopped, the same line goes on, from at most five minutes before.
"""
import argparse
import csv
import json
import math
import os
import time

import diffusers
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F


def read_json(*path):
    with open(os.path.join(*path)) as file:
        return json.load(file)


def settings_of(run):
    """args.json, and what the twin would silently do otherwise than the run is refused"""
    settings = read_json(run, "args.json")
    usual = dict(weight_decay=0, beta=0, beta_schedule="squaredcos_cap_v2", zero_snr=False,
                 scheduler=None, random_flip=False, resize="squeeze", unconditional=False, overfit=0)
    for name, value in usual.items():
        if settings[name] != value:
            raise SystemExit(f"twin.py: {run}/args.json: {name} is {settings[name]!r}, only {value!r} is known here")
    for name, known in dict(lr_schedule=("constant", "cosine"), prediction_type=("epsilon", "v_prediction")).items():
        if settings[name] not in known:
            raise SystemExit(f"twin.py: {run}/args.json: {name} is {settings[name]!r}, {known} are known here")
    return settings


def trained_for(run):
    """steps and seconds of all sittings: the seconds of timing.csv begin anew with each"""
    with open(os.path.join(run, "timing.csv")) as file:
        rows = [(int(row["step"]), float(row["seconds"])) for row in csv.DictReader(file)]
    ends = [before[1] for before, after in zip(rows, rows[1:]) if after[1] < before[1]] + [rows[-1][1]]
    return rows[-1][0], sum(ends)


def load_data(settings, index):
    """All pictures as bytes (N,3,height,width), and their labels (N,classes)"""
    root, names = settings["data"], {name: i for i, name in enumerate(index["class_names"])}
    listed = list(read_json(root, "train.json").items())
    listed = listed[:len(listed) - settings["held_out"]]
    pictures = torch.empty(len(listed), 3, index["height"], index["width"], dtype=torch.uint8)
    labels = torch.zeros(len(listed), len(names))
    for i, (file, objects) in enumerate(listed):
        picture = Image.open(os.path.join(settings["image_dir"] or root, file)).convert("RGB")
        picture = picture.resize((index["width"], index["height"]), Image.BILINEAR)
        pictures[i] = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(
            index["height"], index["width"], 3).permute(2, 0, 1)
        labels[i, [names[name] for name in objects]] = 1
    return pictures, labels


class Twin(torch.nn.Module):
    def __init__(self, run, index):
        super().__init__()
        self.side = index["pixel_unshuffle"]
        self.unet = diffusers.UNet2DModel.from_config(read_json(run, "latest", "unet", "config.json"))
        size = read_json(run, "latest", "label_encoder", "config.json")
        self.label_encoder = torch.nn.Sequential(torch.nn.Linear(size["num_classes"], size["hidden_dim"]),
                                                 torch.nn.Linear(size["hidden_dim"], size["embedding_dim"]))

    def load(self, directory):
        weights = load_file(os.path.join(directory, "unet", "diffusion_pytorch_model.safetensors"))
        self.unet.load_state_dict(weights)
        self.label_encoder.load_state_dict(load_file(os.path.join(directory, "label_encoder", "model.safetensors")))

    def forward(self, x, t, labels):
        y = self.unet(F.pixel_unshuffle(x, self.side), t, self.label_encoder(labels)).sample
        return F.pixel_shuffle(y, self.side)


def rate(settings, step, share):
    """Learning rate of a step: warm-up, then constant or a half cosine over the share of the time that has gone"""
    lr = settings["lr"] * min(1, step / max(settings["warmup"], 1))
    return lr * (0.5 * (1 + math.cos(math.pi * share)) if settings["lr_schedule"] == "cosine" else 1)


def clock():
    """Of one thread, its processor time: a machine that does other things as well is no handicap."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def train(settings, index, run, seconds, start_from, state_file):
    torch.manual_seed(settings["seed"])
    pictures, labels = load_data(settings, index)
    model = Twin(run, index)
    if start_from:
        model.load(start_from)
    average = diffusers.training_utils.EMAModel(model.parameters(), decay=settings["ema_decay"])
    adam = torch.optim.Adam(model.parameters(), lr=settings["lr"])
    schedule = diffusers.DDPMScheduler(settings["timesteps"], beta_schedule=settings["beta_schedule"])
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    velocity = settings["prediction_type"] == "v_prediction"
    weight = torch.ones_like(snr)
    if settings["snr_gamma"]:
        weight = snr.clamp(max=settings["snr_gamma"]) / (snr + 1 if velocity else snr)
    step, loss_sum, before = 0, 0.0, 0.0
    if os.path.exists(state_file):
        state = torch.load(state_file)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        adam.load_state_dict(state["adam"])
        step, before = state["step"], state["seconds"]
        torch.manual_seed(settings["seed"] + step)  # not the order and noise of the beginning once more
    start, saved = clock(), time.monotonic()
    while True:
        for batch in torch.randperm(len(pictures)).split(settings["batch_size"]):
            spent = before + clock() - start
            share = spent / seconds
            if share >= 1:
                average.copy_to(model.parameters())
                return model, step
            step += 1
            x = pictures[batch] / 127.5 - 1
            kept = (torch.rand(len(batch), 1) >= settings["cond_drop"]).float()
            noise, t = torch.randn_like(x), torch.randint(0, settings["timesteps"], (len(batch),))
            prediction = model(schedule.add_noise(x, noise, t), t, labels[batch] * kept)
            target = schedule.get_velocity(x, noise, t) if velocity else noise
            loss = (weight[t] * (prediction - target).square().mean((1, 2, 3))).mean()
            for group in adam.param_groups:
                group["lr"] = rate(settings, step, share)
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings["max_grad_norm"])
            adam.step()
            average.step(model.parameters())
            loss_sum += loss.item()
            if step % 100 == 0:
                print(f"{100 * share:.1f} %  step {step}  loss {loss_sum / 100:.4f}", flush=True)
                loss_sum = 0.0
            if time.monotonic() - saved > 300:
                torch.save(dict(model=model.state_dict(), average=average.state_dict(), adam=adam.state_dict(),
                                step=step, seconds=spent), state_file + ".tmp")
                os.replace(state_file + ".tmp", state_file)
                saved = time.monotonic()


def save(model, index, out):
    model.unet.save_pretrained(os.path.join(out, "unet"))
    encoder = os.path.join(out, "label_encoder")
    os.makedirs(encoder, exist_ok=True)
    save_file(model.label_encoder.state_dict(), os.path.join(encoder, "model.safetensors"))
    first, second = model.label_encoder
    with open(os.path.join(encoder, "config.json"), "w") as file:
        json.dump(dict(num_classes=first.in_features, hidden_dim=first.out_features,
                       embedding_dim=second.out_features), file)
    with open(os.path.join(out, "model_index.json"), "w") as file:
        json.dump(index, file)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("out")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--model")
    a = parser.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    settings, index = settings_of(a.run), read_json(a.run, "latest", "model_index.json")
    ours, seconds = trained_for(a.run)
    budget = 60 * a.minutes if a.minutes else seconds
    os.makedirs(a.out, exist_ok=True)
    state_file = os.path.join(a.out, "state.pt")
    model, steps = train(settings, index, a.run, budget, a.model, state_file)
    save(model, index, a.out)
    schedule = diffusers.DDPMScheduler.from_pretrained(os.path.join(a.run, "latest"), subfolder="scheduler")
    schedule.save_pretrained(os.path.join(a.out, "scheduler"))
    with open(os.path.join(a.out, "twin.json"), "w") as file:
        json.dump(dict(minutes=budget / 60, steps=steps, run_minutes=seconds / 60, run_steps=ours,
                       threads=torch.get_num_threads(), torch=torch.__version__), file, indent=1)
    if os.path.exists(state_file):
        os.remove(state_file)
    print(f"{a.out}: {steps} steps of PyTorch in {budget / 60:.1f} minutes; the run made {ours} in {seconds / 60:.1f}")


if __name__ == "__main__":
    main()
