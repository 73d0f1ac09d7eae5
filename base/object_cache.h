/* Compiled code on disk, for all backends: an entry is bytes under a key. Who compiles says what the code depends on; this folder adds
 * the build of RAX itself. Nothing here fails: what goes wrong is a warning, once, and the code is compiled again. */
#ifndef BASE_OBJECT_CACHE_H
#define BASE_OBJECT_CACHE_H

#include "base/base.h"

/* Object code, or any bytes that came by file or compiler; at is base_alloc's. */
typedef struct { void *at; size_t size; } base_bytes;
void base_bytes_free(base_bytes *bytes);                  /* and sets it to {0} */

/* A folder of entries, each a file named by its key, checked by digest when read. Bounded: what was not used for longest
 * goes first. Several processes and threads may use one folder. Every function takes NULL for a cache that is not there. */
typedef struct base_cache base_cache;
typedef struct { uint64_t high, low; } base_key;

/* folder: NULL for $RAX_CACHE_DIR, $XDG_CACHE_HOME/rax or ~/.cache/rax; entries lie in folder/objects, made if absent.
 * limit_bytes: 0 for 256 MB. NULL, and a warning, where the folder cannot be made or is not private to the user. */
base_cache *base_cache_open(const char *folder, size_t limit_bytes);
void base_cache_close(base_cache *cache);
const char *base_cache_folder(const base_cache *cache);   /* "" for NULL */

/* The key of what text describes, compiled by this build of RAX. compiler: what compiles it and for which machine, "llvm 19.1.7 cpu ...".
 * The two must say all else that the code depends on. */
base_key base_cache_key(const char *compiler, const void *text, size_t size);

bool base_cache_get(base_cache *cache, base_key key, base_bytes *bytes);    /* false: a miss; sets no error */
void base_cache_put(base_cache *cache, base_key key, const void *at, size_t size);

#endif
