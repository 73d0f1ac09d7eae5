/* LLVM, opened when the first kernel has to be compiled: opening libLLVM costs more than all else that a start does whose code
 * is on disk, and a machine without it runs such code all the same.
 *
 * Each function of LLVM-C is defined here, as a jump through a pointer that opening sets. So the files that generate code include
 * LLVM's own headers and call what these declare, checked by the compiler; and the functions that are called are listed once, by
 * name. (A table of pointers and macros that redirect calls to it would want every name twice; code generation in a shared
 * object of its own would make two files of one program.) The jumps are an instruction or three of assembly; where the build
 * finds no shared libLLVM, or an architecture that they are not written for, it links LLVM as any library. */
#include "backend_cpu/runtime.h"

#include <llvm/Config/llvm-config.h>

#ifndef LLVM_SONAME

bool cpu_llvm_open(void) { return true; }

#else

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

static void not_open(void) { base_bug(__FILE__, __LINE__, "expected LLVM to be open before it is called: cpu_llvm_open"); }

/* -- the jumps -------------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
#define JUMP(pointer) "jmp *" pointer "(%rip)\n"
#elif defined(__aarch64__)
#define JUMP(pointer) "adrp x16, " pointer "\nldr x16, [x16, :lo12:" pointer "]\nbr x16\n"
#endif

#define DEFINE(name)                                                                                                    \
    __attribute__((visibility("hidden"))) extern void *cpu_at_##name;                                                   \
    void *cpu_at_##name = (void *)not_open;                                                                             \
    __asm__(".pushsection .text\n.balign 8\n.globl " #name "\n.hidden " #name "\n.type " #name ", %function\n" #name    \
            ":\n" JUMP("cpu_at_" #name) ".size " #name ", .-" #name "\n.popsection");
#define FUNCTION(name) DEFINE(name)
#include "backend_cpu/llvm_functions.def"
#undef FUNCTION

/* -- opening ---------------------------------------------------------------------------------------------------------- */

#define ROW(name) { #name, &cpu_at_##name },
#define FUNCTION(name) ROW(name)
static const struct { const char *name; void **at; } functions[] = {
#include "backend_cpu/llvm_functions.def"
};
#undef FUNCTION

static char failure[512];                    /* why LLVM cannot be had; "" where it can */

static void fail(const char *why, const char *name)
{
    if (!*failure)
        snprintf(failure, sizeof failure, "%s%s", why, name);
}

/* The library that the build was made with, wherever it is now, or in the folder where it was then. It is never closed. */
static void open_library(void)
{
    void *library = dlopen(LLVM_SONAME, RTLD_LAZY | RTLD_LOCAL);
    if (!library)
        library = dlopen(LLVM_FOLDER "/" LLVM_SONAME, RTLD_LAZY | RTLD_LOCAL);
    if (!library)
        fail(dlerror(), "");
    for (size_t i = 0; library && i < COUNT_OF(functions); i++) {
        void *found = dlsym(library, functions[i].name);
        if (found)
            *functions[i].at = found;
        else
            fail("it has no ", functions[i].name);
    }
}

bool cpu_llvm_open(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, open_library);
    return !*failure || base_fail(BASE_FAILURE, "compiling needs %s, which cannot be had (only code in the cache runs without it): %s",
                                  LLVM_SONAME, failure);
}

#endif
