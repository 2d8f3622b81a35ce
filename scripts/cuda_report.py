#!/usr/bin/env python3
"""cuda_report.py NOTED PICTURES > docs/CUDA.md: what is known of the CUDA kernels without running them on a GPU.

From nvcc and ptxas: registers, spills; from the machine code: instructions (a 128-bit word each; the opcode is bits 0 to
11, the width of an access bits 73 to 75). NOTED: the launches of every row of the lab UNet's training step, and what the
rows compute and move at least (tests/cuda/launches.c)."""
import collections, concurrent.futures, csv, os, re, struct, subprocess, sys, tempfile

NVCC = 'nvcc -std=c++17 -O3 --fmad=false -I. -cubin -Xptxas -v cuda_backend.cu'.split()
# registers and shared bytes of a multiprocessor, its warps and blocks (CUDA C++ Programming Guide, Compute Capabilities)
SM = {80: (65536, 167936, 64, 32), 89: (65536, 102400, 48, 24), 90: (65536, 233472, 64, 32)}
RESERVED = 1024  # bytes of shared memory a block takes for itself
# dense TFLOP/s with float32 sums (fp32, TF32, bf16) and GB/s, from NVIDIA's data sheets and the Ada whitepaper
DEVICE = {'RTX 4090': (82.6, 82.6, 165.2, 1008), 'A100 80 GB SXM': (19.5, 156, 312, 2039), 'H100 SXM': (67, 494.7, 989.4, 3350)}
# GB/s each way between the GPUs of one machine, half of what NVIDIA's data sheets give for both ways: NVLink 600 (A100), 900
# (H100), PCIe 4.0 x16 64 (an RTX 4090 has no NVLink). Between machines InfiniBand: EDR 100 Gbit/s, NDR 400 (ConnectX-7).
WITHIN = {'RTX 4090': ('PCIe 4.0 x16', 32), 'A100 80 GB SXM': ('NVLink', 300), 'H100 SXM': ('NVLink', 450)}
BETWEEN = (('InfiniBand, 100 Gbit/s', 100 / 8), ('InfiniBand, 400 Gbit/s', 400 / 8))
OPCODE = {0x223: 'FFMA', 0x23c: 'HMMA', 0x981: 'LDG', 0x986: 'STG', 0x984: 'LDS', 0x388: 'STS', 0x988: 'STS', 0x983: 'LDL', 0x387: 'STL'}


def demangled(names):
    text = subprocess.run(['c++filt'], input='\n'.join(names), capture_output=True, text=True, check=True).stdout.split('\n')
    short = lambda n: re.sub(r'^void ', '', re.sub(r'\(([^()]|\([^()]*\))*\)$', '', n)).replace('(int)', '').replace(' ', '')
    return dict(zip(names, map(short, text)))


def opcodes(cubin):
    """Of each kernel: how often each opcode, with the width of memory accesses."""
    data = open(cubin, 'rb').read()
    at, = struct.unpack_from('<Q', data, 0x28)
    size, count, names = struct.unpack_from('<HHH', data, 0x3a)
    section = [struct.unpack_from('<IIQQQQIIQQ', data, at + i * size) for i in range(count)]
    text = lambda offset: data[section[names][4] + offset:].split(b'\0', 1)[0].decode()
    result = {}
    for s in section:
        if not text(s[0]).startswith('.text.'):
            continue
        seen = result[text(s[0])[6:]] = collections.Counter()
        for word in range(s[4], s[4] + s[5], 16):
            low, high = struct.unpack_from('<QQ', data, word)
            name = OPCODE.get(low & 0xfff)
            if name in ('LDG', 'STG', 'LDS', 'STS'):
                name += {4: '.32', 5: '.64', 6: '.128'}.get(high >> 9 & 7, '')
            if name:
                seen[name] += 1
    return result


def compiled(arch):
    """Of each kernel: registers, bytes spilled, opcodes."""
    with tempfile.NamedTemporaryFile(suffix='.cubin') as cubin:
        said = subprocess.run(NVCC + [f'-arch=sm_{arch}', '-o', cubin.name], capture_output=True, text=True, check=True)
        said, codes = said.stderr + said.stdout, opcodes(cubin.name)
    kernels, name, spilled = {}, None, 0
    for line in said.split('\n'):
        if m := re.search(r"entry function '(\w+)'", line):
            name = m[1]
        if m := re.search(r'(\d+) bytes spill stores, (\d+) bytes spill loads', line):
            spilled = int(m[1]) + int(m[2])
        if (m := re.search(r'Used (\d+) registers', line)) and name:
            kernels[name] = (int(m[1]), spilled, codes[name])
    short = demangled(list(kernels))
    return {short[k]: v for k, v in kernels.items()}


def occupancy(arch, threads, registers, shared):
    """Share of a multiprocessor's warps that can be there at once."""
    all_registers, all_shared, all_warps, all_blocks = SM[arch]
    warps = -(-threads // 32)
    a_warp = -(-registers * 32 // 256) * 256
    blocks = min(all_registers // (a_warp * warps), all_warps // warps, all_blocks, all_shared // (shared + RESERVED))
    return f'{100 * blocks * warps // all_warps}%'


def noted(path):
    """Of each kernel the most threads and shared bytes; of each (row, pass): nodes, FLOP, bytes, launches of each kernel;
    the rest: memory, sizes of the buckets of gradients."""
    most, rows, since, rest = {}, collections.OrderedDict(), collections.Counter(), {'bucket': []}
    for line in open(path):
        what, text = line.rstrip('\n').split(' ', 1)
        if what == 'launch':
            threads, shared, name = text.split(' ', 2)
            name = re.sub(r'^void ', '', re.sub(r'\(([^()]|\([^()]*\))*\)$', '', name)).replace(' ', '')
            old = most.get(name, (0, 0))
            most[name] = (max(old[0], int(threads)), max(old[1], int(shared)))
            since[name] += 1
        elif what == 'row':
            op, way, flop, size = text.split()
            row = rows.setdefault((op, way), [0, 0.0, 0.0, collections.Counter()])
            row[0] += 1
            row[1] += float(flop)
            row[2] += float(size)
            row[3] += since
            since = collections.Counter()
        elif what == 'bucket':
            rest[what].append(int(text))
        else:
            rest[what] = [int(v) for v in text.split()]
    return most, rows, rest


def rounding(path):
    """What docs/bf16.csv says of training with bf16 products, computed on the CPU."""
    if not os.path.exists(path):
        return ''
    rows = [(float(r['fp32']), float(r['bf16'])) for r in csv.DictReader(open(path))]
    last = rows[-100:]
    mean = [sum(r[k] for r in last) / len(last) for k in (0, 1)]
    apart = sorted(abs(b / a - 1) for a, b in last)
    return f'''
## bf16 and training
![loss with float32 and with bf16 products](bf16.png)

The small model trained twice for {len(rows)} steps on the same pictures, noise and order, in float32 and with the operands of all
convolutions and linear layers rounded to bf16, by a model of that rounding on the CPU (`make bf16`). Over the last {len(last)}
steps the mean loss is {mean[0]:.5f} in float32 and {mean[1]:.5f} with bf16 products; a step's two losses are {100 * apart[len(last) // 2]:.2f}% apart
in the median, {100 * apart[-1]:.2f}% at most.'''


def several(step, buckets, pictures):
    """Of 8 and 64 GPUs: what they send each other, and the time of a step at least. step: ms of one, of each device."""
    size, last = 4 * sum(buckets), 4 * buckets[-1]
    share = lambda n: 2 * (n - 1) / n
    print(f'''
## Lower bounds with 8 and 64 GPUs
Arithmetic; several GPUs have never been tried. Each has {pictures} pictures, so that a batch has {8 * pictures} or {64 * pictures}. A step adds up
the gradients: {size / 1e6:.1f} MB of float32, in {len(buckets)} buckets of {4 * min(buckets) / 1e6:.1f} to {4 * max(buckets) / 1e6:.1f} MB, each begun as soon as backward has made it. A ring of n GPUs
(NCCL_ALGO=Ring) passes on 2 (n - 1) / n of the bytes over each of its links (Patarasuk & Yuan 2009), {share(8):.2f} of them with 8 GPUs and
{share(64):.3f} with 64: here 8 in one machine, or 8 such machines with one adapter each (k adapters share its bytes). So

    sums  >=  2 (n - 1) / n x {size / 1e6:.1f} MB / (GB/s of the slowest link, one way)
    step  >=  the larger of: the sums; one GPU's bound + the last bucket's sum, which begins when backward has ended

The last bucket has {last / 1e6:.1f} MB. Links, from NVIDIA's data sheets: NVLink 600 GB/s for A100 and 900 for H100, PCIe 4.0 x16 64 GB/s, both
ways together; InfiniBand EDR 100 and NDR 400 Gbit/s each way. The share is one GPU's bound over that of n: what n GPUs do of n
times one's work if all is at its bound. It is no bound itself: a GPU that is slower than its own hides more of the sums.

| GPUs | device | slowest link | GB/s one way | a GPU sends, MB a step | sums, ms | step, ms in fp32, TF32, bf16 | share |
| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |''')
    for device, (link, speed) in WITHIN.items():
        for n, link, speed in [(8, link, speed)] + [(64,) + b for b in BETWEEN]:
            sums, tail = share(n) * size / speed / 1e6, share(n) * last / speed / 1e6
            least = [max(sums, t + tail) for t in step[device]]
            print(f"| {n} | {device} | {link} | {speed:g} | {share(n) * size / 1e6:.0f} | {sums:.1f} | {', '.join(f'{t:.0f}' for t in least)} | "
                  f"{', '.join(f'{100 * t / l:.0f}%' for t, l in zip(step[device], least))} |")


def main():
    with concurrent.futures.ThreadPoolExecutor() as pool:
        built = dict(zip(SM, pool.map(compiled, SM)))
    launched, rows, rest = noted(sys.argv[1])
    pictures = int(sys.argv[2])
    version = subprocess.run(['nvcc', '--version'], capture_output=True, text=True).stdout.split('release ')[1].split(',')[0]
    print(f'''# The CUDA backend, as far as it is known without a GPU

Written by `make cuda-report` (nvcc {version}). **These kernels have never run on a GPU.** Their results are tested on an
emulated one (`make test`: CONTRIBUTING.md); what follows is what the compiler says, and bounds that no GPU can beat. There
is no measured speed here, and none is claimed.

## Kernels
Registers of a thread and occupancy (the share of a multiprocessor's warps that fit at once), and of the machine code for sm_80
and sm_90 the instructions: 128-bit accesses of all accesses to device memory, multiply-adds (FFMA), tensor-core products
(HMMA). Threads and shared memory: the most that a training step of the lab's UNet launches, {pictures} pictures of 64x64 in TF32;
nothing: it does not use that kernel.

| kernel | threads | shared | registers sm_80, 89, 90 | occupancy | 128-bit sm_80; 90 | FFMA sm_80, 90 | HMMA sm_80, 90 |
| --- | ---: | ---: | --- | --- | --- | ---: | ---: |''')
    spilled = 0
    for name in sorted(built[80]):
        spilled += sum(built[a][name][1] for a in SM)
        threads, shared = launched.get(name, (0, 0))
        codes = [built[arch][name][2] for arch in (80, 90)]
        wide = [f"{c['LDG.128'] + c['STG.128']} of {sum(c[o + w] for o in ('LDG', 'STG') for w in ('', '.32', '.64', '.128'))}" for c in codes]
        ffma, hmma = [', '.join(str(c[o]) for c in codes) if any(c[o] for c in codes) else '' for o in ('FFMA', 'HMMA')]
        there = ', '.join(occupancy(a, threads, built[a][name][0], shared) for a in SM) if threads else ''
        print(f"| `{name}` | {threads or ''} | {shared if threads else ''} | {', '.join(str(built[a][name][0]) for a in SM)} | {there} | "
              f"{'; '.join(wide)} | {ffma} | {hmma} |")
    print(f'\nSpilled to local memory by all of them together: {spilled} bytes.')

    launches = sum(sum(r[3].values()) for r in rows.values())
    names = '<br>'.join
    print(f'''
## Lower bounds of a training step: the lab's UNet, {pictures} pictures of 64x64
Of every row: what its kernels compute, and the least they can move, each tensor that they need once, in GB. Time is at least
either over the device's peak, but for what a cache still holds of the row before. Some forward rows run again in backward. The
rows and the update are {launches} launches, which the host makes twice: from the third step on they are one
CUDA graph, and the host waits once, at its end, for {4 * pictures} bytes of losses and a report. SiLU after a norm runs inside it.

| row | runs | kernels, launches | TFLOP | GB | {' | '.join(f'{d}, ms in fp32, TF32, bf16' for d in DEVICE)} |
| --- | ---: | --- | ---: | ---: |{' ---: |' * len(DEVICE)}''')
    total = {d: [0, 0, 0] for d in DEVICE}
    for (op, way), (nodes, flop, size, kernels) in sorted(rows.items(), key=lambda r: -r[1][2]):
        if size < 1e6 and op != 'mse':
            continue
        product = op in ('conv2d', 'linear')
        times = []
        for device, (fp32, tf32, bf16, bandwidth) in DEVICE.items():
            peaks = (fp32, tf32, bf16) if product else (fp32, fp32, fp32)
            least = [1e3 * max(flop / p / 1e12, size / bandwidth / 1e9) for p in peaks]
            total[device] = [t + l for t, l in zip(total[device], least)]
            times.append(', '.join(f'{t:.1f}' for t in least))
        print(f"| {op}{'' if op == way else ' ' + way} | {nodes} | {names(f'`{k}` {n}' for k, n in kernels.most_common())} | "
              f"{flop / 1e12:.3f} | {size / 1e9:.2f} | {' | '.join(times)} |")
    print(f"| together | | | {sum(r[1] for r in rows.values()) / 1e12:.2f} | {sum(r[2] for r in rows.values()) / 1e9:.1f} | "
          f"{' | '.join(', '.join(f'{t:.0f}' for t in total[d]) for d in DEVICE)} |")
    print('\nPeaks, dense, from NVIDIA\'s data sheets: ' + '; '.join(
        f'{d} {p[0]}, {p[1]}, {p[2]} TFLOP/s in fp32, TF32, bf16 and {p[3]} GB/s' for d, p in DEVICE.items()) + '.')
    memory, parameters = rest['memory']
    print(f"\nMemory of the step: {memory / 2**30:.1f} GiB for the network and {5 * 4 * parameters / 2**30:.1f} GiB for weights, gradients, both moments"
          ' and average.')
    print('\nThese are bounds, not predictions: what a kernel reaches of them only a GPU can tell.')
    several(total, rest['bucket'], pictures)
    print(rounding('docs/bf16.csv'))


main()
