#!/usr/bin/env python3
"""cuda_report.py LAUNCHES GRAPH > docs/CUDA.md: what is known of the CUDA kernels without running them on a GPU.

From nvcc and ptxas: registers, spills; from the machine code: instructions (a 128-bit word each; the opcode is bits 0 to
11, the width of an access bits 73 to 75). LAUNCHES: threads and shared memory of each kernel, as the emulated GPU saw them
launched (CUDA_ON_CPU_LAUNCHES). GRAPH: `ddpm info lab --graph --training --batch 128`."""
import collections, re, struct, subprocess, sys, tempfile

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


def launches(path):
    """Of each kernel: the most threads and shared bytes it was launched with."""
    most = {}
    for line in open(path):
        threads, shared, name = line.rstrip('\n').split(' ', 2)
        name = re.sub(r'^void ', '', re.sub(r'\(([^()]|\([^()]*\))*\)$', '', name)).replace(' ', '')
        old = most.get(name, (0, 0))
        most[name] = (max(old[0], int(threads)), max(old[1], int(shared)))
    return most


def graph(path):
    """(operation, MFLOP forward and backward, bytes of its output) of every node, and the totals' line."""
    unit = {'B': 1, 'KiB': 1 << 10, 'MiB': 1 << 20, 'GiB': 1 << 30}
    nodes, parameters = [], 0
    for line in open(path):
        if m := re.match(r'\S+ +(\w+) +[\dx]+ +([\d,]+)? +([\d.]+) +([\d.]+) (\w+)$', line.rstrip()):
            nodes.append((m[1], float(m[3]), float(m[4]) * unit[m[5]]))
        if m := re.match(r'parameters +([\d,]+)', line):
            parameters = int(m[1].replace(',', ''))
    return nodes, parameters


def main():
    built = {arch: compiled(arch) for arch in SM}
    launched = launches(sys.argv[1])
    nodes, parameters = graph(sys.argv[2])
    version = subprocess.run(['nvcc', '--version'], capture_output=True, text=True).stdout.split('release ')[1].split(',')[0]
    print(f'''# The CUDA backend, as far as it is known without a GPU

Written by `make cuda-report` (nvcc {version}). **These kernels have never run on a GPU.** Their results are tested on an
emulated one (`make test`: CONTRIBUTING.md); what follows is what the compiler says, and bounds that no GPU can beat. There
is no measured speed here, and none is claimed.

## Kernels
Registers of a thread and occupancy (the share of a multiprocessor's warps that fit at once), and for sm_80 the machine code's
instructions: 128-bit accesses of all accesses to device memory, multiply-adds (FFMA), tensor-core products (HMMA). Threads
and shared memory: the most that `ddpm selftest --quick` launches.

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

    work = collections.defaultdict(lambda: [0, 0.0, 0.0])
    for op, mflop, size in nodes:
        work[op][0] += 1
        work[op][1] += mflop
        work[op][2] += size
    products = sum(work[op][1] for op in ('conv2d', 'linear', 'attention')) / 1e6
    written = sum(work[op][2] for op in work if op != 'activation') / 1e9  # which group_norm does in passing
    update = parameters * 4 * 9 / 1e9
    print(f'''
## Lower bounds of a training step: the lab's UNet, 128 pictures of 64x64
| operation | nodes | TFLOP, forward and backward | GB of outputs |
| --- | ---: | ---: | ---: |''')
    for op in sorted(work, key=lambda o: -work[o][1]):
        print(f'| {op} | {work[op][0]} | {work[op][1] / 1e6:.3f} | {work[op][2] / 1e9:.2f} |')
    print(f'''
Products (conv2d, linear, attention): {products:.2f} TFLOP; time is at least that over the device's peak. Outputs: {written:.1f} GB
without the activations, which group_norm does in passing; each is written and read once, and so is its gradient, and most are
far larger than a cache: at least 4 x {written:.1f} GB over the bandwidth. The update reads weights, gradients, both moments and the average and writes all
but the gradients: 9 x 4 bytes x {parameters:,} parameters = {update:.2f} GB. Peaks: NVIDIA's data sheets, dense.

| device | TFLOP/s fp32, TF32, bf16 | GB/s | products, ms: fp32, TF32, bf16 | other traffic, ms | update, ms |
| --- | --- | ---: | --- | ---: | ---: |''')
    for name, (fp32, tf32, bf16, bandwidth) in DEVICE.items():
        times = ', '.join(f'{1e3 * products / p:.0f}' for p in (fp32, tf32, bf16))
        print(f'| {name} | {fp32}, {tf32}, {bf16} | {bandwidth} | {times} | {1e3 * 4 * written / bandwidth:.0f} | {1e3 * update / bandwidth:.2f} |')
    print('\nThese are bounds, not predictions: what a kernel reaches of them only a GPU can tell.')


main()
