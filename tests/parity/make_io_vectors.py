"""Makes the files that tests/test_io.c reads and that only Python's own libraries can vouch for:
tests/vectors/io_dtypes.safetensors (every dtype we read, by safetensors) and tests/vectors/io_unet/ (a small UNet2DModel and
two schedulers, by diffusers). Run from the repository's root; the same versions give the same bytes."""
import os
import shutil

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from safetensors.torch import save_file

VECTORS = "tests/vectors"


def dtypes():
    """Values of tests/test_io.c: the limits, a subnormal, the infinities and a NaN of each."""
    inf, nan = float("inf"), float("nan")
    tensors = {
        "f64": torch.tensor([[1 / 3, -1e-300], [1e300, 1.0 + 2.0**-24]], dtype=torch.float64),
        "f32": torch.tensor([1.5, -(2.0**-149), 3.4028234663852886e38, -inf, nan], dtype=torch.float32),
        "f16": torch.tensor([1.5, -(2.0**-24), 65504.0, -inf, nan], dtype=torch.float16),
        "bf16": torch.tensor([1.5, -(2.0**-133), 3.3895313892515355e38, -inf, nan], dtype=torch.bfloat16),
        "i64": torch.tensor(-(2**40), dtype=torch.int64),  # a scalar, as num_batches_tracked is
        "i32": torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32),
        "i16": torch.tensor([-(2**15), 2**15 - 1], dtype=torch.int16),
        "i8": torch.tensor([-128, 127], dtype=torch.int8),
        "u8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([False, True], dtype=torch.bool),
        "empty": torch.zeros(0, 3),
    }
    save_file(tensors, f"{VECTORS}/io_dtypes.safetensors", metadata={"text": 'é "\n'})


def unet():
    directory = f"{VECTORS}/io_unet"
    shutil.rmtree(directory, ignore_errors=True)
    torch.manual_seed(529)
    model = UNet2DModel(
        sample_size=(8, 4), in_channels=1, out_channels=1, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        class_embed_type="timestep", freq_shift=1, norm_eps=1e-6,
    )
    model.half().save_pretrained(directory)
    DDPMScheduler(num_train_timesteps=500, beta_schedule="squaredcos_cap_v2").save_config(directory)
    os.makedirs(f"{directory}/ddim")
    DDIMScheduler(clip_sample=False).save_config(f"{directory}/ddim")


os.makedirs(VECTORS, exist_ok=True)
dtypes()
unet()
for path in ("io_dtypes.safetensors", "io_unet/diffusion_pytorch_model.safetensors"):
    os.chmod(f"{VECTORS}/{path}", 0o644)  # safetensors makes its files private
