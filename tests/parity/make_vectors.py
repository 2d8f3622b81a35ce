"""Makes tests/vectors/*.safetensors: what PyTorch and diffusers compute, for tests/test_vectors.c to compare ddpm.c
with.

    python tests/parity/make_vectors.py [DIRECTORY]        (default tests/vectors)

Inputs are float32; results are torch's in float64 on them, so that they are the truth next to float32's error. Beside
a result NAME of one operation stands NAME.bound: how far a float32 computation may be from it, element by element,
whatever order its sums are taken in. The derivations stand next to the operations below. They use

    u = 2^-24, the largest relative error of one rounded float32 operation,
    gamma(k) = k u / (1 - k u), that of k of them (Higham, Accuracy and Stability of Numerical Algorithms, 3.1):
               a sum of K products in any order errs by at most gamma(K) sum |x_i w_i|.

A missing NAME.bound means: exactly this value.

Contents: bounds; operations; networks; sampling from one (schedules: make_scheduler_vectors.py); the optimiser.
"""
import math
import os
import sys
import warnings

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file

import networks

warnings.filterwarnings("ignore")
FLOAT_MIN = 2.0 ** -126  # below it float32 loses bits one by one: every bound allows this much


# ---- Bounds ---------------------------------------------------------------------------------------------------------

def gamma(k):
    u = 2.0 ** -24
    return k * u / (1 - k * u)


def gradients_of(forward, inputs, wanted, dy):
    """Output and, for the inputs in `wanted`, the gradients of sum(dy * output), in float64."""
    x = [t.double().clone().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
    y = forward(*x)
    grads = torch.autograd.grad(y, [x[i] for i in wanted], dy.double()) if wanted else []
    return y.detach(), dict(zip(wanted, grads))


class Operations:
    """Collects the cases. A case OP/NAME holds attr (see test_vectors.c for their order), its inputs x0, x1, ..., the
    output y, the upstream gradient dy and the gradients d0, d1, ... of the inputs that have one."""

    def __init__(self):
        self.tensors = {}

    def add(self, name, attr, inputs, forward, wanted, bounds, dy=None, after=None):
        """forward: the operation in torch. bounds(x, dy, y, d) -> (bound of y, {i: bound of d[i]}), all float64; None:
        exact. after: {name: (value, bound)} of further results."""
        seed = networks.generator("dy", name)
        x = [t.float() for t in inputs]
        shape = forward(*[t.double() for t in x]).shape
        dy = torch.randn(shape, generator=seed) if dy is None else dy
        y, d = gradients_of(forward, x, wanted, dy)
        bound_y, bound_d = bounds([t.double() for t in x], dy.double(), y, d)
        put = lambda key, t: self.tensors.__setitem__(f"{name}/{key}", t.contiguous())
        put("attr", torch.tensor(attr, dtype=torch.float64).reshape(-1))
        for i, t in enumerate(x):
            put(f"x{i}", t)
        put("dy", dy.float())
        results = [("y", y, bound_y)] + [(f"d{i}", d[i], bound_d[i]) for i in wanted]
        results += [(key, value, bound) for key, (value, bound) in (after or {}).items()]
        for key, value, bound in results:
            put(key, value)
            if bound is not None:  # rounded up to float32
                put(key + ".bound", ((bound + FLOAT_MIN) * (1 + 2.0 ** -22)).expand(value.shape).float())


def linear_in_each(forward, terms_y, terms_d, abs_forward=None):
    """Bounds of an operation whose output is a sum of products of its inputs: run on absolute values it gives, forward
    and backward, the sums of absolute values that gamma(terms) multiplies. terms: how many rounded operations at most
    lie between an input and the result: K products and K - 1 additions for a sum of K, a constant's own rounding."""
    def bounds(x, dy, y, d):
        mass, mass_d = gradients_of(abs_forward or forward, [t.abs() for t in x], sorted(d), dy.abs())
        return (gamma(terms_y) * mass if terms_y else None,
                {i: gamma(terms_d[i]) * mass_d[i] if terms_d[i] else None for i in d})
    return bounds


# ---- Operations -----------------------------------------------------------------------------------------------------

def conv2d(ops, rng):
    """y = sum over Cin k k of x w, + b: K + 1 roundings. dx sums Cout k k terms, dw and db sum N Ho Wo; parameters'
    gradients are added to what is there: one more."""
    def case(name, n, cin, cout, k, h, w, stride, start, end, bias=True, spread=0.0):
        x = [rng(n, cin, h, w), rng(cout, cin, k, k)] + ([rng(cout)] if bias else [])
        if spread:  # magnitudes from 10^-spread to 10^spread: small terms next to large ones
            x = [t * 10 ** (spread * (2 * torch.rand(t.shape, generator=rng.generator) - 1)) for t in x]
        def forward(x, weight, bias=None):
            return F.conv2d(F.pad(x, (start, end, start, end)), weight, bias, stride)
        out = forward(*x)
        pixels = n * out.shape[2] * out.shape[3]
        ops.add(f"conv2d/{name}", [stride, start, end], x, forward, list(range(len(x))),
                linear_in_each(forward, cin * k * k + 1, {0: cout * k * k, 1: pixels + 1, 2: pixels + 1}))
    case("k3", 2, 3, 5, 3, 6, 7, 1, 1, 1)
    case("k3_even", 2, 4, 8, 3, 8, 8, 1, 1, 1)
    case("k3_one_channel", 1, 1, 1, 3, 5, 4, 1, 1, 1)
    case("k3_no_bias", 2, 5, 2, 3, 5, 6, 1, 1, 1, bias=False)
    case("k3_no_padding", 2, 3, 4, 3, 5, 6, 1, 0, 0)
    case("k3_one_pixel", 3, 4, 3, 3, 1, 1, 1, 1, 1)
    case("k3_stride2", 2, 3, 4, 3, 8, 6, 2, 1, 1)
    case("k3_stride2_odd", 2, 3, 4, 3, 7, 5, 2, 1, 1)
    case("k3_stride2_end", 2, 4, 3, 3, 8, 6, 2, 0, 1)      # downsample_padding 0
    case("k3_stride2_end_odd", 2, 3, 3, 3, 7, 5, 2, 0, 1)
    case("k1", 2, 7, 5, 1, 4, 5, 1, 0, 0)
    case("k1_stride2", 2, 4, 6, 1, 5, 6, 2, 0, 0)
    case("k7_stride2", 1, 3, 4, 7, 12, 11, 2, 3, 3)        # the first layer of ResNet18
    case("k5_wide_padding", 1, 2, 2, 5, 4, 3, 1, 3, 4)
    case("k3_many_channels", 1, 33, 9, 3, 3, 5, 1, 1, 1)
    case("k3_magnitudes", 2, 6, 5, 3, 6, 5, 1, 1, 1, spread=4.0)
    case("k3_wide", 1, 2, 3, 3, 3, 37, 1, 1, 1)


def linear(ops, rng):
    """A 1x1 convolution: K = in + 1; dx sums `out` terms, dw and db sum N H W, and one more."""
    def case(name, shape, out, bias=True):
        x = [rng(*shape), rng(out, shape[1])] + ([rng(out)] if bias else [])
        forward = lambda x, w, b=None: F.linear(x.movedim(1, -1), w, b).movedim(-1, 1)
        rows = x[0].numel() // shape[1]
        ops.add(f"linear/{name}", [], x, forward, list(range(len(x))),
                linear_in_each(forward, shape[1] + 1, {0: out, 1: rows + 1, 2: rows + 1}))
    case("vector", (3, 13, 1, 1), 9)
    case("vector_no_bias", (2, 8, 1, 1), 16, bias=False)
    case("one", (1, 1, 1, 1), 1)
    case("pixels", (2, 5, 3, 4), 7)
    case("pixels_no_bias", (2, 6, 2, 3), 3, bias=False)
    case("wide", (2, 70, 1, 1), 33)


def norm_bounds(x, weight, mean, var, eps, count, dy, d, axes, shape, batch_statistics=True):
    """Normalisation y = (x - mean) r w + b with r = (var + eps)^-1/2 over `count` values. mean errs by e_m =
    gamma(count) mean|x| (its sum in any order), and var, the mean of squared distances from that mean, by gamma(count
    + 2) var + e_m^2, so r relatively by e_r = half of that over var + eps, and 4 u for its own operations. Hence
      xhat = (x - mean) r  errs by  E = r (e_m + u |x - mean|) + |xhat| (e_r + u),
      y                    by       |w| E + 3 u |w xhat| + 2 u |b|.
    Backward, with g = w dy, A = mean g, B = mean(g xhat):
      dx = r (g - A - xhat B) errs by e_r |dx| + r (gamma(count+2) (mean|g| + |xhat| mean|g xhat|) + mean(|g| E) |xhat|
                                                   + E |B| + 4 u (|g| + |A| + |xhat B|)),
      dw = sum dy xhat by sum(|dy| E) + gamma(K+2) sum|dy xhat|,  db by gamma(K+2) sum|dy|, K terms each.
    With given statistics (batch norm's eval mode) e_m = 0, e_r = 4 u, dx = r g."""
    u = 2.0 ** -24
    average = lambda t: t.mean(dim=axes, keepdim=True)
    r = (var + eps) ** -0.5
    e_m = gamma(count) * average(x.abs()) if batch_statistics else torch.zeros_like(mean)
    e_r = ((gamma(count + 2) * var + e_m ** 2) / (2 * (var + eps)) if batch_statistics else 0) + 4 * u
    xhat = (x - mean) * r
    E = r * (e_m + u * (x - mean).abs()) + xhat.abs() * (e_r + u)
    w, b, g = weight[0], weight[1], dy.reshape(x.shape) * weight[0]
    bound_y = w.abs() * E + 3 * u * (w * xhat).abs() + 2 * u * b.abs()
    if batch_statistics:
        A, B = average(g), average(g * xhat)
        bound_x = e_r * d[0].reshape(x.shape).abs() + r * (
            gamma(count + 2) * (average(g.abs()) + xhat.abs() * average((g * xhat).abs()))
            + average(g.abs() * E) * xhat.abs() + E * B.abs() + 4 * u * (g.abs() + A.abs() + (xhat * B).abs()))
    else:
        bound_x = (e_r + 2 * u) * (r * g).abs()
    a = dy.abs()
    terms = dy.numel() // shape[1]
    channels = lambda t: t.reshape(shape).sum(dim=(0, 2, 3))
    bounds = {0: bound_x.reshape(shape)}
    if 1 in d:
        bounds[1] = channels((a.reshape(x.shape) * E)) + gamma(terms + 2) * channels((dy.reshape(x.shape) * xhat).abs())
        bounds[2] = gamma(terms + 2) * channels(a.reshape(x.shape))
    return bound_y.reshape(shape), bounds


def group_norm(ops, rng):
    def case(name, n, c, h, w, groups, eps=1e-5, offset=0.0, scale=1.0):
        x = [rng(n, c, h, w) * scale + offset, 1 + 0.3 * rng(c), rng(c)]
        forward = lambda x, weight, bias: F.group_norm(x, groups, weight, bias, eps)
        def bounds(x, dy, y, d):
            grouped = x[0].reshape(n, groups, c // groups, h, w)
            axes = (2, 3, 4)
            var, mean = torch.var_mean(grouped, dim=axes, keepdim=True, unbiased=False)
            affine = [t.reshape(1, groups, c // groups, 1, 1) for t in x[1:]]
            return norm_bounds(grouped, affine, mean, var, eps, grouped[0, 0].numel(), dy, d, axes, (n, c, h, w))
        ops.add(f"group_norm/{name}", [groups, eps], x, forward, [0, 1, 2], bounds)
    case("groups", 2, 8, 4, 5, 4)
    case("one_group", 2, 3, 4, 4, 1)
    case("one_channel_each", 2, 4, 3, 5, 4)
    case("offset", 2, 6, 4, 4, 3, offset=1000.0)           # a one-pass E x^2 - (E x)^2 in float32 fails here
    case("offset_negative", 1, 4, 4, 4, 2, offset=-300.0, scale=0.1)
    case("small", 2, 4, 3, 3, 2, scale=1e-3)               # eps counts
    case("large", 2, 4, 3, 3, 2, eps=1e-6, scale=1e4)
    case("constant", 1, 4, 2, 3, 2, offset=5.0, scale=0.0) # variance 0
    case("pixel", 2, 8, 1, 1, 2)


def batch_norm(ops, rng):
    """Running statistics after training: r' = (1 - m) r + m s, s the batch's mean or unbiased variance: the error of s
    (see norm_bounds) times m, and 4 roundings."""
    def case(name, n, c, h, w, training, eps=1e-5, momentum=0.1, offset=0.0):
        x = [rng(n, c, h, w) * (1 + torch.arange(c).reshape(1, c, 1, 1)) + offset, 1 + 0.3 * rng(c), rng(c),
             rng(c) * 0.5 + offset, 0.5 + rng(c) ** 2]
        def forward(x, weight, bias, running_mean, running_var):
            running = running_mean.clone(), running_var.clone()
            return F.batch_norm(x, *running, weight, bias, bool(training), momentum, eps)
        axes, count = (0, 2, 3), n * h * w
        x64 = [t.double() for t in x]
        var, mean = torch.var_mean(x64[0], dim=axes, keepdim=True, unbiased=False)
        if not training:
            mean, var = (t.reshape(1, c, 1, 1) for t in x64[3:])
        def bounds(x, dy, y, d):
            affine = [t.reshape(1, c, 1, 1) for t in x[1:3]]
            return norm_bounds(x[0], affine, mean, var, eps, count, dy, d, axes, (n, c, h, w), bool(training))
        after = {"x3.after": (x64[3], None), "x4.after": (x64[4], None)}
        if training:
            running = [x64[3].clone(), x64[4].clone()]
            F.batch_norm(x64[0], running[0], running[1], training=True, momentum=momentum, eps=eps)
            e_m = gamma(count) * x64[0].abs().mean(dim=axes)
            e_v = (gamma(count + 3) * var.flatten() + e_m ** 2) * count / (count - 1)
            after = {"x3.after": (running[0], momentum * e_m + gamma(4) * (x64[3].abs() + mean.flatten().abs())),
                     "x4.after": (running[1], momentum * e_v + gamma(4) * (x64[4] + 2 * var.flatten()))}
        # a graph that does not train gives parameters no gradient: with running statistics only d0 is there
        ops.add(f"batch_norm/{name}", [training, eps, momentum], x, forward, [0, 1, 2] if training else [0], bounds,
                after=after)
    case("train", 3, 4, 3, 5, 1)
    case("train_vector", 5, 3, 1, 1, 1, momentum=0.3)
    case("train_offset", 2, 3, 4, 4, 1, offset=200.0)
    case("eval", 2, 4, 3, 3, 0)


def activation(ops, rng):
    """With e^-x good to 2 u, s = 1/(1 + e^-x) errs relatively by 4 u, 1 - s by 4 u s + u. So
      silu:    y by 6 u |y|;  dx = dy s (1 + x (1 - s)) by 12 u |dy| s (1 + |x|)
      sigmoid: y by 4 u y;    dx = dy s (1 - s) by 12 u |dy| s.       relu is exact, its gradient at 0 is 0.
    (8 u where 6 u or 4 u would do leaves room for an e^-x good to 4 u.)"""
    g = rng.generator
    x = torch.cat([rng(40) * 3, torch.tensor([0.0, -0.0, 1e-30, -1e-30, 20.0, -20.0, 90.0, -80.0, 1e4, -1e4,
                                              -1.2784645, 1e-4])])
    x = x[torch.randperm(len(x), generator=g)].reshape(2, 2, 13, 1)
    for kind, (name, forward) in enumerate([("silu", F.silu), ("relu", F.relu), ("sigmoid", torch.sigmoid)]):
        def bounds(x, dy, y, d):
            s = torch.sigmoid(x[0])
            if name == "relu":
                return None, {0: None}
            return gamma(8) * y.abs(), {0: gamma(12) * dy.abs() * s * (1 + x[0].abs() if name == "silu" else 1)}
        ops.add(f"activation/{name}", [kind], [x], forward, [0], bounds)


def attention(ops, rng):
    """Per head, over tokens: s = q.k / sqrt(d), p = softmax(s), o = p v.
      s errs by e = gamma(d + 3) |q|.|k| / sqrt(d); with E its largest value in a row and L = max |s| + log T,
      p relatively by P = 2 (2 E + 2 u L + 3 u) + gamma(T + 1)
         (numerator and denominator; s - max s, or s - log sum e^s, rounds to 2 u L; exp is good to 2 u; a sum of T
         terms),
      o by sum p |v| (P + gamma(T + 1)),  dv by sum p |do| (P + gamma(T + 1)).
      ds = p (do.v - D), D = sum p do.v = do.o; with M = |do|.|v| and its mean m = sum p M:
      ds errs by S = p (M + m) (2 P + gamma(d + T + 5)),
      dq by sum |k| (S + gamma(T + 3) |ds|) / sqrt(d), dk likewise with q."""
    def case(name, n, heads, width, h, w, scale=1.0):
        c, t = heads * width, h * w
        x = [rng(n, c, h, w) * scale, rng(n, c, h, w) * scale, rng(n, c, h, w)]
        split = lambda x: x.reshape(n, heads, width, t).transpose(2, 3)
        merge = lambda x: x.transpose(2, 3).reshape(n, c, h, w)
        forward = lambda q, k, v: merge(F.scaled_dot_product_attention(split(q), split(k), split(v)))
        def bounds(x, dy, y, d):
            u = 2.0 ** -24
            q, k, v, do = (split(a) for a in (*x, dy))
            scores = q @ k.transpose(2, 3) * width ** -0.5
            p = torch.softmax(scores, dim=-1)
            error = gamma(width + 3) * (q.abs() @ k.abs().transpose(2, 3)) * width ** -0.5
            E = error.amax(dim=-1, keepdim=True)
            L = scores.abs().amax(dim=-1, keepdim=True) + math.log(t)
            P = 2 * (2 * E + 2 * u * L + 3 * u) + gamma(t + 1)
            bound_y = (p * (P + gamma(t + 1))) @ v.abs()
            bound_v = (p * (P + gamma(t + 1))).transpose(2, 3) @ do.abs()
            M = do.abs() @ v.abs().transpose(2, 3)
            m = (p * M).sum(dim=-1, keepdim=True)
            dp = do @ v.transpose(2, 3)
            ds = p * (dp - (p * dp).sum(dim=-1, keepdim=True))
            S = p * (M + m) * (2 * P + gamma(width + t + 5)) + gamma(t + 3) * ds.abs()
            return merge(bound_y), {0: merge(S @ k.abs()) * width ** -0.5,
                                    1: merge(S.transpose(2, 3) @ q.abs()) * width ** -0.5, 2: merge(bound_v)}
        ops.add(f"attention/{name}", [heads], x, forward, [0, 1, 2], bounds)
    case("one_head", 2, 1, 8, 3, 4)
    case("heads", 2, 4, 4, 2, 5)
    case("width_one", 1, 6, 1, 2, 3)
    case("width_odd", 2, 3, 5, 3, 3)
    case("one_token", 2, 2, 4, 1, 1)
    case("big_logits", 2, 2, 4, 3, 3, scale=6.0)
    case("many_tokens", 1, 1, 8, 8, 8)
    case("flat", 1, 2, 3, 2, 2, scale=0.0)


def add(ops, rng):
    """(a + b) scale: the sum, the product and the constant's own rounding. b (N,C,1,1) sums H W terms."""
    def case(name, shape, shape_b, scale):
        forward = lambda a, b: (a + b) * scale
        pixels = shape[2] * shape[3] if shape_b != shape else 1
        exact = scale == 1.0
        ops.add(f"add/{name}", [scale], [rng(*shape), rng(*shape_b)], forward, [0, 1],
                linear_in_each(forward, 1 if exact else 3,
                               {0: 0 if exact else 2, 1: 0 if exact and pixels == 1 else 2 + pixels}))
    case("plain", (2, 3, 4, 5), (2, 3, 4, 5), 1.0)
    case("scaled", (2, 3, 4, 5), (2, 3, 4, 5), 1 / 1.7)
    case("broadcast", (2, 5, 3, 4), (2, 5, 1, 1), 1.0)
    case("broadcast_scaled", (2, 5, 3, 4), (2, 5, 1, 1), 0.3)


def moved(ops, rng):
    """Operations that move values: exact forward, and backward but for the sum of an enlarged pixel's f^2 gradients."""
    def case(name, attr, shapes, forward, terms=0):
        wanted = list(range(len(shapes)))
        ops.add(name, attr, [rng(*s) for s in shapes], forward, wanted,
                linear_in_each(forward, 0, {i: terms for i in wanted}))
    cat = lambda a, b: torch.cat([a, b], dim=1)
    case("concat/uneven", [], [(2, 3, 4, 5), (2, 5, 4, 5)], cat)
    case("concat/vector", [], [(3, 1, 1, 1), (3, 4, 1, 1)], cat)
    case("slice/middle", [2, 3], [(2, 7, 3, 2)], lambda x: x[:, 2:5])
    case("slice/start", [0, 4], [(2, 8, 1, 1)], lambda x: x[:, 0:4])
    case("slice/all", [0, 3], [(2, 3, 2, 2)], lambda x: x[:, 0:3] * 1)
    up = lambda f: lambda x: F.interpolate(x, scale_factor=f, mode="nearest")
    case("upsample/2", [2], [(2, 3, 4, 5)], up(2), terms=4)
    case("upsample/3", [3], [(2, 2, 3, 2)], up(3), terms=9)
    case("upsample/pixel", [2], [(2, 4, 1, 1)], up(2), terms=4)
    case("pixel_unshuffle/2", [2], [(2, 3, 4, 6)], lambda x: F.pixel_unshuffle(x, 2))
    case("pixel_unshuffle/3", [3], [(1, 2, 6, 3)], lambda x: F.pixel_unshuffle(x, 3))
    case("pixel_shuffle/2", [2], [(2, 12, 2, 3)], lambda x: F.pixel_shuffle(x, 2))
    case("pixel_shuffle/3", [3], [(1, 18, 1, 2)], lambda x: F.pixel_shuffle(x, 3))


def pool(ops, rng):
    """The mean sums k^2 values and multiplies; its backward sums those of the windows a pixel lies in, at most k^2.
    The maximum is exact; where windows overlap backward sums as many gradients. Of equal values the first wins."""
    def case(name, kind, shape, k, stride, pad, x=None):
        if kind == 0:
            forward = lambda x: F.max_pool2d(x, k, stride, pad)
            overlap = math.ceil(k / stride) ** 2
            def bounds(x, dy, y, d):
                _, mass = gradients_of(forward, x, [0], dy.abs())
                return None, {0: gamma(overlap) * mass[0] if overlap > 1 else None}
        else:
            forward = lambda x: F.avg_pool2d(x, k, stride, pad, count_include_pad=True)
            bounds = linear_in_each(forward, k * k + 2, {0: k * k + 2})
        ops.add(f"pool/{name}", [kind, k, stride, pad], [rng(*shape) if x is None else x], forward, [0], bounds)
    case("max_k3s2p1", 0, (2, 3, 7, 8), 3, 2, 1)
    case("max_k2s2", 0, (2, 2, 6, 4), 2, 2, 0)
    case("max_negative_border", 0, None, 3, 2, 1, x=-1 - rng(1, 2, 5, 5).abs())  # the padding must not win
    case("max_ties", 0, None, 3, 2, 1, x=F.relu(rng(2, 2, 6, 6) - 0.5))         # after a ReLU most are 0
    case("max_all", 0, (2, 3, 4, 4), 4, 4, 0)
    case("mean_k2s2", 1, (2, 3, 4, 6), 2, 2, 0)
    case("mean_k3s2p1", 1, (2, 2, 7, 6), 3, 2, 1)
    case("mean_k3s1p1", 1, (1, 2, 4, 4), 3, 1, 1)
    case("mean_all", 1, (3, 4, 5, 5), 5, 5, 0)


def modulate(ops, rng):
    """x (1 + s) + h: three roundings; dx two; ds and dh sum H W terms."""
    def case(name, n, c, h, w):
        def forward(x, both):
            scale, shift = both.chunk(2, dim=1)
            return x * (1 + scale) + shift
        ops.add(f"modulate/{name}", [], [rng(n, c, h, w), rng(n, 2 * c, 1, 1)], forward, [0, 1],
                linear_in_each(forward, 3, {0: 2, 1: h * w + 1}))
    case("pixels", 2, 5, 3, 4)
    case("vector", 3, 4, 1, 1)


def affine(ops, rng):
    """scale x / d + shift: two constants' roundings, product, quotient, sum."""
    def case(name, scale, shift, divisor):
        x = [rng(3, 2, 4, 3)] + ([torch.tensor(divisor).reshape(3, 1, 1, 1)] if divisor else [])
        def forward(x, d=None, scale=scale, shift=shift):
            return scale * (x / d if d is not None else x) + shift
        absolute = lambda x, d=None: forward(x, d, abs(scale), abs(shift))
        ops.add(f"affine/{name}", [scale, shift], x, forward, [0], linear_in_each(forward, 5, {0: 4}, absolute))
    case("center", 2.0, -1.0, None)       # center_input_sample
    case("divide", 1.0, 0.0, [0.5, 3.0, 999.0])  # the end of a fourier UNet
    case("all", -0.7, 0.3, [2.0, -3.0, 1e-3])


def time_embedding(ops, rng):
    """Angle t w_i with w_i = exp(e_i), e_i = -ln(10000) i / (half - shift): e_i errs by 3 u |e_i|, w_i relatively by
    that and 2 u, the product by u more; sine and cosine of the angle by its absolute error, and 2 u. diffusers itself
    computes these in float32, where its own error at t = 999 reaches some 6e-5: the truth here is float64's."""
    def case(name, t, dim, flip, shift):
        t = torch.tensor(t).reshape(-1, 1, 1, 1)
        def forward(t):
            half = dim // 2
            frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64) / (half - shift))
            angle = t.flatten()[:, None] * frequency[None, :]
            parts = [torch.cos(angle), torch.sin(angle)] if flip else [torch.sin(angle), torch.cos(angle)]
            return torch.cat(parts + [torch.zeros(len(t), dim % 2)], dim=1)[:, :, None, None]
        def bounds(x, dy, y, d):
            half = dim // 2
            e = math.log(10000) * torch.arange(half, dtype=torch.float64) / (half - shift)
            angle = (x[0].reshape(-1, 1) * torch.exp(-e)).abs()
            one = angle * gamma(1) * (3 * e + 3) + gamma(2)
            both = torch.cat([one, one, torch.zeros(len(t), dim % 2)], dim=1)
            return both.reshape(y.shape), {}
        ops.add(f"time_embedding/{name}", [dim, flip, shift], [t], forward, [], bounds)
    times = [0.0, 1.0, 12.75, 999.0]
    case("default", times, 16, 1, 0)
    case("no_flip", times, 16, 0, 0)
    case("shift", times, 12, 1, 1)
    case("shift_no_flip", times, 12, 0, 1)
    case("odd", times, 7, 1, 0)
    case("odd_no_flip", times, 9, 0, 0.5)
    case("wide", [1999.0, 0.001, 500.5], 128, 1, 0)
    case("negative", [-3.5], 4, 1, 0)


def fourier_embedding(ops, rng):
    """Angle 2 pi w log t: log good to 2 u, 2 pi rounded, three products: gamma(7) of it; sine and cosine 2 u more."""
    t = torch.tensor([0.01, 1.0, 1.0001, 37.5, 999.0]).reshape(-1, 1, 1, 1)
    def forward(t, weight):
        angle = torch.log(t.flatten())[:, None] * weight[None, :] * 2 * math.pi
        return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)[:, :, None, None]
    def bounds(x, dy, y, d):
        angle = (torch.log(x[0].flatten())[:, None] * x[1][None, :] * 2 * math.pi).abs()
        return (torch.cat([angle, angle], dim=1) * gamma(7) + gamma(2)).reshape(y.shape), {}
    ops.add("fourier_embedding/scale16", [], [t, rng(6) * 16], forward, [], bounds)
    ops.add("fourier_embedding/one", [], [t, rng(1)], forward, [], bounds)


def embedding(ops, rng):
    """Exact forward; a row of the table sums the gradients of the pictures that chose it, onto what is there."""
    index = torch.tensor([2.0, 0.0, 2.0, 4.0, 2.0]).reshape(5, 1, 1, 1)
    forward = lambda i, table: F.embedding(i.flatten().long(), table)[:, :, None, None]
    ops.add("embedding/repeated", [], [index, rng(6, 7)], forward, [1], linear_in_each(forward, 0, {1: 4}))


def losses(ops, rng):
    """mse: sum of (x - t)^2, the difference rounded once: gamma(K + 3) times the sum; gradients 2 (x - t) dy by
    gamma(3). bce: -(t max(log p, -100) + (1 - t) max(log(1 - p), -100)): 1 - p may be rounded, which moves its
    logarithm by u absolutely; so sum of gamma(K + 5) (|term| + 1 where t < 1). dp = dy (p - t) / max(p (1 - p), 1e-12)
    by gamma(6)."""
    def mse(name, shape, offset=0.0):
        forward = lambda x, t: ((x - t) ** 2).sum(dim=(1, 2, 3), keepdim=True)
        x = [rng(*shape) + offset, rng(*shape) + offset]
        def bounds(x, dy, y, d):
            return gamma(x[0][0].numel() + 3) * y, {0: gamma(3) * d[0].abs(), 1: gamma(3) * d[1].abs()}
        ops.add(f"mse/{name}", [], x, forward, [0, 1], bounds)
    mse("pixels", (3, 3, 4, 5))
    mse("offset", (2, 2, 3, 3), offset=100.0)

    def bce(name, p, t):
        forward = lambda p, t: F.binary_cross_entropy(p, t, reduction="none").sum(dim=(1, 2, 3), keepdim=True)
        def bounds(x, dy, y, d):
            p, t = x
            terms = t * torch.log(p).clamp(min=-100).abs() + (1 - t) * (torch.log1p(-p).clamp(min=-100).abs() + 1)
            return gamma(p[0].numel() + 5) * terms.sum(dim=(1, 2, 3), keepdim=True), {0: gamma(6) * d[0].abs()}
        ops.add(f"bce/{name}", [], [p, t], forward, [0], bounds)
    g = rng.generator
    bce("scores", torch.sigmoid(rng(3, 24, 1, 1) * 3), (torch.rand(3, 24, 1, 1, generator=g) < 0.2).float())
    bce("edges", torch.tensor([[0.0, 0.0, 1.0, 1.0], [1e-7, 0.5, 0.99999994, 0.25]]).reshape(2, 4, 1, 1),
        torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.3, 0.0, 1.0]]).reshape(2, 4, 1, 1))


def dropout(ops, rng):
    """Which values fall is chance; those that stay are x / (1 - p), their gradients dy / (1 - p). y, d0 hold these for
    all."""
    for name, p in (("zero", 0.0), ("quarter", 0.25)):
        forward = lambda x: x / (1 - p)
        ops.add(f"dropout/{name}", [p], [rng(2, 3, 10, 15)], forward, [0],
                linear_in_each(forward, 3 if p else 0, {0: 3 if p else 0}))


def operations():
    ops = Operations()
    for build in (conv2d, linear, group_norm, batch_norm, activation, attention, add, moved, pool, modulate, affine,
                  time_embedding, fourier_embedding, embedding, losses, dropout):
        g = networks.generator("operations", build.__name__)
        rng = lambda *shape: torch.randn(*shape, generator=g)
        rng.generator = g
        build(ops, rng)
    return ops.tensors


# ---- Networks -------------------------------------------------------------------------------------------------------
# weight.NAME in float16 (exactly what was used), grad.NAME in float32, sample, timestep, labels (or class_labels),
# target; prediction and loss in float64; label (num_classes, hidden_dim, embedding_dim) if there is a label encoder;
# float32: how far torch's own float32 prediction and gradients are from this truth, measured as in test_vectors.c.
# Metadata: UNet2DModel's config. (One pair only: safetensors writes several in any order.)

def gradient_distance(gradients, reference):
    """Largest |g - r| / max(|r|, 1e-2 |r_all| / sqrt(tensors)), norms by tensor. The floor, a hundredth of a typical
    tensor's norm, judges gradients that are zero but for rounding: biases before a norm of one channel a group,
    to_k.bias."""
    total = math.sqrt(sum(float(r.double().pow(2).sum()) for r in reference.values()))
    floor = 1e-2 * total / math.sqrt(len(reference))
    return max(float((gradients[k].double() - r.double()).norm()) / max(float(r.double().norm()), floor)
               for k, r in reference.items())


def network(spec):
    model = networks.build(spec, coarse=True)
    sample, t, labels, target = networks.inputs(spec, model)
    prediction, loss, grads = networks.truth(model, sample, t, labels, target)
    prediction32, _, grads32 = networks.evaluate(model, sample, t, labels, target)
    tensors = {f"weight.{name}": p.detach().half() for name, p in model.named_arrays()}
    tensors |= {f"grad.{name}": g.float() for name, g in grads.items()}
    tensors |= {"sample": sample, "timestep": t, "target": target, "prediction": prediction, "loss": loss.reshape(1)}
    if labels is not None:
        tensors[networks.class_labels(spec)] = labels.float()
    if model.label_encoder is not None:
        tensors["label"] = torch.tensor(list(spec["label"]) + [model.unet.time_embedding.linear_2.out_features])
    distance = float((prediction32 - prediction).abs().max() / prediction.abs().max())
    tensors["float32"] = torch.tensor([distance, gradient_distance(grads32, grads)], dtype=torch.float64)
    return tensors, {"config": networks.config_json(model)}


# ---- Sampling from a network ----------------------------------------------------------------------------------------

class StoredNoise:
    """Stands for diffusers' randn_tensor: hands out z and keeps it."""

    def __init__(self, key):
        self.generator, self.drawn = networks.generator("noise", key), []

    def __call__(self, shape, **_):
        self.drawn.append(torch.randn(tuple(shape), generator=self.generator))
        return self.drawn[-1].double()


def run_sampler(scheduler, steps, eta, x, predict, noise):
    """x after each step and each step's estimate of x_0, in float64 but for the coefficients: these are diffusers'
    own, in float32, where 1 - alpha_t / alpha_(t-1) loses up to three digits at small t. So they have to be computed
    in its order."""
    import diffusers.schedulers.scheduling_ddim as ddim, diffusers.schedulers.scheduling_ddpm as ddpm
    ddpm.randn_tensor = ddim.randn_tensor = noise
    scheduler.set_timesteps(steps)
    x, path, images = x.double(), [], []
    for t in scheduler.timesteps:
        before = len(noise.drawn)
        extra = {} if eta is None else {"eta": eta}
        out = scheduler.step(predict(x, t), t, x, **extra)
        x = out.prev_sample
        path.append(x)
        images.append(out.pred_original_sample)
        if len(noise.drawn) == before:  # no noise at this step: a zero keeps the lists alike
            noise.drawn.append(torch.zeros(x.shape))
    return scheduler.timesteps, torch.stack(path), torch.stack(images)


def network_sampling():
    """The network 'lab' of TINY drawn from with both samplers, 10 steps of T = 1000."""
    spec = next(s for s in networks.TINY if s["name"] == "lab")
    model = networks.build(spec, coarse=True)
    _, _, labels, _ = networks.inputs(spec, model)
    out = {"labels": labels}
    for name, cls, eta in (("ddpm", DDPMScheduler, None), ("ddim", DDIMScheduler, 0.0)):
        start = torch.randn(len(labels), 3, 8, 8, generator=networks.generator("network sampling", name))
        for precision in (torch.float32, torch.float64):
            noise = StoredNoise("network " + name)
            model.to(precision)
            with torch.no_grad():
                def predict(x, t):
                    t = t.repeat(len(labels))
                    return model(*(a.to(precision) for a in (x, t, labels))).double()
                scheduler = cls(beta_schedule="squaredcos_cap_v2")
                times, path, _ = run_sampler(scheduler, 10, eta, start, predict, noise)
            if precision == torch.float32:
                path32 = path
        out |= {f"{name}/start": start, f"{name}/noise": torch.stack(noise.drawn), f"{name}/path": path,
                f"{name}/timestep": times.double(), f"{name}/float32": (path32 - path).abs().amax(dim=(1, 2, 3, 4))}
    return {f"network/{k}": v for k, v in out.items()}


def noised():
    """DDPMScheduler.add_noise in float64 from the float32 table."""
    s = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    g = networks.generator("add_noise")
    image, noise = torch.rand(4, 3, 8, 8, generator=g) * 2 - 1, torch.randn(4, 3, 8, 8, generator=g)
    t = torch.tensor([0, 1, 500, 999])
    return {"add_noise/image": image, "add_noise/noise": noise, "add_noise/timestep": t.double(),
            "add_noise/sample": s.add_noise(image.double(), noise.double(), t)}


# ---- The optimiser --------------------------------------------------------------------------------------------------

OPTIMISERS = [  # name, lr, weight_decay, clip
    ("adam", 1e-3, 0.0, 0.0),
    ("clipped", 1e-2, 0.0, 1.0),
    ("adamw", 1e-3, 0.1, 5.0),
]


def optimisers():
    """torch's Adam or AdamW, clip_grad_norm_ and diffusers' EMAModel in float64 over 6 steps of given gradients. attr:
    lr, beta1, beta2, eps, weight_decay, max_grad_norm, ema_decay. gradient (steps, n); truth: weight, moment1,
    moment2, ema (steps, n), norm (steps); and their bounds, where step k has added at most 6 roundings to each path:
      a gradient scaled by the clip errs by 6 u, so with M = b1 M + (1 - b1)|g| in the place of m:  m by gamma(6 k + 6)
      M, v (its terms are positive) by gamma(12 k + 12) v,  the update lr m^ / (sqrt v^ + eps) by gamma(12 k + 18) of
      it with M, w by the sum of these and gamma(3) |w| a step,  ema, a mean of weights, by the largest of theirs and
      gamma(3) |ema| a step."""
    out = {}
    for name, lr, decay, clip in OPTIMISERS:
        g = networks.generator("optimiser", name)
        count, steps, largest_decay = 97, 6, 0.3  # EMAModel's decay is 2/11, 3/12, 4/13, ...: 0.3 is reached
        w = torch.nn.Parameter(torch.randn(count, generator=g).double())
        gradient = torch.randn(steps, count, generator=g) * 10 ** (4 * torch.rand(count, generator=g) - 3)
        gradient[:, 0] = 0     # never moves, but for weight decay
        gradient[:, 1] *= 1e-8 # where eps counts
        gradient[3] *= 0.01    # a step below the clipping norm
        with torch.no_grad():
            w.copy_(w.float().double())
        optimizer = torch.optim.AdamW([w], lr=lr, weight_decay=decay) if decay else torch.optim.Adam([w], lr=lr)
        ema = EMAModel([w], decay=largest_decay)
        rows = {}
        out[f"{name}/start"] = w.detach().float()
        M, error_w, error_ema = torch.zeros(count).double(), torch.zeros(count).double(), torch.zeros(count).double()
        for k in range(steps):
            w.grad = gradient[k].double()
            norm = torch.nn.utils.clip_grad_norm_([w], clip) if clip else w.grad.norm()
            optimizer.step()
            ema.step([w])
            m, v, average = optimizer.state[w]["exp_avg"], optimizer.state[w]["exp_avg_sq"], ema.shadow_params[0]
            M = 0.9 * M + (1 - 0.9) * w.grad.abs()
            update = lr / (1 - 0.9 ** (k + 1)) * M / ((v / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
            error_w = error_w + gamma(12 * k + 18) * update + gamma(3) * w.detach().abs()
            error_ema = torch.maximum(error_ema, error_w) + gamma(3) * average.abs()
            for key, value in (("weight", w.detach()), ("moment1", m), ("moment2", v), ("ema", average), ("norm", norm),
                               ("weight.bound", error_w), ("moment1.bound", gamma(6 * k + 6) * M + FLOAT_MIN),
                               ("moment2.bound", gamma(12 * k + 12) * v + FLOAT_MIN), ("ema.bound", error_ema)):
                rows.setdefault(key, []).append(value.clone())
        for key, values in rows.items():
            out[f"{name}/{key}"] = torch.stack(values).to(torch.float32 if "bound" in key else torch.float64)
        out[f"{name}/gradient"] = gradient
        out[f"{name}/attr"] = torch.tensor([lr, 0.9, 0.999, 1e-8, decay, clip, largest_decay], dtype=torch.float64)
    return out


def decays():
    """EMAModel.get_decay at steps 0..., and MultiStepLR over epochs."""
    ema = EMAModel([torch.zeros(1)], decay=0.9999)
    steps = list(range(30)) + [1000, 89989, 89990, 89991, 200000]
    w = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[15, 60, 150], gamma=0.1)
    rates = []
    for _ in range(160):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return {"ema/step": torch.tensor(steps, dtype=torch.float64),
            "ema/decay": torch.tensor([ema.get_decay(s) for s in steps], dtype=torch.float64),
            "multistep/lr": torch.tensor(rates, dtype=torch.float64)}


def training():
    """Five steps of the network 'lab': add_noise with given noise and t, loss, clipping, Adam, EMA; float64
    throughout, and the same in float32 for the distance that rounding alone makes."""
    spec = next(s for s in networks.TINY if s["name"] == "lab")
    g = networks.generator("training")
    steps, n, scheduler = 5, 3, DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    image = torch.rand(steps, n, 3, 8, 8, generator=g) * 2 - 1
    noise = torch.randn(steps, n, 3, 8, 8, generator=g)
    labels = (torch.rand(steps, n, 5, generator=g) < 0.4).float()
    t = torch.randint(0, 1000, (steps, n), generator=g)
    table = scheduler.alphas_cumprod.double()[t][..., None, None, None]
    sample = (table.sqrt() * image.double() + (1 - table).sqrt() * noise.double()).float()
    results = {}
    for precision in (torch.float32, torch.float64):
        model = networks.build(spec, coarse=True).to(precision)
        parameters = [p for _, p in model.named_arrays()]
        optimizer, ema = torch.optim.Adam(parameters, lr=1e-3), EMAModel(parameters, decay=0.9999)
        loss_by_step, norm_by_step = [], []
        for k in range(steps):
            _, loss, _ = networks.evaluate(model, *(x[k].to(precision) for x in (sample, t, labels, noise)))
            norm_by_step.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0).double())
            loss_by_step.append(loss.double())
            optimizer.step()
            ema.step(parameters)
        results[precision] = (torch.stack(loss_by_step), torch.stack(norm_by_step),
                              {name: p.detach().double() for name, p in model.named_arrays()},
                              {name: e.double() for (name, _), e in zip(model.named_arrays(), ema.shadow_params)})
    (loss, norm, weight, ema), (loss32, norm32, weight32, _) = results[torch.float64], results[torch.float32]
    out = {"sample": sample, "noise": noise, "labels": labels, "timestep": t.float(), "loss": loss, "norm": norm,
           "loss.float32": (loss32 - loss).abs(), "norm.float32": (norm32 - norm).abs()}
    for name in ("conv_in.weight", "conv_out.weight", "conv_out.bias", "label_encoder.0.weight",
                 "time_embedding.linear_1.weight", "down_blocks.1.attentions.0.to_q.weight",
                 "mid_block.resnets.0.norm1.weight", "up_blocks.0.resnets.1.conv1.weight"):
        out |= {f"weight.{name}": weight[name].float(), f"ema.{name}": ema[name].float()}
        distance = (weight32[name] - weight[name]).abs()
        out[f"float32.{name}"] = torch.stack([distance.max(), distance.pow(2).mean().sqrt()])
    return {f"training/{k}": v for k, v in out.items()}


# ---- All of them ----------------------------------------------------------------------------------------------------

def make(directory):
    os.makedirs(directory, exist_ok=True)
    def save(name, tensors, metadata=None):
        path = os.path.join(directory, name + ".safetensors")
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path, metadata)
        os.chmod(path, 0o644)
    save("operations", operations())
    for spec in networks.TINY:
        save("unet_" + spec["name"], *network(spec))
    save("sampling", network_sampling() | noised())
    save("optimiser", optimisers() | decays() | training())


if __name__ == "__main__":
    make(sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "..", "vectors"))
