/* Memory: device memory is address space without pages behind it, pinned memory is plain memory. */
#define _GNU_SOURCE
#include "hollow.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef struct {
  char *start;
  size_t size;
  int pinned;
} Range;

enum { RANGES = 1 << 16 };
static Range ranges[RANGES];
static int range_count;
static size_t used; /* bytes of device memory */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t mebibytes(const char *variable, size_t otherwise) {
  const char *value = getenv(variable);
  return (value != NULL ? strtoull(value, NULL, 10) : otherwise) << 20;
}

size_t total_memory(void) {
  static size_t bytes;
  if (bytes == 0) bytes = mebibytes("HOLLOW_MIB", 143167); /* what an H200 reports */
  return bytes;
}

static size_t copy_limit(void) {
  static size_t bytes;
  if (bytes == 0) bytes = mebibytes("HOLLOW_COPY_MIB", 4) + 1;
  return bytes;
}

static size_t whole_pages(size_t size) { return (size + 4095) & ~(size_t)4095; }

static cudaError_t add_range(void *start, size_t size, int pinned) {
  pthread_mutex_lock(&lock);
  int i = 0;
  while (i < range_count && ranges[i].start != NULL) i++;
  if (i == RANGES) abort();
  if (i == range_count) range_count++;
  ranges[i] = (Range){start, size, pinned};
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}

/* Returns the size of the range that starts at an address, and forgets it; 0 for unknown ones. */
static size_t remove_range(const void *start) {
  size_t size = 0;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < range_count; i++) {
    if (ranges[i].start != start) continue;
    size = ranges[i].size;
    ranges[i].start = NULL;
    break;
  }
  pthread_mutex_unlock(&lock);
  return size;
}

static Range range_of(const void *address) {
  const char *at = address;
  Range found = {0};
  pthread_mutex_lock(&lock);
  for (int i = 0; i < range_count; i++) {
    const Range *range = &ranges[i];
    if (range->start == NULL || at < range->start || at >= range->start + range->size) continue;
    found = *range;
    break;
  }
  pthread_mutex_unlock(&lock);
  return found;
}

int is_pinned(const void *address) { return range_of(address).pinned; }

/* Takes device memory from the budget. Returns whether there was enough. */
static int take_bytes(size_t size) {
  pthread_mutex_lock(&lock);
  int fits = used + size <= total_memory();
  if (fits) used += size;
  pthread_mutex_unlock(&lock);
  return fits;
}

static void give_bytes(size_t size) {
  pthread_mutex_lock(&lock);
  used -= size;
  pthread_mutex_unlock(&lock);
}

cudaError_t cudaMalloc(void **address, size_t size) {
  *address = NULL;
  if (size == 0) return cudaSuccess;
  size = whole_pages(size);
  if (!take_bytes(size)) return cudaErrorMemoryAllocation;
  void *start = mmap(NULL, size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return cudaErrorMemoryAllocation;
  trace("allocate device %zu %s", size, caller());
  *address = start;
  return add_range(start, size, 0);
}

cudaError_t cudaFree(void *address) {
  size_t size = address == NULL ? 0 : remove_range(address);
  if (size == 0) return cudaSuccess;
  trace("free device %zu %s", size, caller()); /* a real one waits for the device */
  give_bytes(size);
  munmap(address, size);
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void **address, size_t size, cudaStream_t stream) {
  return cudaMalloc(address, size);
}
cudaError_t cudaFreeAsync(void *address, cudaStream_t stream) { return cudaFree(address); }

cudaError_t cudaHostAlloc(void **address, size_t size, unsigned flags) {
  size = whole_pages(size);
  *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (*address == MAP_FAILED) return cudaErrorMemoryAllocation;
  trace("allocate pinned %zu %s", size, caller());
  return add_range(*address, size, 1);
}

cudaError_t cudaFreeHost(void *address) {
  size_t size = remove_range(address);
  if (size != 0) munmap(address, size);
  return cudaSuccess;
}

cudaError_t cudaHostRegister(void *address, size_t size, unsigned flags) {
  if (is_pinned(address)) return cudaErrorHostMemoryAlreadyRegistered;
  trace("allocate pinned %zu %s", size, caller());
  return add_range(address, size, 1);
}

cudaError_t cudaHostUnregister(void *address) {
  return remove_range(address) != 0 ? cudaSuccess : cudaErrorHostMemoryNotRegistered;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
  *total_bytes = total_memory();
  *free_bytes = *total_bytes - used;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes,
                                     const void *address) {
  Range range = range_of(address);
  memset(attributes, 0, sizeof *attributes);
  if (range.start == NULL) {
    attributes->type = cudaMemoryTypeUnregistered;
    return cudaSuccess;
  }
  attributes->type = range.pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  attributes->devicePointer = (void *)address;
  attributes->hostPointer = range.pinned ? (void *)address : NULL;
  return cudaSuccess;
}

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute which, CUdeviceptr address) {
  if (range_of((void *)address).start == NULL) return CUDA_ERROR_INVALID_VALUE;
  *(CUdeviceptr *)value = address;
  return CUDA_SUCCESS;
}

/* Copies. The direction follows from the addresses, as in CUDA's unified address space. */

static int on_device(const void *address) {
  Range range = range_of(address);
  return range.start != NULL && !range.pinned;
}

static void move(void *to, const void *from, size_t size) {
  if (size < copy_limit()) memmove(to, from, size);
}

static void trace_copy(void *to, const void *from, size_t size, cudaStream_t stream) {
  int writes = on_device(to), reads = on_device(from);
  const char *direction = writes && reads ? "d2d" : writes ? "h2d" : reads ? "d2h" : "h2h";
  const void *host = writes ? from : to;
  int pageable = !(writes && reads) && !is_pinned(host);
  trace("copy %s%s %zu %s %s", direction, pageable ? "-pageable" : "", size, caller(),
        stream == NULL ? "default" : "side");
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
  trace_copy(to, from, size, stream);
  move(to, from, size);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  if (refuse_while_capturing("cudaMemcpy")) return cudaErrorStreamCaptureUnsupported;
  trace("wait copy %s 0", caller());
  trace_copy(to, from, size, NULL);
  move(to, from, size);
  return cudaSuccess;
}

cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device,
                                size_t size, cudaStream_t stream) {
  trace("copy peer %zu %s", size, caller());
  move(to, from, size);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *address, int value, size_t size, cudaStream_t stream) {
  if (size < copy_limit()) memset(address, value, size);
  trace("set %zu", size);
  return cudaSuccess;
}
cudaError_t cudaMemset(void *address, int value, size_t size) {
  return cudaMemsetAsync(address, value, size, NULL);
}

/* Virtual memory of the driver, for expandable_segments: a handle is the address of its size. */

CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *properties,
                                       CUmemAllocationGranularity_flags flags) {
  *bytes = 2 << 20;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr *address, size_t size, size_t alignment, CUdeviceptr hint,
                             unsigned long long flags) {
  void *start = mmap(NULL, size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  *address = (CUdeviceptr)start;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr address, size_t size) {
  munmap((void *)address, size);
  return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size,
                     const CUmemAllocationProp *properties, unsigned long long flags) {
  if (!take_bytes(size)) return CUDA_ERROR_OUT_OF_MEMORY;
  trace("allocate device %zu %s", size, caller());
  size_t *kept = malloc(sizeof *kept);
  *kept = size;
  *handle = (CUmemGenericAllocationHandle)kept;
  return CUDA_SUCCESS;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  size_t *kept = (size_t *)handle;
  give_bytes(*kept);
  free(kept);
  return CUDA_SUCCESS;
}

CUresult cuMemMap(CUdeviceptr address, size_t size, size_t offset,
                  CUmemGenericAllocationHandle handle, unsigned long long flags) {
  add_range((void *)address, size, 0);
  return CUDA_SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr address, size_t size) {
  for (size_t done = 0; done < size;) { /* a call may unmap several mapped pieces at once */
    size_t piece = remove_range((char *)address + done);
    if (piece == 0) return CUDA_ERROR_INVALID_VALUE;
    done += piece;
  }
  trace("free device %zu %s", size, caller());
  madvise((void *)address, size, MADV_DONTNEED);
  return CUDA_SUCCESS;
}
