/* NCCL, cuBLAS and cuDNN: the functions that must return something. Collectives and products are
 * recorded. The declarations follow the libraries' own; their headers are not needed. */
#include "hollow.h"

#include <stdlib.h>
#include <string.h>

/* NCCL */

enum { UNIQUE_ID_BYTES = 128 };
typedef struct {
  char bytes[UNIQUE_ID_BYTES];
} UniqueId;
typedef struct {
  int size, rank;
} Communicator;

int ncclGetVersion(int *version) {
  *version = 22809;
  return 0;
}

int ncclGetUniqueId(UniqueId *id) {
  memset(id, 7, sizeof *id);
  return 0;
}

static int communicator(void **made, int size, int rank) {
  Communicator *one = malloc(sizeof *one);
  *one = (Communicator){size, rank};
  *made = one;
  return 0;
}

int ncclCommInitRank(void **made, int size, UniqueId id, int rank) {
  return communicator(made, size, rank);
}
int ncclCommInitRankConfig(void **made, int size, UniqueId id, int rank, void *config) {
  return communicator(made, size, rank);
}
int ncclCommInitRankScalable(void **made, int size, int rank, int ids, void *id, void *config) {
  return communicator(made, size, rank);
}

/* How many ranks have the same color is for the ranks to exchange: the trace says 0. */
int ncclCommSplit(Communicator *parent, int color, int key, void **made, void *config) {
  return communicator(made, 0, key);
}

int ncclCommGetAsyncError(Communicator *of, int *error) {
  *error = 0;
  return 0;
}
int ncclCommCount(Communicator *of, int *size) {
  *size = of->size;
  return 0;
}
int ncclCommUserRank(Communicator *of, int *rank) {
  *rank = of->rank;
  return 0;
}
const char *ncclGetErrorString(int error) { return "an error of the hollow GPU's NCCL"; }
const char *ncclGetLastError(Communicator *of) { return ""; }
int ncclMemAlloc(void **address, size_t size) { return cudaMalloc(address, size); }
int ncclMemFree(void *address) { return cudaFree(address); }

/* Bytes and names of ncclDataType_t, in its order. */
static const struct {
  const char *name;
  int bytes;
} TYPES[] = {{"int8", 1},    {"uint8", 1},   {"int32", 4},   {"uint32", 4},
             {"int64", 8},   {"uint64", 8},  {"float16", 2}, {"float32", 4},
             {"float64", 8}, {"bfloat16", 2}, {"fp8_e4m3", 1}, {"fp8_e5m2", 1}};

static int collective(const char *name, size_t count, int type, const Communicator *on) {
  trace("collective %s %zu %s %d", name, count * TYPES[type].bytes, TYPES[type].name, on->size);
  return 0;
}

/* Bytes are those of the buffer that each rank passes: its part in all_gather, all in
 * reduce_scatter counts `count` per rank as well. */
int ncclAllReduce(void *send, void *receive, size_t count, int type, int op, Communicator *on,
                  cudaStream_t stream) {
  return collective("all_reduce", count, type, on);
}
int ncclAllGather(void *send, void *receive, size_t count, int type, Communicator *on,
                  cudaStream_t stream) {
  return collective("all_gather", count, type, on);
}
int ncclReduceScatter(void *send, void *receive, size_t count, int type, int op, Communicator *on,
                      cudaStream_t stream) {
  return collective("reduce_scatter", count, type, on);
}
int ncclBroadcast(void *send, void *receive, size_t count, int type, int root, Communicator *on,
                  cudaStream_t stream) {
  return collective("broadcast", count, type, on);
}
int ncclReduce(void *send, void *receive, size_t count, int type, int op, int root,
               Communicator *on, cudaStream_t stream) {
  return collective("reduce", count, type, on);
}
int ncclAlltoAll(void *send, void *receive, size_t count, int type, Communicator *on,
                 cudaStream_t stream) {
  return collective("all_to_all", count, type, on);
}
int ncclSend(void *send, size_t count, int type, int peer, Communicator *on, cudaStream_t stream) {
  return collective("send", count, type, on);
}
int ncclRecv(void *receive, size_t count, int type, int peer, Communicator *on,
             cudaStream_t stream) {
  return collective("receive", count, type, on);
}

/* cuBLAS */

int cublasCreate_v2(void **handle) {
  *handle = new_handle();
  return 0;
}
int cublasGetMathMode(void *handle, int *mode) {
  *mode = 0;
  return 0;
}
int cublasGetPointerMode_v2(void *handle, int *mode) {
  *mode = 0;
  return 0;
}
const char *cublasGetStatusString(int status) { return "a status of the hollow GPU's cuBLAS"; }

int cublasGemmEx(void *handle, int transpose_a, int transpose_b, int m, int n, int k) {
  trace("product gemm %d %d %d", m, n, k);
  return 0;
}
int cublasGemmStridedBatchedEx(void *handle, int transpose_a, int transpose_b, int m, int n,
                               int k) {
  trace("product batched %d %d %d", m, n, k);
  return 0;
}
int cublasSgemm_v2(void *handle, int transpose_a, int transpose_b, int m, int n, int k) {
  trace("product sgemm %d %d %d", m, n, k);
  return 0;
}
int cublasSgemmStridedBatched(void *handle, int transpose_a, int transpose_b, int m, int n,
                              int k) {
  trace("product batched %d %d %d", m, n, k);
  return 0;
}

/* A layout's handle is a pointer to its sizes, so that a product can be told by its shape. */
typedef struct {
  uint64_t rows, columns;
} MatrixLayout;
typedef struct {
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
} Heuristic;

size_t cublasLtGetVersion(void) { return 130100; }
int cublasLtCreate(void **handle) {
  *handle = new_handle();
  return 0;
}
int cublasLtMatmulDescCreate(void **descriptor, int compute, int scale) {
  *descriptor = new_handle();
  return 0;
}
int cublasLtMatrixLayoutCreate(MatrixLayout **layout, int type, uint64_t rows, uint64_t columns,
                               int64_t stride) {
  *layout = malloc(sizeof **layout);
  **layout = (MatrixLayout){rows, columns};
  return 0;
}
int cublasLtMatrixLayoutDestroy(MatrixLayout *layout) {
  free(layout);
  return 0;
}
int cublasLtMatmulPreferenceCreate(void **preference) {
  *preference = new_handle();
  return 0;
}
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c,
                                   void *d, void *preference, int wanted, Heuristic *results,
                                   int *found) {
  memset(results, 0, sizeof *results);
  *found = 1;
  return 0;
}
int cublasLtMatmul(void *handle, void *operation, const void *alpha, const void *a,
                   const MatrixLayout *a_layout, const void *b, const MatrixLayout *b_layout,
                   const void *beta, const void *c, const MatrixLayout *c_layout, void *d,
                   const MatrixLayout *d_layout) {
  uint64_t inner = a_layout->rows == d_layout->rows ? a_layout->columns : a_layout->rows;
  trace("product lt %zu %zu %zu", (size_t)d_layout->rows, (size_t)d_layout->columns,
        (size_t)inner);
  return 0;
}

/* cuDNN */

enum { CUDNN_MAJOR = 9, CUDNN_MINOR = 24 };
enum { TYPE_INT64 = 3, TYPE_BACKEND_DESCRIPTOR = 15, TYPE_INT32 = 23 };

int cudnnGetProperty(int which, int *value) {
  *value = which == 0 ? CUDNN_MAJOR : which == 1 ? CUDNN_MINOR : 0;
  return 0;
}
size_t cudnnGetVersion(void) { return CUDNN_MAJOR * 10000 + CUDNN_MINOR * 100; }
size_t cudnnGetCudartVersion(void) { return CUDART_VERSION; }
const char *cudnnGetErrorString(int status) { return "a status of the hollow GPU's cuDNN"; }
void cudnnGetLastErrorString(char *text, size_t size) {
  if (size > 0) *text = 0;
}
int cudnnCreate(void **handle) {
  *handle = new_handle();
  return 0;
}
int cudnnBackendCreateDescriptor(int type, void **descriptor) {
  *descriptor = new_handle();
  return 0;
}

/* One engine for each question, without notes, workspace or knobs: so each graph gets a plan. */
int cudnnBackendGetAttribute(void *descriptor, int name, int type, int64_t wanted, int64_t *count,
                             void *elements) {
  if (count != NULL) *count = type == TYPE_INT64 || type == TYPE_BACKEND_DESCRIPTOR;
  if (elements != NULL && wanted > 0 && type == TYPE_INT64) *(int64_t *)elements = 0;
  if (elements != NULL && wanted > 0 && type == TYPE_INT32) *(int32_t *)elements = 0;
  return 0;
}

int cudnnBackendExecute(void *handle, void *plan, void *variables) {
  trace("kernel cudnn_plan 1 1 1 1");
  return 0;
}
