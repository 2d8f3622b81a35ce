"""Makes tests/vectors/schedulers.safetensors: what diffusers' DDPMScheduler, DDIMScheduler and
DPMSolverMultistepScheduler compute, for tests/test_schedules.c to compare ddpm.c with.

    python tests/parity/make_scheduler_vectors.py [--exhaustive] [FILE]

--exhaustive: tables of many more T and every number of steps, for `make parity`; tests/test_schedules FILE reads both.
In the file's metadata stands each scheduler's own scheduler_config.json under the name of its tensors:
    table/NAME       /beta, /alpha_bar              float32, as diffusers has them
    steps/NAME       /count (k), /timestep          the timesteps of count[0], count[1], ... steps, one after another
    path/NAME        /attr = steps, eta; start (2,1,2,3), prediction, noise (steps,...) in float16, so that they are
                     exact; the truth: /path, x after each step, /image, its estimate of x_0, both float64, /timestep;
                     /alpha_bar where ours may differ in the last bit (sigmoid, zero SNR), so that the steps start alike
Contents: tables; timesteps; trajectories; main.
"""
import argparse
import itertools
import json
import os
import warnings

import numpy
import torch
import diffusers.schedulers.scheduling_ddim as ddim
import diffusers.schedulers.scheduling_ddpm as ddpm
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from safetensors.torch import save_file

import networks

warnings.filterwarnings("ignore")
CLASSES = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler, "solver": DPMSolverMultistepScheduler}


def config_json(scheduler):
    """What save_pretrained writes, with as few digits as a line each takes."""
    config = json.loads(scheduler.to_json_string())
    return json.dumps({k: v for k, v in config.items() if not k.startswith("_use_")}, sort_keys=True)


# ---- Tables ---------------------------------------------------------------------------------------------------------

TRAINED = [float(b) for b in numpy.round(numpy.geomspace(1e-4, 0.5, 20), 5)]
BETAS = {
    "squaredcos": dict(beta_schedule="squaredcos_cap_v2"),
    "linear": dict(beta_schedule="linear"),
    "steep": dict(beta_schedule="linear", beta_start=0.003, beta_end=0.31),
    "scaled_linear": dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "sigmoid": dict(beta_schedule="sigmoid"),
    "laplace": dict(beta_schedule="laplace"),
}


def tables(totals):
    cases = {f"{name}_{total}{'_zero' if zero else ''}": dict(kind, num_train_timesteps=total,
                                                            rescale_betas_zero_snr=zero)
             for (name, kind), total, zero in itertools.product(BETAS.items(), totals, (False, True))}
    for zero in (False, True):
        cases[f"trained{'_zero' if zero else ''}"] = dict(trained_betas=TRAINED, num_train_timesteps=len(TRAINED),
                                                          rescale_betas_zero_snr=zero)
    tensors, metadata = {}, {}
    for name, config in cases.items():
        s = DDPMScheduler(**config)
        if not torch.isfinite(s.alphas_cumprod).all():
            continue  # 0/0: so steep that abar reaches 0 before the end
        tensors |= {f"table/{name}/beta": s.betas, f"table/{name}/alpha_bar": s.alphas_cumprod}
        metadata[f"table/{name}"] = config_json(s)
    return tensors, metadata


# ---- Timesteps ------------------------------------------------------------------------------------------------------

def usable(t, count, total):
    """diffusers itself would read beyond its table, or take the same step twice. (With trailing spacing numpy's arange
    may give one t more than was asked for, -1; the `count` before it are right.)"""
    return len(t) >= count and t[0] < total and t[count - 1] >= 0 and bool((numpy.diff(t[:count]) < 0).all())


def timesteps(totals, counts):
    """counts(T): which numbers of steps. Where diffusers' list cannot be used, -1 stands for all of it."""
    tensors, metadata = {}, {}
    for (kind, cls), total, spacing, offset in itertools.product(CLASSES.items(), totals,
                                                                 ("leading", "linspace", "trailing"), (0, 1)):
        if offset and spacing != "leading":
            continue
        for clipped in (False, True) if kind == "solver" else (False,):
            extra = dict(lambda_min_clipped=-5.1, beta_schedule="squaredcos_cap_v2") if clipped else {}
            s = cls(num_train_timesteps=total, timestep_spacing=spacing, steps_offset=offset, **extra)
            used, out = list(counts(total)), []
            for count in used:
                s.set_timesteps(count)
                t = s.timesteps.numpy()
                out += list(t[:count]) if usable(t, count, total) else [-1]
            name = f"steps/{kind}_{spacing}_{total}{'_offset' if offset else ''}{'_clipped' if clipped else ''}"
            tensors |= {name + "/count": torch.tensor(used, dtype=torch.int32),
                        name + "/timestep": torch.tensor(numpy.array(out, dtype=numpy.int32))}
            metadata[name] = config_json(s)
    return tensors, metadata


# ---- Trajectories ---------------------------------------------------------------------------------------------------

COSINE, V, SAMPLE = "squaredcos_cap_v2", "v_prediction", "sample"
PATHS = {  # name: class, steps, eta, fields
    "ddpm": ("ddpm", 12, 0, dict(beta_schedule=COSINE)),
    "ddpm_all_steps": ("ddpm", 20, 0, dict(beta_schedule=COSINE, num_train_timesteps=20)),
    "ddpm_linear": ("ddpm", 7, 0, dict(clip_sample=False)),
    "ddpm_v": ("ddpm", 6, 0, dict(prediction_type=V, clip_sample_range=1.5)),
    "ddpm_sample": ("ddpm", 6, 0, dict(prediction_type=SAMPLE, beta_schedule="sigmoid")),
    "ddpm_log": ("ddpm", 6, 0, dict(variance_type="fixed_small_log", beta_schedule="laplace")),
    "ddpm_large": ("ddpm", 6, 0, dict(variance_type="fixed_large", beta_schedule="scaled_linear")),
    "ddpm_trailing": ("ddpm", 9, 0, dict(timestep_spacing="trailing", beta_schedule=COSINE)),
    "ddpm_linspace": ("ddpm", 9, 0, dict(timestep_spacing="linspace")),
    "ddpm_offset": ("ddpm", 6, 0, dict(steps_offset=1)),
    "ddpm_threshold": ("ddpm", 6, 0, dict(thresholding=True, sample_max_value=2.5, dynamic_thresholding_ratio=0.7)),
    "ddpm_threshold_one": ("ddpm", 5, 0, dict(thresholding=True)),
    "ddpm_zero_snr": ("ddpm", 6, 0, dict(rescale_betas_zero_snr=True, prediction_type=V, timestep_spacing="trailing")),
    "ddpm_zero_snr_sample": ("ddpm", 6, 0, dict(rescale_betas_zero_snr=True, prediction_type=SAMPLE,
                                                timestep_spacing="linspace", beta_schedule="scaled_linear")),
    "ddpm_trained": ("ddpm", 5, 0, dict(trained_betas=TRAINED, num_train_timesteps=20)),
    "ddim": ("ddim", 12, 0, dict(beta_schedule=COSINE)),
    "ddim_half": ("ddim", 9, 0.5, dict(num_train_timesteps=500, clip_sample_range=1.5)),
    "ddim_one": ("ddim", 10, 1, dict(beta_schedule=COSINE)),
    "ddim_v": ("ddim", 6, 0.3, dict(prediction_type=V, timestep_spacing="trailing")),
    "ddim_sample": ("ddim", 6, 0.3, dict(prediction_type=SAMPLE, timestep_spacing="linspace")),
    "ddim_abar_0": ("ddim", 6, 1, dict(set_alpha_to_one=False, steps_offset=1, beta_schedule="scaled_linear",
                                       clip_sample=False)),
    "ddim_threshold": ("ddim", 6, 0, dict(thresholding=True, sample_max_value=3.0, dynamic_thresholding_ratio=0.4)),
    "ddim_zero_snr": ("ddim", 6, 0.5, dict(rescale_betas_zero_snr=True, prediction_type=V, timestep_spacing="trailing")),
    "solver": ("solver", 12, None, dict(beta_schedule=COSINE)),
    "solver_many": ("solver", 16, None, dict(beta_schedule=COSINE, final_sigmas_type="sigma_min")),
    "solver_heun": ("solver", 9, None, dict(solver_type="heun", final_sigmas_type="sigma_min")),
    "solver_heun_to_the_end": ("solver", 9, None, dict(solver_type="heun", final_sigmas_type="sigma_min",
                                                       lower_order_final=False, timestep_spacing="trailing")),
    "solver_euler_end": ("solver", 16, None, dict(euler_at_final=True, final_sigmas_type="sigma_min",
                                                  timestep_spacing="leading", steps_offset=1)),
    "solver_one": ("solver", 6, None, dict(solver_order=1, beta_schedule="scaled_linear")),
    "solver_v": ("solver", 8, None, dict(prediction_type=V, timestep_spacing="leading")),
    "solver_sample": ("solver", 8, None, dict(prediction_type=SAMPLE, timestep_spacing="trailing")),
    "solver_threshold": ("solver", 7, None, dict(thresholding=True, sample_max_value=2.0,
                                                 dynamic_thresholding_ratio=0.6)),
    "solver_zero_snr": ("solver", 8, None, dict(rescale_betas_zero_snr=True, prediction_type=V,
                                                timestep_spacing="trailing")),
    "solver_clipped": ("solver", 8, None, dict(lambda_min_clipped=-5.1, beta_schedule=COSINE)),
}
SHAPE = (2, 1, 2, 3)


def path(name, kind, steps, eta, fields):
    """x and x_0 in float64 on stored predictions, but for the coefficients: these are diffusers' own, in float32."""
    g = networks.generator("scheduler path", name)
    draw = lambda *shape: torch.randn(*shape, generator=g).half()
    start, predictions, noise, used = draw(*SHAPE), draw(steps, *SHAPE), draw(steps, *SHAPE), []

    def next_noise(shape, **_):
        used.append(step)
        return noise[step].double()
    ddpm.randn_tensor = ddim.randn_tensor = next_noise
    scheduler = CLASSES[kind](**fields)
    inexact = scheduler.config.rescale_betas_zero_snr or scheduler.config.beta_schedule == "sigmoid"
    scheduler.set_timesteps(steps)
    x, xs, images = start.double(), [], []
    if kind == "solver":  # it gives x_0 to nobody
        convert = scheduler.convert_model_output
        scheduler.convert_model_output = lambda *a, **k: images.append(convert(*a, **k)) or images[-1]
    for step, t in enumerate(scheduler.timesteps):
        out = scheduler.step(predictions[step].double(), t, x, **({"eta": eta} if kind == "ddim" else {}))
        x = out.prev_sample
        xs.append(x)
        if kind != "solver":
            images.append(out.pred_original_sample)
    for step in range(steps):
        if step not in used:  # no noise was asked for at this step
            noise[step] = 0
    if not torch.isfinite(torch.stack(xs)).all():
        return None, None
    return {"attr": torch.tensor([steps, eta or 0.0], dtype=torch.float64), "start": start, "prediction": predictions,
            "noise": noise, "path": torch.stack(xs), "image": torch.stack(images),
            "timestep": scheduler.timesteps.int()} | ({"alpha_bar": scheduler.alphas_cumprod} if inexact else {}
                                                      ), config_json(scheduler)


def paths(cases, may_fail=False):
    """may_fail: a path on which diffusers divides by zero or takes the root of a rounded -0 is left out."""
    tensors, metadata = {}, {}
    for name, case in cases.items():
        out, config = path(name, *case)
        if out is None and may_fail:
            continue
        metadata[f"path/{name}"] = config
        tensors |= {f"path/{name}/{k}": v for k, v in out.items()}
    return tensors, metadata


def every_path():
    """Each class with all its fields crossed, where diffusers' own result is finite."""
    betas = [COSINE, "linear", "scaled_linear"]
    common = dict(prediction_type=["epsilon", V, SAMPLE], timestep_spacing=["leading", "linspace", "trailing"],
                  thresholding=[False, True], rescale_betas_zero_snr=[False, True])
    own = {"ddpm": dict(beta_schedule=betas + ["sigmoid", "laplace"], clip_sample=[False, True],
                        variance_type=["fixed_small", "fixed_small_log", "fixed_large"]),
           "ddim": dict(beta_schedule=betas, clip_sample=[False, True], set_alpha_to_one=[False, True]),
           "solver": dict(beta_schedule=betas, solver_type=["midpoint", "heun"], lower_order_final=[False, True],
                          final_sigmas_type=["zero", "sigma_min"])}
    cases = {}
    for kind, fields in own.items():
        fields = common | fields
        for i, values in enumerate(itertools.product(*fields.values())):
            config = dict(zip(fields, values), sample_max_value=2.0, dynamic_thresholding_ratio=0.6)
            if config["rescale_betas_zero_snr"] and config["prediction_type"] == "epsilon":
                continue  # x_0 = (x - eps) / 0
            cases[f"{kind}_{i}"] = (kind, 5 + i % 13, i % 3 / 2, config)
    return cases


# ---- main -----------------------------------------------------------------------------------------------------------

def make(file, exhaustive):
    if exhaustive:
        parts = [tables((2, 3, 10, 77, 500, 1000, 2000, 4000)), paths(every_path(), True),
                 timesteps((10, 77, 1000), lambda total: range(1, total + 1))]
    else:
        parts = [tables((10, 300)), timesteps((10, 1000), lambda total: [c for c in (1, 2, 3, 7, 10, 48, 50, 333)
                                                                        if c <= total]), paths(PATHS)]
    tensors, metadata = {}, {}
    for t, m in parts:
        tensors |= t
        metadata |= m
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, file, metadata)
    os.chmod(file, 0o644)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", default="tests/vectors/schedulers.safetensors")
    parser.add_argument("--exhaustive", action="store_true")
    arguments = parser.parse_args()
    make(arguments.file, arguments.exhaustive)
