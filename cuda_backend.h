/* cuda_backend.h - the operation table on an NVIDIA GPU: ddpm_device_open(&device, ddpm_cuda(), 0, precision). `make
 * cuda` adds it to the program. Tensors lie in device memory, pixels outside and channels inside (NHWC). */
#ifndef CUDA_BACKEND_H
#define CUDA_BACKEND_H
#include "ddpm.h"
#ifdef __cplusplus
extern "C" {
#endif

/* isa of ddpm_device_open is how products are computed: "fp32" (exact), "tf32", "bf16" (both from compute capability
 * 8.0; sums are float32); NULL: tf32 where the device has it. DDPM_ERR_BACKEND if there is no device. The same bits for
 * one device, precision and batch. */
DDPM_API const ddpm_backend *ddpm_cuda(void);
/* The cudaStream_t of a device it opened, on which it does everything: for who adds gradients between GPUs. */
DDPM_API void *ddpm_cuda_stream(const ddpm_device *device);

#ifdef __cplusplus
}
#endif
#endif
