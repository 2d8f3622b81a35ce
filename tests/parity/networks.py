"""The networks that the vectors and the parity run compare: tiny UNet2DModel configs which together use every field of
diffusers' config that ddpm.c has, and the lab's model. Built with random weights, evaluated in torch in double
precision.

Contents: configurations; building; the truth in float64; a model directory on disk.
"""
import json
import math
import os

import torch
import diffusers
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import save_file

diffusers.utils.logging.set_verbosity_error()
torch.set_num_threads(2)

# ---- Configurations -------------------------------------------------------------------------------------------------
# A name, UNet2DModel's arguments (what is left out is diffusers' default), and beside them: size    height and width
# to run at     t     timesteps of the three pictures, reals on purpose label   (num_classes, hidden_dim) of a label
# encoder in front of class_embed_type identity Channels are few so that the files stay small; 4 channels in 4 groups
# is the one-channel-a-group case, where a bias before the norm has a gradient of exactly zero.

DOWN, ATTN_DOWN, UP, ATTN_UP = "DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"

TINY = [
    dict(name="lab", size=(8, 8), t=[0.0, 12.5, 999.0], label=(5, 6), unet=dict(
        sample_size=8, down_block_types=(DOWN, ATTN_DOWN), up_block_types=(ATTN_UP, UP), block_out_channels=(4, 8),
        layers_per_block=1, class_embed_type="identity", norm_num_groups=2)),
    dict(name="plain", size=(8, 16), t=[1.0, 250.25, 731.0], unet=dict(
        sample_size=(8, 16), in_channels=1, out_channels=1, down_block_types=(DOWN, DOWN, DOWN),
        up_block_types=(UP, UP, UP), block_out_channels=(4, 8, 8), layers_per_block=2, mid_block_type=None,
        norm_num_groups=4, norm_eps=1e-6)),
    dict(name="fourier", size=(8, 8), t=[0.5, 3.0, 40.0], unet=dict(
        sample_size=None, center_input_sample=True, time_embedding_type="fourier", time_embedding_dim=20,
        down_block_types=(ATTN_DOWN, DOWN), up_block_types=(UP, ATTN_UP), block_out_channels=(4, 8), layers_per_block=1,
        attention_head_dim=2, norm_num_groups=2, add_attention=False)),
    dict(name="padding0", size=(16, 8), t=[2.0, 500.0, 998.5], unet=dict(
        sample_size=16, freq_shift=1, flip_sin_to_cos=False, down_block_types=(DOWN, ATTN_DOWN),
        up_block_types=(ATTN_UP, UP), block_out_channels=(4, 8), layers_per_block=1, mid_block_scale_factor=1.7,
        downsample_padding=0, attention_head_dim=None, norm_num_groups=2)),
    dict(name="resnet_resample", size=(8, 8), t=[10.0, 20.0, 990.0], unet=dict(
        sample_size=8, down_block_types=(ATTN_DOWN, DOWN, ATTN_DOWN), up_block_types=(ATTN_UP, UP, ATTN_UP),
        block_out_channels=(4, 8, 8), layers_per_block=1, downsample_type="resnet", upsample_type="resnet",
        attention_head_dim=4, norm_num_groups=4)),
    dict(name="scale_shift", size=(8, 8), t=[7.0, 77.0, 777.0], classes="timestep", unet=dict(
        sample_size=8, down_block_types=(DOWN, ATTN_DOWN), up_block_types=(ATTN_UP, UP), block_out_channels=(4, 8),
        layers_per_block=1, resnet_time_scale_shift="scale_shift", attention_head_dim=4, norm_num_groups=4,
        class_embed_type="timestep")),
    dict(name="scale_shift_groups", size=(4, 8), t=[0.0, 100.0, 200.0], unet=dict(
        sample_size=8, down_block_types=(ATTN_DOWN, ATTN_DOWN), up_block_types=(ATTN_UP, ATTN_UP),
        block_out_channels=(4, 8), layers_per_block=1, resnet_time_scale_shift="scale_shift",
        attn_norm_num_groups=2, attention_head_dim=4, downsample_type="resnet", upsample_type="resnet",
        mid_block_scale_factor=1.7, norm_num_groups=4)),
    dict(name="embedding", size=(8, 8), t=[5.0, 505.0, 905.0], classes="index", unet=dict(
        sample_size=8, down_block_types=(DOWN, DOWN), up_block_types=(UP, UP), block_out_channels=(4, 4),
        layers_per_block=3, attention_head_dim=4, norm_num_groups=4, num_class_embeds=5)),
    dict(name="narrow_heads", size=(8, 8), t=[3.0, 300.0, 600.0], classes="vector", unet=dict(
        sample_size=8, down_block_types=(ATTN_DOWN, DOWN), up_block_types=(UP, ATTN_UP), block_out_channels=(8, 8),
        layers_per_block=1, attention_head_dim=3, norm_num_groups=8, attn_norm_num_groups=4, dropout=0.25,
        class_embed_type="identity")),
    dict(name="fourier_timestep", size=(8, 8), t=[1.5, 30.0, 333.0], classes="timestep", unet=dict(
        sample_size=8, in_channels=2, out_channels=2, time_embedding_type="fourier", down_block_types=(DOWN, DOWN),
        up_block_types=(UP, UP), block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4,
        class_embed_type="timestep")),
    dict(name="one_level", size=(5, 3), t=[0.25, 42.0, 512.0], unet=dict(
        sample_size=(5, 3), down_block_types=(ATTN_DOWN,), up_block_types=(ATTN_UP,), block_out_channels=(8,),
        layers_per_block=1, attention_head_dim=4, norm_num_groups=2, flip_sin_to_cos=False)),
    dict(name="downsample_resnet", size=(8, 16), t=[6.0, 66.0, 666.0], unet=dict(
        sample_size=(8, 16), down_block_types=(ATTN_DOWN, DOWN), up_block_types=(UP, ATTN_UP),
        block_out_channels=(4, 4), layers_per_block=1, downsample_type="resnet",
        downsample_padding=0, attention_head_dim=2, norm_num_groups=4, freq_shift=1)),
]

LAB = dict(name="lab64", size=(64, 64), t=[3.0, 512.5], label=(24, 64), unet=dict(
    sample_size=64, in_channels=3, out_channels=3, class_embed_type="identity", layers_per_block=2,
    block_out_channels=(128, 128, 256, 256, 512, 512), down_block_types=(DOWN, DOWN, DOWN, DOWN, ATTN_DOWN, DOWN),
    up_block_types=(UP, ATTN_UP, UP, UP, UP, UP)))


# ---- Building -------------------------------------------------------------------------------------------------------

def generator(*key):
    """A torch generator whose seed depends on the words of `key` alone."""
    seed = 529
    for byte in " ".join(str(k) for k in key).encode():
        seed = (seed * 1000003 + byte) % (1 << 40)
    return torch.Generator().manual_seed(seed)


class Conditional(torch.nn.Module):
    """UNet2DModel, and in front of its class_labels the lab's label encoder if there is one."""

    def __init__(self, unet, label_encoder):
        super().__init__()
        self.unet, self.label_encoder = unet, label_encoder

    def forward(self, sample, timestep, labels=None):
        if self.label_encoder is not None:
            labels = self.label_encoder(labels)
        return self.unet(sample, timestep, labels).sample

    def named_arrays(self):
        """(name in ddpm.c, parameter): UNet names are diffusers' own, the encoder's begin with label_encoder."""
        seen = set()  # under fourier, `weight` is registered under one name only, but be safe with shared tensors
        for name, p in self.named_parameters():
            if id(p) not in seen:
                seen.add(id(p))
                yield name.removeprefix("unet."), p


def build(spec, coarse):
    """The network of `spec` in float32. Norms' scales and shifts, 1 and 0 after PyTorch's initialisation, are moved
    off these values: a row that forgets them would otherwise go unnoticed. coarse: weights rounded to float16 values,
    so that a file holds them in two bytes without a change."""
    g = generator("weights", spec["name"])
    unet = UNet2DModel(**spec["unet"]).eval()
    encoder = None
    if "label" in spec:
        classes, hidden = spec["label"]
        encoder = torch.nn.Sequential(torch.nn.Linear(classes, hidden),
                                      torch.nn.Linear(hidden, unet.time_embedding.linear_2.out_features))
    model = Conditional(unet, encoder)
    with torch.no_grad():
        for name, p in model.named_arrays():
            if "time_proj" in name:
                p.copy_(torch.randn(p.shape, generator=g) * 16)
            elif "class_embedding" in name and p.dim() == 2 and "linear" not in name:
                p.copy_(torch.randn(p.shape, generator=g))
            elif p.dim() == 1:
                norm = "norm" in name and name.endswith("weight")
                p.copy_(torch.randn(p.shape, generator=g) * 0.2 + (1 if norm else 0))
            else:
                p.copy_((torch.rand(p.shape, generator=g) * 2 - 1) * math.sqrt(2.0 / p[0].numel()))
            if coarse:
                p.copy_(p.half().float())
    return model


def inputs(spec, model):
    """sample, timestep, labels (or None), target for as many pictures as spec has timesteps."""
    g = generator("inputs", spec["name"])
    n, (h, w) = len(spec["t"]), spec["size"]
    unet = model.unet
    sample = torch.randn(n, unet.config.in_channels, h, w, generator=g)
    target = torch.randn(n, unet.config.out_channels, h, w, generator=g)
    labels = None
    if "label" in spec:
        labels = (torch.rand(n, spec["label"][0], generator=g) < 0.4).float()
        labels[0] = 0  # "none" of classifier-free guidance
    elif spec.get("classes") == "timestep":
        labels = torch.tensor([0.5, 17.0, 640.0])
    elif spec.get("classes") == "index":
        labels = torch.tensor([4, 0, 4])
    elif spec.get("classes") == "vector":
        labels = torch.randn(n, unet.time_embedding.linear_2.out_features, generator=g)
    return sample, torch.tensor(spec["t"]), labels, target


def class_labels(spec):
    """What `ddpm predict` calls this network's labels in its input file."""
    return "labels" if "label" in spec else "class_labels"


# ---- The truth in float64 -------------------------------------------------------------------------------------------

def evaluate(model, sample, timestep, labels, target):
    """prediction, loss (mean of all elements) and {name: gradient} in the precision of `sample`."""
    model.zero_grad()
    prediction = model(sample, timestep, labels)
    loss = torch.nn.functional.mse_loss(prediction, target)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_arrays() if p.requires_grad}
    return prediction.detach(), loss.detach(), gradients


def truth(model, sample, timestep, labels, target):
    """evaluate() in float64 on the float32 weights and inputs; the model is float32 again afterwards. diffusers
    computes the positional time embedding in float32 whatever the model's type is: it is taken as it is, as part of
    the definition."""
    model.double()
    # class_embed_type timestep would pass the embedding's float32 on
    hook = model.unet.time_proj.register_forward_hook(lambda module, args, out: out.double())
    real = labels.double() if labels is not None and labels.is_floating_point() else labels
    try:
        return evaluate(model, sample.double(), timestep.double(), real, target.double())
    finally:
        hook.remove()
        model.float()


# ---- A model directory on disk --------------------------------------------------------------------------------------

def config_json(model):
    """The UNet's config as diffusers writes it to config.json."""
    return model.unet.to_json_string()


def save_directory(spec, model, directory):
    """The model directory of ddpm.c: diffusers' unet/ and scheduler/, label_encoder/ and model_index.json beside
    them."""
    model.unet.save_pretrained(os.path.join(directory, "unet"))
    DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2").save_pretrained(
        os.path.join(directory, "scheduler"))
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"],
             "scheduler": ["diffusers", "DDPMScheduler"]}
    if model.label_encoder is not None:
        where = os.path.join(directory, "label_encoder")
        os.makedirs(where)
        save_file(model.label_encoder.state_dict(), os.path.join(where, "model.safetensors"))
        classes, hidden = spec["label"]
        with open(os.path.join(where, "config.json"), "w") as f:
            json.dump({"num_classes": classes, "hidden_dim": hidden,
                       "embedding_dim": model.unet.time_embedding.linear_2.out_features}, f, indent=2)
    with open(os.path.join(directory, "model_index.json"), "w") as f:
        json.dump(index, f, indent=2)
