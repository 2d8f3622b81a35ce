"""Draws with a model directory of ddpm.c, data/mini unless another is named, in diffusers and torch alone:

    python examples/from_diffusers.py ["red sphere, cyan cube"] [--model DIR] [--n 8] [--steps N] [--seed 529] [--out grid.png]

A directory holds unet/ (UNet2DModel, the averaged weights), scheduler/ (its class and fields), label_encoder/ (two linear
layers without anything between) and model_index.json (class names, pixel_unshuffle, guidance, steps). The pictures are
those of `ddpm sample --rng torch --guide-scale 0` with the same seed, but for rounding: the evaluator does not guide here.
"""
import argparse
import json
import math
import os

import diffusers
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F


def load(directory):
    """unet, scheduler, the encoder's two (weight, bias), model_index.json"""
    unet = diffusers.UNet2DModel.from_pretrained(directory, subfolder="unet", torch_dtype=torch.float32).eval()
    with open(os.path.join(directory, "scheduler", "scheduler_config.json")) as file:
        scheduler = getattr(diffusers, json.load(file)["_class_name"]).from_pretrained(directory, subfolder="scheduler")
    state = load_file(os.path.join(directory, "label_encoder", "model.safetensors"))
    encoder = [(state[f"{i}.weight"].float(), state[f"{i}.bias"].float()) for i in range(2)]
    with open(os.path.join(directory, "model_index.json")) as file:
        return unet, scheduler, encoder, json.load(file)


def embedding(encoder, index, names):
    """The labels as a multi-hot vector, through the encoder; no names: "no label", what guidance starts from."""
    unknown = set(names) - set(index["class_names"])
    if unknown:
        raise SystemExit(f"unknown label {sorted(unknown)}; there are {', '.join(index['class_names'])}")
    x = torch.tensor([[float(name in names) for name in index["class_names"]]])
    if not names and index["none_class"] is not None:
        x[0, index["none_class"]] = 1
    for weight, bias in encoder:
        x = F.linear(x, weight, bias)
    return x


@torch.no_grad()
def draw(model, names, seed, steps=None):
    """One picture by what load() returned: (3, height, width), in [0,1]"""
    unet, scheduler, encoder, index = model
    side, guidance = index.get("pixel_unshuffle", 1), index.get("guidance_scale", 1)
    usual = {"DDPMScheduler": scheduler.config.num_train_timesteps, "DDIMScheduler": 50}.get(type(scheduler).__name__, 20)
    scheduler.set_timesteps(steps or index.get("num_inference_steps") or usual)
    labels, none = embedding(encoder, index, names), embedding(encoder, index, [])
    generator = torch.Generator().manual_seed(seed)
    # The network sees side x side pixels as channels of one; noise and steps are the picture's.
    network = lambda x, t, labels: F.pixel_shuffle(unet(F.pixel_unshuffle(x, side), t, labels).sample, side)
    x = torch.randn(1, unet.config.in_channels // side**2, index["height"], index["width"], generator=generator)
    extra = {} if isinstance(scheduler, diffusers.DDIMScheduler) else {"generator": generator}
    for t in scheduler.timesteps:
        eps = network(x, t, labels)
        if guidance != 1:
            without = network(x, t, none)
            eps = without + guidance * (eps - without)
        x = scheduler.step(eps, t, x, **extra).prev_sample
    return (x[0] / 2 + 0.5).clamp(0, 1)


def picture(x):
    return Image.fromarray((x * 255).round().byte().permute(1, 2, 0).numpy())


def grid(pictures, columns=8, padding=2):
    """Side by side, as torchvision's make_grid."""
    width, height = pictures[0].width + padding, pictures[0].height + padding
    across = min(columns, len(pictures))
    sheet = Image.new("RGB", (across * width + padding, math.ceil(len(pictures) / columns) * height + padding))
    for i, one in enumerate(pictures):
        sheet.paste(one, (i % columns * width + padding, i // columns * height + padding))
    return sheet


if __name__ == "__main__":
    bundled = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data", "mini")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("labels", nargs="?", default="red sphere, cyan cylinder, cyan cube")
    parser.add_argument("--model", default=bundled)
    parser.add_argument("--n", type=int, default=8, help="pictures, with seeds S, S + 1, ...")
    parser.add_argument("--steps", type=int, help="(the model's)")
    parser.add_argument("--seed", type=int, default=529)
    parser.add_argument("--out", default="grid.png")
    a = parser.parse_args()
    wanted = [name.strip() for name in a.labels.split(",") if name.strip()]
    model = load(a.model)
    grid([picture(draw(model, wanted, a.seed + i, a.steps)) for i in range(a.n)]).save(a.out)
    print(a.out)
