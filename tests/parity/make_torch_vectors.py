"""Makes tests/vectors/torch.safetensors: PyTorch's random numbers on the CPU and pictures that diffusers draws with
them, for tests/test_vectors.c.

    python tests/parity/make_torch_vectors.py [FILE]
    python tests/parity/make_torch_vectors.py --paths FILE      NAME/path: x of two of the pictures' loops after each step

    uniform/SEED        rand(2000) after manual_seed(SEED), every 37th
    normal/SEED/K       the K-th of CALLS randn on one generator; /K.count its length
    picture/NAME/x      the pictures of the network 'lab' (tests/parity/networks.py), float32, as diffusers draws them:
                        picture i with manual_seed(529 + i); /labels; /attr = steps, eta
Contents: numbers; pictures; main.
"""
import os
import sys
import warnings

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.utils.torch_utils import randn_tensor
from safetensors.torch import save_file

import networks

warnings.filterwarnings("ignore")
torch.set_num_threads(1)  # the pictures are tiny

# ---- Numbers --------------------------------------------------------------------------------------------------------

SEEDS = [0, 529, 2 ** 32 + 5, 12345678901234]
CALLS = [1, 2, 15, 16, 3, 17, 31, 48, 1, 100, 192]  # below 16 and from 16 on are other algorithms; a rest of 16 a third


def numbers():
    out = {}
    for seed in SEEDS:
        g = torch.Generator().manual_seed(seed)
        out[f"uniform/{seed}"] = torch.rand(2000, generator=g)[::37]
        g = torch.Generator().manual_seed(seed)
        for k, count in enumerate(CALLS):
            out[f"normal/{seed}/{k}"] = torch.randn(count, generator=g)
    return out


# ---- Pictures -------------------------------------------------------------------------------------------------------

LOOPS = {"ddim": (DDIMScheduler, 50, {"eta": 0.0}), "ddim_eta": (DDIMScheduler, 20, {"eta": 0.7}),
         "ddpm": (DDPMScheduler, 1000, {})}


def draw(model, labels, cls, steps, extra, seed=529, shape=(3, 8, 8)):
    """The loop of diffusers' pipelines with a list of generators: x_T, and x after each step."""
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(labels))]
    scheduler = cls(beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(steps)
    x = randn_tensor((len(labels), *shape), generator=generators)
    path = [x]
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.repeat(len(x)), labels), t, x, generator=generators, **extra).prev_sample
        path.append(x)
    return torch.stack(path)


def network():
    spec = next(s for s in networks.TINY if s["name"] == "lab")
    model = networks.build(spec, coarse=True).float()
    return model, networks.inputs(spec, model)[2].float()


@torch.no_grad()
def paths():
    model, labels = network()
    return {"labels": labels} | {f"{name}/path": draw(model, labels, *LOOPS[name]) for name in ("ddim", "ddpm")}


@torch.no_grad()
def pictures():
    model, labels = network()
    out = {"labels": labels}
    for name, (cls, steps, extra) in LOOPS.items():
        out |= {f"{name}/x": draw(model, labels, cls, steps, extra)[-1],
                f"{name}/attr": torch.tensor([steps, extra.get("eta", 0.0)], dtype=torch.float64)}
    return {f"picture/{k}": v for k, v in out.items()}


# ---- main -----------------------------------------------------------------------------------------------------------

if __name__ == "__main__":
    if sys.argv[1:2] == ["--paths"]:
        save_file(paths(), sys.argv[2])
        sys.exit()
    file = sys.argv[1] if len(sys.argv) > 1 else "tests/vectors/torch.safetensors"
    save_file({k: v.contiguous().clone() for k, v in (numbers() | pictures()).items()}, file)
    os.chmod(file, 0o644)
