"""Makes tests/vectors/evaluator/: torchvision's ResNet18 with fc = Sequential(Linear, Sigmoid), narrow, as torch
computes it; for tests/test_evaluator.c.

    python tests/parity/make_evaluator_vectors.py            from the root of the repository

torchvision is not needed: the network is written here with torch.nn, under torchvision's names (resnet.py of 0.28:
ResNet, BasicBlock); `--check` compares names, shapes and outputs with torchvision's own where that is installed (with
0.28.0 they are the same to the bit).
config.json and model.safetensors are an evaluator as the program loads it, weights in float16; truth.safetensors holds,
all in float64 of those weights: picture, labels; in training the probabilities `train.scores`, `train.loss` (mean
binary cross-entropy), the gradients grad.NAME, and the running statistics after the step, after.NAME; in evaluation
`eval.scores` and `eval.gradient`, of the summed log-likelihood of the labels with respect to the picture. `float32`:
how far torch's own float32 is from that: scores and gradients in training, scores and gradient in evaluation."""
import json
import os
import sys

import torch
from safetensors.torch import save_file
from torch import nn

CHANNELS, CLASSES, SIZE, PICTURES = 2, 24, 48, 4  # width 2/64; 48 makes odd sizes on the way: 48 24 12 12 6 3 2


class BasicBlock(nn.Module):
    def __init__(self, inside, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or inside != out:
            self.downsample = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(h + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inside = channels
        for stage in range(4):
            out = channels << stage
            blocks = [BasicBlock(inside, out, 2 if stage else 1), BasicBlock(out, out, 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            inside = out
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(inside, classes), nn.Sigmoid())

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def build():
    """Random weights and statistics, exact in float16."""
    torch.manual_seed(18)
    model = ResNet18(CHANNELS, CLASSES)
    with torch.no_grad():
        for name, x in list(model.named_parameters()) + list(model.named_buffers()):
            if "num_batches" in name:
                continue
            if "running_var" in name or (x.dim() == 1 and name.endswith("weight")):
                x.uniform_(0.5, 1.5)
            elif x.dim() == 1:
                x.normal_(0, 0.2)
            x.copy_(x.half())
    return model


def evaluate(model, picture, labels, dtype):
    """Evaluation first: the forward pass in training moves the running statistics."""
    model.to(dtype).eval()
    x, y = picture.to(dtype).requires_grad_(), labels.to(dtype)
    scores = model(x)
    log_p = -nn.functional.binary_cross_entropy(scores, y, reduction="sum")
    gradient = torch.autograd.grad(log_p, x)[0]
    out = {"eval.scores": scores.detach(), "eval.gradient": gradient}
    model.train()
    scores = model(picture.to(dtype))
    loss = nn.functional.binary_cross_entropy(scores, y)
    loss.backward()
    out |= {"train.scores": scores.detach(), "train.loss": loss.detach().reshape(1)}
    out |= {f"grad.{name}": p.grad for name, p in model.named_parameters()}
    return out | {f"after.{name}": b.detach().clone() for name, b in model.named_buffers() if "running" in name}


def distances(truth, single):
    """As test_evaluator.c measures: the largest difference, relative to the truth's largest value."""
    relative = lambda names: max(float((single[n].double() - truth[n]).abs().max() / truth[n].abs().max())
                                 for n in names)
    gradients = [n for n in truth if n.startswith("grad.")]
    return torch.tensor([relative(["train.scores"]), relative(gradients), relative(["eval.scores"]),
                         relative(["eval.gradient"])], dtype=torch.float64)


def check_against_torchvision():
    import torchvision
    theirs = torchvision.models.resnet18()
    theirs.fc = nn.Sequential(nn.Linear(512, CLASSES), nn.Sigmoid())
    ours = ResNet18(64, CLASSES)
    a, b = ours.state_dict(), theirs.state_dict()
    assert list(a) == list(b) and all(a[k].shape == b[k].shape and a[k].dtype == b[k].dtype for k in a)
    ours.load_state_dict(b)
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(ours.eval()(x), theirs.eval()(x)) and torch.equal(ours.train()(x), theirs.train()(x))
    print(f"torchvision {torchvision.__version__}: {len(a)} names and shapes, outputs of both modes: the same")


def main():
    directory = os.path.join("tests", "vectors", "evaluator")
    os.makedirs(directory, exist_ok=True)
    model = build()
    generator = torch.Generator().manual_seed(48)
    picture = (torch.rand(PICTURES, 3, SIZE, SIZE, generator=generator) * 2 - 1).half()
    labels = (torch.rand(PICTURES, CLASSES, generator=generator) < 0.1).float()
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    single = evaluate(build(), picture, labels, torch.float32)
    truth = evaluate(model, picture, labels, torch.float64)
    names = json.load(open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "data",
                                        "objects.json")))
    config = {"_class_name": "ResNet18", "width": CHANNELS / 64, "sample_size": SIZE,
              "class_names": sorted(names, key=names.get)}
    json.dump(config, open(os.path.join(directory, "config.json"), "w"), indent=1)
    save_file(state, os.path.join(directory, "model.safetensors"))
    out = {k: (v if k in ("eval.scores", "train.scores", "train.loss") else v.float()).contiguous()
           for k, v in truth.items()}
    save_file(out | {"picture": picture, "labels": labels, "float32": distances(truth, single)},
              os.path.join(directory, "truth.safetensors"))


if __name__ == "__main__":
    check_against_torchvision() if "--check" in sys.argv else main()
