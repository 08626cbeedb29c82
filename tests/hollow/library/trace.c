/* The record of what was asked of the GPU: one line per call, in order. */
#define _GNU_SOURCE
#include "hollow.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static FILE *sink;
static char *text;
static size_t length;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* A hollow GPU in place of a real one would train on garbage without a word. */
__attribute__((constructor)) static void begin(void) {
  if (access("/dev/nvidiactl", F_OK) == 0) {
    fputs("hollow GPU: this machine has a real NVIDIA driver; refusing to replace it.\n", stderr);
    _exit(1);
  }
  const char *path = getenv("HOLLOW_TRACE");
  if (path != NULL) {
    char name[4096];
    snprintf(name, sizeof name, "%s.%d", path, getpid());
    sink = fopen(name, "a");
  }
}

void trace(const char *format, ...) {
  if (sink == NULL) return;
  va_list arguments;
  va_start(arguments, format);
  pthread_mutex_lock(&lock);
  if (sink != NULL) {
    vfprintf(sink, format, arguments);
    fputc('\n', sink);
  }
  pthread_mutex_unlock(&lock);
  va_end(arguments);
}

/* Returns whether a call comes from the main thread, from autograd's, or from another thread. */
const char *caller(void) {
  if (gettid() == getpid()) return "main";
  char name[16] = "";
  pthread_getname_np(pthread_self(), name, sizeof name);
  return strncmp(name, "pt_autograd", 11) == 0 ? "autograd" : "other";
}

/* The functions for Python, which calls them through ctypes. */

void hollow_record(void) {
  pthread_mutex_lock(&lock);
  if (sink == NULL) sink = open_memstream(&text, &length);
  pthread_mutex_unlock(&lock);
}

void hollow_mark(const char *mark) {
  trace("mark %s", mark);
  pthread_mutex_lock(&lock);
  if (sink != NULL) fflush(sink);
  pthread_mutex_unlock(&lock);
}

/* Ends the recording and returns its text, which belongs to the caller until hollow_free. */
char *hollow_take(void) {
  pthread_mutex_lock(&lock);
  char *taken = NULL;
  if (sink != NULL) {
    fclose(sink);
    taken = text;
    sink = NULL;
    text = NULL;
  }
  pthread_mutex_unlock(&lock);
  return taken;
}

void hollow_free(char *taken) { free(taken); }
