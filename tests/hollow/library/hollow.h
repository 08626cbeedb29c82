/* A hollow GPU: CUDA's runtime and driver, cuBLAS, cuDNN and NCCL, answered on the host.
 *
 * What it CANNOT show:
 *   - numbers: no kernel runs, so a device tensor holds what was last copied there, or zeros;
 *   - time: every stream is done at once, and every launch between two events takes 1 ms;
 *   - races and deadlocks between streams or ranks, and whatever NCCL does between GPUs;
 *   - refusals of cuDNN, cuBLAS and kernels beyond those of the launch itself (cuDNN takes any shape);
 *   - code whose shapes or loops depend on values on the device (nonzero, generation): it may hang.
 *
 * What it does show: every call of an unmodified CUDA build of torch, in order. Device memory is
 * address space, so the caching allocator's figures are exact. A launch is checked against the
 * limits of an H200 and recorded. Copies up to a limit are made, so that what the host reads back
 * is what it wrote. Waits, copies from unpinned memory and collectives are recorded.
 *
 * The library is loaded by LD_PRELOAD and has the soname libcuda.so.1. `build.py` adds a function
 * that returns 0 for each function that torch needs and these files do not define.
 *
 * Environment: HOLLOW_GPUS (1), HOLLOW_MIB (memory of a GPU), HOLLOW_COPY_MIB (4: copies that are
 * larger are recorded but not made), HOLLOW_TRACE (file to write the trace to, else it is taken by
 * hollow_take).
 */
#ifndef HOLLOW_H
#define HOLLOW_H

#include <stddef.h>
#include <stdint.h>

#include <cuda.h>
#include <cuda_runtime_api.h>

/* The headers redefine these names as their newer versions; torch links to the plain names. */
#undef cudaGetDeviceProperties
#undef cudaStreamGetCaptureInfo
#undef cuCtxCreate

enum { SHARED_MEMORY_OPTIN = 232448, THREADS_PER_BLOCK = 1024, GRID_YZ = 65535, SMS = 132 };

/* trace.c */
void trace(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *caller(void);

/* memory.c */
size_t total_memory(void);
int is_pinned(const void *address);

/* device.c */
int gpu_count(void);
int current_device(void);
int device_attribute(int which);

/* streams.c */
void *new_handle(void);
int refuse_while_capturing(const char *call);

/* launches.c */
unsigned long long launch_count(void);

#endif
