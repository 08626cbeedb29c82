/* Kernels: names are kept when modules are loaded; launches are checked, recorded and not run. */
#define _GNU_SOURCE
#include "hollow.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Names of compiled-in kernels by the address of their host function: open addressing. */

typedef struct {
  const void *function;
  const char *name;
} Kernel;

static Kernel *table;
static size_t slots, filled;

static Kernel *slot_of(Kernel *in, size_t size, const void *function) {
  size_t i = ((uintptr_t)function >> 4) * 0x9E3779B97F4A7C15u & (size - 1);
  while (in[i].function != NULL && in[i].function != function) i = (i + 1) & (size - 1);
  return &in[i];
}

static const char *name_of(const void *function) {
  if (slots == 0) return "?";
  const char *name = slot_of(table, slots, function)->name;
  return name != NULL ? name : "?";
}

/* torch's libraries call this as they are loaded; the name lies in them and stays. */
void __cudaRegisterFunction(void **module, const char *function, char *device_function,
                            const char *name, int limit, void *tid, void *bid, void *block_dim,
                            void *grid_dim, int *warp_size) {
  pthread_mutex_lock(&lock);
  if (2 * filled >= slots) {
    size_t size = slots == 0 ? 1 << 14 : 2 * slots;
    Kernel *grown = calloc(size, sizeof *grown);
    for (size_t i = 0; i < slots; i++)
      if (table[i].function != NULL) *slot_of(grown, size, table[i].function) = table[i];
    free(table);
    table = grown;
    slots = size;
  }
  Kernel *slot = slot_of(table, slots, function);
  filled += slot->function == NULL;
  *slot = (Kernel){function, name};
  pthread_mutex_unlock(&lock);
}

void **__cudaRegisterFatBinary(void *binary) {
  static void *module;
  return &module;
}
void __cudaRegisterFatBinaryEnd(void **module) {}
void __cudaUnregisterFatBinary(void **module) {}
void __cudaRegisterVar(void **module, char *host, char *device, const char *name, int external,
                       size_t size, int constant, int global) {}
char __cudaInitModule(void **module) { return 0; }

/* The last error of a thread, which torch reads after each launch. */

static __thread cudaError_t last_error;

cudaError_t cudaGetLastError(void) {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }

static atomic_ullong launches;

unsigned long long launch_count(void) { return launches; }

/* Returns whether an H200 can run the launch, and records it. */
static int launch(const char *name, dim3 grid, dim3 block, size_t shared_bytes) {
  unsigned threads = block.x * block.y * block.z;
  int right = grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.y <= GRID_YZ && grid.z <= GRID_YZ &&
              threads > 0 && threads <= THREADS_PER_BLOCK && block.z <= 64 &&
              shared_bytes <= SHARED_MEMORY_OPTIN;
  launches++;
  trace("%s %s %u %u %u %u", right ? "kernel" : "refused", name, grid.x, grid.y, grid.z, threads);
  return right;
}

static cudaError_t launch_compiled(const void *function, dim3 grid, dim3 block, size_t shared) {
  if (launch(name_of(function), grid, block, shared)) return cudaSuccess;
  return last_error = cudaErrorInvalidConfiguration;
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments,
                             size_t shared, cudaStream_t stream) {
  return launch_compiled(function, grid, block, shared);
}

cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block,
                                        void **arguments, size_t shared, cudaStream_t stream) {
  return launch_compiled(function, grid, block, shared);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function,
                                void **arguments) {
  return launch_compiled(function, config->gridDim, config->blockDim, config->dynamicSmemBytes);
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
  *kernel = (cudaKernel_t)function;
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments,
                               size_t shared, cudaStream_t stream) {
  return launch_compiled((const void *)kernel, grid, block, shared);
}

/* `kernel<<<...>>>` pushes its configuration, and the generated stub pops it. */

static __thread struct {
  dim3 grid, block;
  size_t shared;
  void *stream;
} pushed;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  pushed.grid = grid;
  pushed.block = block;
  pushed.shared = shared;
  pushed.stream = stream;
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *(void **)stream = pushed.stream;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = THREADS_PER_BLOCK;
  attributes->numRegs = 32;
  attributes->binaryVersion = attributes->ptxVersion = 90;
  attributes->maxDynamicSharedSizeBytes = SHARED_MEMORY_OPTIN;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks,
                                                                   const void *function,
                                                                   int threads, size_t shared,
                                                                   unsigned flags) {
  *blocks = 2;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function,
                                                          int threads, size_t shared) {
  *blocks = 2;
  return cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
  *address = (void *)symbol;
  return cudaSuccess;
}

/* The driver's functions that torch and Triton ask for by name are those of this library. */
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
  char versioned[256];
  snprintf(versioned, sizeof versioned, "%s_v2", name);
  *function = dlsym(RTLD_DEFAULT, versioned);
  if (*function == NULL) *function = dlsym(RTLD_DEFAULT, name);
  int found = *function != NULL;
  if (result != NULL)
    *result = found ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return found ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaGetDriverEntryPoint(const char *name, void **function, unsigned long long flags,
                                    enum cudaDriverEntryPointQueryResult *result) {
  return cudaGetDriverEntryPointByVersion(name, function, 0, flags, result);
}

/* Modules that Triton and nvrtc load at run time: a function's handle is the index of its name. */

enum { FUNCTIONS = 1 << 16 };
static char *function_names[FUNCTIONS];
static uintptr_t function_count = 1;

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  *module = new_handle();
  return CUDA_SUCCESS;
}
CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count,
                            CUjit_option *options, void **values) {
  return cuModuleLoadData(module, image);
}
CUresult cuModuleLoad(CUmodule *module, const char *path) { return cuModuleLoadData(module, path); }

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  pthread_mutex_lock(&lock);
  if (function_count == FUNCTIONS) abort();
  function_names[function_count] = strdup(name);
  *function = (CUfunction)function_count++;
  pthread_mutex_unlock(&lock);
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction function) {
  switch (which) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = THREADS_PER_BLOCK; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = 64; break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function,
                                      const CUlaunchConfig *config) {
  *clusters = SMS / 2;
  return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int threads,
                                                     size_t shared) {
  *blocks = 2;
  return CUDA_SUCCESS;
}

static CUresult launch_loaded(CUfunction function, dim3 grid, dim3 block, size_t shared) {
  uintptr_t i = (uintptr_t)function;
  const char *name = i < function_count ? function_names[i] : "?";
  return launch(name, grid, block, shared) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                        CUstream stream, void **arguments, void **extra) {
  dim3 grid = {grid_x, grid_y, grid_z}, block = {block_x, block_y, block_z};
  return launch_loaded(function, grid, block, shared);
}

CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned grid_x, unsigned grid_y,
                                   unsigned grid_z, unsigned block_x, unsigned block_y,
                                   unsigned block_z, unsigned shared, CUstream stream,
                                   void **arguments) {
  dim3 grid = {grid_x, grid_y, grid_z}, block = {block_x, block_y, block_z};
  return launch_loaded(function, grid, block, shared);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments,
                          void **extra) {
  dim3 grid = {config->gridDimX, config->gridDimY, config->gridDimZ};
  dim3 block = {config->blockDimX, config->blockDimY, config->blockDimZ};
  return launch_loaded(function, grid, block, config->sharedMemBytes);
}
