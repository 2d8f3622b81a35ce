/* cpu_backend.h - the operation table again, fast on x86-64 and arm64: ddpm_device_open(&device, ddpm_cpu(), threads,
 * isa). Tensors stay plain NCHW in host memory, so that rows it leaves out run as the reference's. One binary holds all
 * instruction sets of its architecture; the same bits come out for any number of threads. */
#ifndef CPU_BACKEND_H
#define CPU_BACKEND_H
#include "ddpm.h"
#ifdef __cplusplus
extern "C" {
#endif

/* isa of ddpm_device_open: "baseline" (SSE2; NEON on arm64), "avx2" (with FMA), "avx512"; NULL: the widest that the
 * processor has. With "+exact" behind it, or alone, convolutions are sums of products everywhere, never in the Winograd
 * domain, whose errors are some two and a half times as large and whose time is half. DDPM_ERR_ARGUMENT names one that
 * the processor or this build lacks. */
DDPM_API const ddpm_backend *ddpm_cpu(void);

#ifdef __cplusplus
}
#endif
#endif
