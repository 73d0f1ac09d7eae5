/* OpenBLAS, opened when the first product goes to it: it starts threads and takes buffers as soon as it is in memory, and on most
 * machines every product is generated code. */
#include "backend_cpu/contraction.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

static cpu_blas blas;
static char failure[512];                    /* why it cannot be had; "" where it can */

static void *find(void *library, const char *name)
{
    void *found = dlsym(library, name);
    if (!found)
        snprintf(failure, sizeof failure, "it has no %s", name);
    return found;
}

static void open_library(void)
{
    static const char *const names[] = { "libopenblas.so.0", "libopenblas.so" };
    void *library = NULL;
    for (size_t i = 0; i < COUNT_OF(names) && !library; i++)
        library = dlopen(names[i], RTLD_LAZY | RTLD_LOCAL);
    if (!library) {
        snprintf(failure, sizeof failure, "%s", dlerror());
        return;
    }
    void (*set_threads)(int) = (void (*)(int))find(library, "openblas_set_num_threads");
    char *(*core_name)(void) = (char *(*)(void))find(library, "openblas_get_corename");
    blas.sgemm = (__typeof__(blas.sgemm))find(library, "cblas_sgemm");
    blas.dgemm = (__typeof__(blas.dgemm))find(library, "cblas_dgemm");
    if (!*failure) {
        set_threads(1);
        blas.core = core_name();
    }
}

const cpu_blas *cpu_blas_open(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, open_library);
    if (!*failure)
        return &blas;
    base_fail(BASE_FAILURE, "products of this kind need OpenBLAS, which cannot be had: %s", failure);
    return NULL;
}
