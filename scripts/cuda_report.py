#!/usr/bin/env python3
"""cuda_report.py NOTED PICTURES > docs/CUDA.md: what is known of the CUDA kernels without running them on a GPU.

From nvcc and ptxas: registers, spills; from the machine code: instructions (a 128-bit word each; the opcode is bits 0 to
11, the width of an access bits 73 to 75). NOTED: the launches of every row of the lab UNet's training step, and what the
rows compute and move at least (tests/cuda/launches.c)."""
import collections, csv, os, re, struct, subprocess, sys, tempfile

NVCC = 'nvcc -std=c++17 -O3 --fmad=false -I. -cubin -Xptxas -v cuda_backend.cu'.split()
# registers and shared bytes of a multiprocessor, its warps and blocks (CUDA C++ Programming Guide, Compute Capabilities)
SM = {80: (65536, 167936, 64, 32), 89: (65536, 102400, 48, 24), 90: (65536, 233472, 64, 32)}
RESERVED = 1024  # bytes of shared memory a block takes for itself
# dense TFLOP/s with float32 sums (fp32, TF32, bf16) and GB/s, from NVIDIA's data sheets and the Ada whitepaper
DEVICE = {'RTX 4090': (82.6, 82.6, 165.2, 1008), 'A100 80 GB SXM': (19.5, 156, 312, 2039), 'H100 SXM': (67, 494.7, 989.4, 3350)}
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
    """Of each kernel the most threads and shared bytes; of each (row, pass): nodes, FLOP, bytes, launches of each kernel."""
    most, rows, since, rest = {}, collections.OrderedDict(), collections.Counter(), {}
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


def main():
    built = {arch: compiled(arch) for arch in SM}
    launched, rows, rest = noted(sys.argv[1])
    pictures = int(sys.argv[2])
    version = subprocess.run(['nvcc', '--version'], capture_output=True, text=True).stdout.split('release ')[1].split(',')[0]
    print(f'''# The CUDA backend, as far as it is known without a GPU

Written by `make cuda-report` (nvcc {version}). **These kernels have never run on a GPU.** Their results are tested on an
emulated one (`make test`: CONTRIBUTING.md); what follows is what the compiler says, and bounds that no GPU can beat. There
is no measured speed here, and none is claimed.

## Kernels
Registers of a thread and occupancy (the share of a multiprocessor's warps that fit at once), and for sm_80 the machine code's
instructions: 128-bit accesses of all accesses to device memory, multiply-adds (FFMA), tensor-core products (HMMA). Threads
and shared memory: the most that a training step of the lab's UNet launches, {pictures} pictures of 64x64 in TF32; nothing: it does
not use that kernel.

| kernel | threads | shared | registers sm_80, 89, 90 | occupancy | 128-bit | FFMA | HMMA |
| --- | ---: | ---: | --- | --- | --- | ---: | ---: |''')
    spilled = 0
    for name in sorted(built[80]):
        spilled += sum(built[a][name][1] for a in SM)
        threads, shared = launched.get(name, (0, 0))
        code = built[80][name][2]
        wide, all_accesses = code['LDG.128'] + code['STG.128'], sum(code[f'{o}{w}'] for o in ('LDG', 'STG') for w in ('', '.32', '.64', '.128'))
        there = ', '.join(occupancy(a, threads, built[a][name][0], shared) for a in SM) if threads else ''
        print(f"| `{name}` | {threads or ''} | {shared if threads else ''} | {', '.join(str(built[a][name][0]) for a in SM)} | {there} | "
              f"{wide} of {all_accesses} | {code['FFMA'] or ''} | {code['HMMA'] or ''} |")
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
    print(rounding('docs/bf16.csv'))


main()
