/* The device: one or several H200, as `nvidia-smi` and deviceQuery describe them. */
#include "hollow.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static __thread int current;

int gpu_count(void) {
  const char *value = getenv("HOLLOW_GPUS");
  return value != NULL ? atoi(value) : 1;
}

int current_device(void) { return current; }

int device_attribute(int which) {
  switch (which) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: return THREADS_PER_BLOCK;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return 2147483647;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: return GRID_YZ;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 49152;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return SHARED_MEMORY_OPTIN;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return 233472;
    case cudaDevAttrReservedSharedMemoryPerBlock: return 1024;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
    case cudaDevAttrMultiProcessorCount: return SMS;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return 32;
    case cudaDevAttrComputeCapabilityMajor: return 9;
    case cudaDevAttrComputeCapabilityMinor: return 0;
    case cudaDevAttrClockRate: return 1980000;       /* kHz */
    case cudaDevAttrMemoryClockRate: return 3201000; /* kHz */
    case cudaDevAttrGlobalMemoryBusWidth: return 6144;
    case cudaDevAttrL2CacheSize: return 62914560;
    case cudaDevAttrAsyncEngineCount: return 3;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrCooperativeLaunch: return 1;
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED: return 1;
    default: return 0;
  }
}

cudaError_t cudaGetDeviceCount(int *count) {
  *count = gpu_count();
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
  *device = current;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= gpu_count()) return cudaErrorInvalidDevice;
  current = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int device) {
  *value = device_attribute(which);
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "NVIDIA H200");
  memset(&p->uuid, 0x48 + device, sizeof p->uuid);
  p->totalGlobalMem = total_memory();
  p->sharedMemPerBlock = device_attribute(cudaDevAttrMaxSharedMemoryPerBlock);
  p->sharedMemPerBlockOptin = SHARED_MEMORY_OPTIN;
  p->sharedMemPerMultiprocessor = device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  p->regsPerBlock = p->regsPerMultiprocessor = device_attribute(cudaDevAttrMaxRegistersPerBlock);
  p->warpSize = 32;
  p->maxThreadsPerBlock = THREADS_PER_BLOCK;
  p->maxThreadsPerMultiProcessor = device_attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
  p->maxBlocksPerMultiProcessor = device_attribute(cudaDevAttrMaxBlocksPerMultiprocessor);
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = THREADS_PER_BLOCK;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = GRID_YZ;
  p->major = 9;
  p->multiProcessorCount = SMS;
  p->l2CacheSize = device_attribute(cudaDevAttrL2CacheSize);
  p->memoryBusWidth = device_attribute(cudaDevAttrGlobalMemoryBusWidth);
  p->unifiedAddressing = p->concurrentKernels = p->canMapHostMemory = 1;
  p->asyncEngineCount = 3;
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
  *can = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int device) {
  snprintf(id, size, "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    default: return "an error of the hollow GPU";
  }
}
const char *cudaGetErrorName(cudaError_t error) { return "cudaErrorOfHollowGpu"; }

/* The driver's half. */

static void *const CONTEXT = (void *)0x1000;

CUresult cuDriverGetVersion(int *version) {
  *version = CUDART_VERSION;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
  *count = gpu_count();
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
  snprintf(name, size, "NVIDIA H200");
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device) {
  *value = device_attribute(which);
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = CONTEXT;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = CONTEXT;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device) {
  *device = current;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetLimit(size_t *value, CUlimit which) {
  *value = 1 << 20;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = "an error of the hollow GPU's driver";
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **text) {
  *text = "CUDA_ERROR_OF_HOLLOW_GPU";
  return CUDA_SUCCESS;
}

/* nvrtc asks for tables of private functions and reads them: these are empty. */
CUresult cuGetExportTable(const void **table, const CUuuid *id) {
  static const uint64_t empty[64];
  *table = empty;
  return CUDA_SUCCESS;
}

/* NVML: torch counts devices with it, and asks it for the links between them, of which there are
 * none. */

int nvmlDeviceGetCount_v2(unsigned *count) {
  *count = gpu_count();
  return 0;
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned size) {
  snprintf(uuid, size, "GPU-48484848-4848-4848-4848-484848484848");
  return 0;
}
const char *nvmlErrorString(int error) { return "an error of the hollow GPU's NVML"; }
