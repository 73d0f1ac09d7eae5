/* Kernels through NVRTC itself, where it is installed: no GPU is needed to compile for one. */
#ifndef TESTS_CUDA_NVRTC_H
#define TESTS_CUDA_NVRTC_H

#include "tests/graphs.h"

#include "backend_cuda/backend.h"

/* False, and said so, where there is no NVRTC. */
MAYBE_UNUSED static bool nvrtc_is_here(cuda_library *library)
{
    if (cuda_library_load("nvrtc", library))
        return true;
    print_message("# not compiled: %s\n", base_error());
    base_error_clear();
    return false;
}

/* Every kernel that a program asked for, for each architecture. Returns how many. */
MAYBE_UNUSED static int compile_with_nvrtc(const cuda_library *library, const cuda_compiler *compiler, const int *architectures, int n)
{
    for (int i = 0; i < compiler->n_requests; i++)
        for (int a = 0; a < n; a++) {
            char *source = cuda_request_source(&compiler->requests[i]);
            base_bytes cubin = {0};
            if (!cuda_compile_source(library, source, compiler->requests[i].name, architectures[a], false, &cubin))
                fail_msg("sm_%d: %s", architectures[a], base_error());
            assert_true(cubin.size > 0 && !memcmp(cubin.at, "\177ELF", 4));
            base_bytes_free(&cubin);
            base_free(source);
        }
    return compiler->n_requests;
}

#endif
