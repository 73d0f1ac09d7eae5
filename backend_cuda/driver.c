/* Opens libcuda, NVRTC and cuBLASLt and looks up what driver.def lists. A library once opened stays open until the process ends. */
#include "backend_cuda/driver.h"

#include <dlfcn.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where toolkits put their libraries when the loader does not know of them. */
static const char *const folders[] = { "", "/usr/local/cuda/lib64/", "/usr/local/cuda/lib/", "/usr/lib/wsl/lib/", "/opt/cuda/lib64/" };

/* NVRTC opens a library beside it by name alone when it compiles: where the loader does not know their folder that fails, unless the library is open by then. */
static void open_builtins(const char *folder)
{
    char pattern[256];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%slibnvrtc-builtins.so.*", folder);
    if (glob(pattern, 0, NULL, &found) == 0)
        for (size_t i = 0; i < found.gl_pathc; i++)
            dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_LOCAL);
    globfree(&found);
}

/* The first that is there, of those that are no newer than the driver: where several toolkits are installed, the one that it can run. */
static void *open_first(const char *files, int newest)
{
    for (const char *file = files; *file; file += strlen(file) + 1)
        for (size_t i = 0; i < COUNT_OF(folders); i++) {
            const char *number = strstr(file, ".so.");
            if (number && atoi(number + 4) > newest)
                break;
            char path[256];
            snprintf(path, sizeof path, "%s%s", folders[i], file);
            void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
            if (handle && *folders[i] && !strncmp(file, "libnvrtc", 8))
                open_builtins(folders[i]);
            if (handle)
                return handle;
        }
    return NULL;
}

typedef struct { const char *name, *files, *source; void *handle; bool wanted; } opened;

/* The release of CUDA that the driver is of, once its functions are there. */
static int release_of(const cuda_library *found)
{
    int version = 0;
    return found->driver_version && found->driver_version(&version) == 0 && version > 0 ? version / 1000 : INT_MAX;
}

static bool open_library(opened *library, const char *only, const cuda_library *found)
{
    library->wanted = !only || !strcmp(only, library->name);
    if (library->wanted && !library->handle)
        library->handle = open_first(library->files, only ? INT_MAX : release_of(found));
    if (library->wanted && !library->handle)             /* of a newer one machine.c says what is wrong */
        library->handle = open_first(library->files, INT_MAX);
    return !library->wanted || library->handle ||
           base_fail(BASE_FAILURE, "device cuda: %s was not found: it comes with %s", library->files, library->source);
}

static bool find(const opened *library, const char *symbol, void *function)
{
    if (!library->wanted)
        return true;
    void *address = dlsym(library->handle, symbol);
    memcpy(function, &address, sizeof address);
    return address || base_fail(BASE_FAILURE, "device cuda: %s has no %s: %s is too old", library->files, symbol, library->source);
}

static bool load(const char *only, cuda_library *to)
{
    enum {
#define LIBRARY(name, files, source) LIBRARY_##name,
#define FUNCTION(name, symbol, parameters)
#include "backend_cuda/driver.def"
#undef LIBRARY
#undef FUNCTION
        LIBRARIES
    };
    static opened libraries[LIBRARIES] = {
#define LIBRARY(name, files, source) { #name, files, source },
#define FUNCTION(name, symbol, parameters)
#include "backend_cuda/driver.def"
#undef LIBRARY
#undef FUNCTION
    };
    opened *library = NULL;
    return true
#define LIBRARY(name, files, source) && open_library(library = &libraries[LIBRARY_##name], only, to)
#define FUNCTION(name, symbol, parameters) && find(library, #symbol, &to->name)
#include "backend_cuda/driver.def"
#undef LIBRARY
#undef FUNCTION
        ;
}

static cuda_library own;
static const cuda_library *in_use;

bool cuda_library_load(const char *name, cuda_library *library) { return load(name, library); }
void cuda_library_use(const cuda_library *library) { in_use = library; }

const cuda_library *cuda_library_open(void)
{
    if (!in_use && load(NULL, &own))
        in_use = &own;
    return in_use;
}
