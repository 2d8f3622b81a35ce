"""Makes the vectors of tests/test_picture.c in tests/vectors/picture/: small PNG and JPEG files of every kind with the pixels
PIL sees in them, and what PIL's resize and torchvision's make_grid give. Run from the root of the repository:

    python tests/parity/make_picture_vectors.py                         makes the vectors anew
    python tests/parity/make_picture_vectors.py --check TEST_PICTURE    lets PIL read a PNG that this test program writes

Contents: a PNG writer; the pictures; resize; make_grid; texts; main.
Needs numpy, pillow, torch, safetensors. torchvision is not needed: make_grid's rule is written out here.
"""
import io
import os
import struct
import subprocess
import sys
import tempfile
import zlib

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file

OUT = "tests/vectors/picture"

# ---- A PNG writer that can write every kind --------------------------------------------------------------------------
# PIL reads all kinds of PNG but writes few; this one writes what section 11.2.2 of the standard allows, the filters in turn.

SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # samples a pixel, by colour type


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def paeth(a, b, c):
    pa, pb, pc = abs(b - c), abs(a - c), abs(a + b - 2 * c)
    return a if pa <= pb and pa <= pc else b if pb <= pc else c


def filtered(rows, step):
    """rows of bytes -> the filtered scan lines; line i has filter i mod 5. step: bytes a pixel, at least 1."""
    out, above = b"", bytes(len(rows[0]))
    for index, row in enumerate(rows):
        kind, line = index % 5, bytearray()
        for i, value in enumerate(row):
            a = row[i - step] if i >= step else 0
            b, c = above[i], above[i - step] if i >= step else 0
            line.append((value - [0, a, b, (a + b) // 2, paeth(a, b, c)][kind]) & 255)
        out += bytes([kind]) + bytes(line)
        above = row
    return out


def packed(samples, depth):
    """(h, w, s) samples -> rows of bytes."""
    rows = samples.reshape(samples.shape[0], -1)
    if depth == 16:
        return [row.astype(">u2").tobytes() for row in rows]
    bits = [np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - depth:].reshape(-1) for row in rows]
    return [np.packbits(b).tobytes() for b in bits]


def png(samples, depth, colour, interlace=0, palette=None, transparent=None):
    height, width, count = samples.shape
    step = max(1, depth * count // 8)
    if interlace:  # Adam7
        parts = [samples[y::v, x::h] for x, y, h, v in
                 [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]]
        data = b"".join(filtered(packed(p, depth), step) for p in parts if p.size)
    else:
        data = filtered(packed(samples, depth), step)
    stream = zlib.compress(data, 9)
    middle = chunk(b"PLTE", palette.astype(np.uint8).tobytes()) if palette is not None else b""
    middle += chunk(b"tRNS", transparent) if transparent is not None else b""
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))
            + middle + chunk(b"IDAT", stream[:50]) + chunk(b"IDAT", stream[50:]) + chunk(b"IEND", b""))


# ---- The pictures ----------------------------------------------------------------------------------------------------

def soft(height, width, channels, seed):
    """Smooth colours with a few edges: something a JPEG can hold. float in [0, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    planes = []
    for _ in range(channels):
        a, b, c, d = rng.uniform(-3, 3, 4)
        planes.append(0.5 + 0.3 * np.sin(4 * a * x + 4 * b * y + c) + 0.2 * np.tanh(20 * (x - 0.4 + d * (y - 0.3) / 3)))
    return np.clip(np.stack(planes, -1), 0, 1)


def pngs():
    rng, files = np.random.default_rng(1), {}
    for colour, depths in [(0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16))]:
        for depth in depths:
            for interlace in (0, 1):
                height, width = (11, 13) if interlace else (12, 9)
                samples = rng.integers(0, 1 << depth, (height, width, SAMPLES[colour]))
                extra = {}
                if colour == 3:
                    extra["palette"] = rng.integers(0, 256, (1 << depth, 3))
                    extra["transparent"] = bytes(rng.integers(0, 256, 2).tolist()) if interlace else None
                elif colour in (0, 2) and interlace:
                    extra["transparent"] = struct.pack(">%dH" % SAMPLES[colour], *samples[0, 0])
                kind = {0: "gray", 2: "rgb", 3: "palette", 4: "graya", 6: "rgba"}[colour]
                files["%s%d%s.png" % (kind, depth, "_interlaced" if interlace else "")] = (
                    png(samples, depth, colour, interlace, **extra), samples >> 8 if (colour, depth) == (0, 16) else None)
    # A palette of 5 colours in which the picture names 11 more: PIL makes those black.
    files["palette4_short.png"] = (
        png(rng.integers(0, 16, (9, 9, 1)), 4, 3, palette=rng.integers(1, 256, (5, 3))), None)
    # Many colours, for the rounding of luma.
    files["rgb8_luma.png"] = (png(rng.integers(0, 256, (40, 40, 3)), 8, 2), None)
    for height, width in ((1, 1), (1, 9), (9, 1)):  # in these some passes of Adam7 are empty
        files["rgb8_%dx%d.png" % (width, height)] = (png(rng.integers(0, 256, (height, width, 3)), 8, 2, 1), None)
    return files


def jpegs():
    def encode(mode, height, width, channels, seed, **options):
        data = (255 * soft(height, width, channels, seed) + 0.5).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(data[..., 0] if channels == 1 else data, mode).save(file, "JPEG", **options)
        return file.getvalue(), None

    return {
        "gray.jpg": encode("L", 27, 33, 1, 2, quality=90),
        "rgb444.jpg": encode("RGB", 27, 33, 3, 3, quality=95, subsampling=0),
        "rgb422.jpg": encode("RGB", 24, 40, 3, 4, quality=85, subsampling=1),
        "rgb420.jpg": encode("RGB", 27, 45, 3, 5, quality=75, subsampling=2, comment="a comment"),
        "progressive.jpg": encode("RGB", 35, 33, 3, 6, quality=90, subsampling=2, progressive=True),
        "progressive_gray.jpg": encode("L", 17, 16, 1, 7, quality=90, progressive=True),
        "restart.jpg": encode("RGB", 40, 40, 3, 8, quality=80, subsampling=2, restart_marker_blocks=2),
        "cmyk.jpg": encode("CMYK", 24, 24, 4, 9, quality=95),
    }


def write_pictures():
    pixels = {}
    for name, (data, gray16) in {**pngs(), **jpegs()}.items():
        with open(os.path.join(OUT, name), "wb") as file:
            file.write(data)
        picture = Image.open(io.BytesIO(data))
        rgb, luma = np.array(picture.convert("RGB")), np.array(picture.convert("L"))
        if gray16 is not None:  # PIL clips 16-bit gray at 255: take the upper byte, as PIL does for 16-bit colour
            luma = gray16[..., 0].astype(np.uint8)
            rgb = np.repeat(luma[..., None], 3, -1)
        pixels[name + ".rgb"], pixels[name + ".l"] = rgb, luma
    save_file(pixels, os.path.join(OUT, "pixels.safetensors"))


# ---- Resize ----------------------------------------------------------------------------------------------------------

RESIZES = [  # width, height, channels -> width, height
    ((320, 240, 3), (64, 64)), ((64, 64, 1), (128, 128)), ((5, 7, 3), (3, 2)), ((1, 1, 3), (4, 4)), ((100, 1, 1), (1, 100)),
    ((64, 64, 3), (32, 32)), ((33, 65, 3), (65, 33)), ((17, 9, 3), (17, 31)), ((17, 9, 3), (5, 9)), ((12, 10, 3), (12, 10)),
    ((128, 96, 1), (64, 64)), ((2, 3, 3), (50, 1)), ((301, 199, 1), (7, 5)), ((1000, 3, 1), (3, 1)), ((640, 480, 1), (31, 29)),
]


def noise(width, height, channels):
    """tests/test_picture.c's noise(): the inputs need not be stored."""
    i = np.arange(width * height * channels, dtype=np.uint64)
    v = ((i * 2654435761 % 2**32) ^ (i * 40503 % 2**32) >> 7) * 2246822519 % 2**32 >> 24
    return v.astype(np.uint8).reshape(height, width, channels)


def write_resizes():
    vectors = {}
    for (width, height, channels), size in RESIZES:
        data = noise(width, height, channels)
        picture = Image.fromarray(data[..., 0] if channels == 1 else data)
        out = np.array(picture.resize(size, Image.BILINEAR))
        vectors["%dx%d to %dx%d" % (width, height, *size)] = out.reshape(size[1], size[0], channels)
    save_file(vectors, os.path.join(OUT, "resize.safetensors"))


def resize_crop(picture, width, height):
    """torchvision's Resize and CenterCrop, their integers written out, for a picture that is to cover width x height."""
    w, h = picture.size
    size = (int(height * w / h), height) if w * height > h * width else (width, int(width * h / w))
    left, top = int(round((size[0] - width) / 2.0)), int(round((size[1] - height) / 2.0))
    return picture.resize(size, Image.BILINEAR).crop((left, top, left + width, top + height))


CROPS = [((32, 24, 3), (8, 8)), ((24, 31, 3), (8, 8)), ((13, 8, 1), (5, 5)), ((8, 13, 1), (5, 5)), ((17, 9, 3), (6, 8)),
         ((9, 9, 3), (9, 9)), ((7, 5, 3), (12, 12)), ((30, 20, 3), (15, 4)), ((20, 15, 3), (4, 3)), ((41, 7, 1), (3, 3))]


def write_crops():
    vectors = {}
    for (width, height, channels), size in CROPS:
        data = noise(width, height, channels)
        picture = Image.fromarray(data[..., 0] if channels == 1 else data)
        out = np.array(resize_crop(picture, *size))
        vectors["%dx%d to %dx%d" % (width, height, *size)] = out.reshape(size[1], size[0], channels)
    save_file(vectors, os.path.join(OUT, "crop.safetensors"))


# ---- make_grid and save_image ----------------------------------------------------------------------------------------

def make_grid(tensor, nrow=8, padding=2, normalize=False, pad_value=0.0):
    """The documented rule of torchvision.utils.make_grid for a (N,C,H,W) tensor."""
    if tensor.size(1) == 1:
        tensor = torch.cat((tensor, tensor, tensor), 1)
    if normalize:
        low, high = float(tensor.min()), float(tensor.max())
        tensor = tensor.clone().clamp_(min=low, max=high).sub_(low).div_(max(high - low, 1e-5))
    if tensor.size(0) == 1:
        return tensor.squeeze(0)
    count = tensor.size(0)
    xmaps = min(nrow, count)
    ymaps = -(-count // xmaps)
    height, width = tensor.size(2) + padding, tensor.size(3) + padding
    grid = tensor.new_full((3, height * ymaps + padding, width * xmaps + padding), pad_value)
    for k in range(count):
        y, x = k // xmaps * height + padding, k % xmaps * width + padding
        grid[:, y:y + height - padding, x:x + width - padding] = tensor[k]
    return grid


def to_bytes(grid):
    """save_image's conversion."""
    return grid.mul(255).add_(0.5).clamp_(0, 255).permute(1, 2, 0).to(torch.uint8).numpy()


def write_grids():
    torch.manual_seed(529)
    vectors, grids = {}, [(11, 3, 4, 5, 8, 2, 0), (3, 3, 4, 5, 8, 2, 1), (1, 1, 6, 4, 8, 2, 0), (8, 1, 3, 3, 4, 1, 1),
                         (9, 3, 2, 2, 3, 0, 0), (5, 3, 16, 16, 3, 2, 1)]
    for index, (count, channels, height, width, nrow, padding, normalize) in enumerate(grids):
        x = torch.randn(count, channels, height, width) * 0.7
        x[0, 0, 0, 0] = 1.0
        grid = make_grid(x if normalize else (x / 2 + 0.5).clamp(0, 1), nrow, padding, bool(normalize))
        vectors["%d.in.%d.%d.%d" % (index, nrow, padding, normalize)] = x.numpy()
        vectors["%d.out" % index] = np.ascontiguousarray(to_bytes(grid))
    # ToTensor and Normalize(0.5, 0.5) of every byte, and the way back of values between and beyond.
    vectors["to_real"] = (torch.arange(256, dtype=torch.uint8).to(torch.float32).div(255).sub_(0.5).div_(0.5)).numpy()
    x = torch.cat([torch.linspace(-1.2, 1.2, 601), torch.arange(511) / 255.0 - 1])
    vectors["from_real.in"] = x.numpy()
    vectors["from_real.out"] = to_bytes((x / 2 + 0.5).clamp(0, 1)[None, None]).reshape(-1)
    save_file(vectors, os.path.join(OUT, "grid.safetensors"))


# ---- Texts -----------------------------------------------------------------------------------------------------------

TEXTS = {"seed": "529", "command": "ddpm sample \"red sphere, cyan cube\"\nsecond line", "Title": "Größe ≤ 64 – 雪 🙂"}


def write_texts():
    info = PngImagePlugin.PngInfo()
    info.add_text("seed", TEXTS["seed"])
    info.add_text("command", TEXTS["command"])
    info.add_text("Author", "Zoë")  # Latin-1 in tEXt
    info.add_itxt("Title", TEXTS["Title"], lang="de", tkey="Überschrift")
    info.add_text("packed", "x" * 100, zip=True)
    Image.new("RGB", (2, 2)).save(os.path.join(OUT, "texts.png"), pnginfo=info)


def check(program):
    """PIL's view of a PNG written by io_picture_write_png."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "written.png")
        subprocess.run([program, "--write", path], check=True)
        picture = Image.open(path)
        picture.load()
        assert picture.mode == "RGB" and np.array_equal(np.array(picture), noise(37, 21, 3)), "pixels differ"
        assert picture.text == TEXTS, picture.text
    print("PIL reads the pixels and the %d texts of a PNG of ours" % len(TEXTS))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--check":
        check(sys.argv[2])
    elif len(sys.argv) == 1:
        os.makedirs(OUT, exist_ok=True)
        write_pictures()
        write_resizes()
        write_crops()
        write_grids()
        write_texts()
        print("%s: %d files" % (OUT, len(os.listdir(OUT))))
    else:
        sys.exit(__doc__)
