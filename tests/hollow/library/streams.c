/* Streams, events and CUDA graphs. All work is done at once; a wait is recorded. */
#include "hollow.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

void *new_handle(void) {
  static _Atomic uintptr_t next = 0x4000;
  return (void *)(next += 64);
}

/* Capture: the stream on which it began, and those that joined it through events. */

enum { JOINED = 256 };
static const void *joined[JOINED]; /* streams, and events recorded on them */
static atomic_int joined_count;
static atomic_ullong capture_id;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int has_joined(const void *handle) {
  if (joined_count == 0) return 0;
  int found = 0;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < joined_count; i++) found |= joined[i] == handle;
  pthread_mutex_unlock(&lock);
  return found;
}

static void join(const void *handle) {
  if (has_joined(handle)) return;
  pthread_mutex_lock(&lock);
  if (joined_count == JOINED) abort();
  joined[joined_count] = handle;
  joined_count++;
  pthread_mutex_unlock(&lock);
}

/* Records and returns whether the call is one that CUDA refuses during capture. */
int refuse_while_capturing(const char *call) {
  if (joined_count == 0) return 0;
  trace("refused %s 0 0 0 0", call);
  return 1;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  if (joined_count != 0) return cudaErrorIllegalState;
  capture_id++;
  join(stream);
  trace("capture begin");
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  if (!has_joined(stream)) return cudaErrorIllegalState;
  joined_count = 0;
  *graph = new_handle();
  trace("capture end");
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = has_joined(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph,
                                     const cudaGraphNode_t **dependencies,
                                     const cudaGraphEdgeData **edges, size_t *count) {
  cudaStreamIsCapturing(stream, status);
  if (id != NULL) *id = *status == cudaStreamCaptureStatusActive ? capture_id : 0;
  if (graph != NULL) *graph = NULL;
  if (dependencies != NULL) *dependencies = NULL;
  if (edges != NULL) *edges = NULL;
  if (count != NULL) *count = 0;
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
  *count = 1; /* torch warns of a graph without nodes */
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                 unsigned long long flags) {
  *exec = new_handle();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph,
                                          unsigned long long flags) {
  return cudaGraphInstantiate(exec, graph, flags);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  trace("graph launch");
  return cudaSuccess;
}

/* Streams. */

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
  *stream = new_handle();
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
  return cudaStreamCreate(stream);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  return cudaStreamCreate(stream);
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
  *priority = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  if (has_joined(event)) join(stream);
  /* A graph cannot contain a wait for what is recorded outside of it. */
  else if (has_joined(stream) && *(unsigned long long *)event != 0) {
    trace("refused cudaStreamWaitEvent 0 0 0 0");
    return cudaErrorStreamCaptureIsolation;
  }
  trace("order %s", stream == NULL ? "default" : "side");
  return cudaSuccess;
}

/* `queued` is the number of launches that the device still has when the wait is over: a wait for
 * an event of the step before leaves the device a whole step of work, and costs nothing. */
static cudaError_t wait(const char *what, unsigned long long queued) {
  if (refuse_while_capturing(what)) return cudaErrorStreamCaptureUnsupported;
  trace("wait %s %s %llu", what, caller(), queued);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return wait("stream", 0); }
cudaError_t cudaDeviceSynchronize(void) { return wait("device", 0); }
CUresult cuStreamSynchronize(CUstream stream) {
  return wait("stream", 0) == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
  function(data);
  return cudaSuccess;
}

cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t callback, void *data,
                                  unsigned flags) {
  callback(stream, cudaSuccess, data);
  return cudaSuccess;
}

/* Events: a handle is a pointer to the number of launches when the event was last recorded. */

cudaError_t cudaEventCreate(cudaEvent_t *event) {
  *event = (cudaEvent_t)calloc(1, sizeof(unsigned long long));
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  return cudaEventCreate(event);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  free(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  *(unsigned long long *)event = launch_count();
  if (has_joined(stream)) join(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return wait("event", launch_count() - *(unsigned long long *)event);
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
  unsigned long long launches = *(unsigned long long *)end - *(unsigned long long *)start;
  *milliseconds = launches == 0 ? 1.0f : (float)launches;
  return cudaSuccess;
}
