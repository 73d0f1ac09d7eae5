/* Object code on disk: a second start compiles nothing.
 *
 * An entry is a file named by its key, 32 hex digits: a header, and the bytes. What is read is code that will run with the
 * user's rights, so that the folder must belong to the user and be writable by no one else, and is held open as a
 * descriptor, whatever becomes of its name later. The digest guards against damage (a full disk, a crash, a bad sector), not
 * against who can write there: such a one needs no cache.
 *
 * Writers rename a finished file into place, and an entry never changes: readers see it whole or not at all, and two writers
 * of one key write the same bytes. Reading sets an entry's time of modification, at most once an hour; by that time the
 * oldest go when the folder grows beyond its bound. The sum is counted at the first write and kept up from then on; other
 * processes' writes go unseen until the next start, so that the bound is a matter of size, not of bytes.
 *
 * A cache that does not work costs time alone. Everything that goes wrong here is therefore a warning, once, and no error. */
#include "base/object_cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

enum { DEFAULT_LIMIT_BYTES = 256 << 20, TOUCH_SECONDS = 3600, NAME_BYTES = 48 };

typedef struct {
    char magic[8];
    uint64_t size;                           /* of the bytes that follow */
    uint64_t key_high, key_low;              /* a file under another's name is no entry */
    uint64_t digest_high, digest_low;        /* of the fields above and the bytes */
    uint64_t unused[2];                      /* 0; the bytes begin at 64 */
} entry_header;
_Static_assert(sizeof(entry_header) == 64, "entries begin with 64 bytes");

static const char entry_magic[8] = "RAXOBJ1";

struct base_cache {
    char *folder;
    int fd;                                  /* of folder */
    size_t limit;
    pthread_mutex_t lock;                    /* of what follows */
    bool counted, warned;
    int damaged;                             /* entries that were met and removed */
    size_t total;                            /* bytes of all entries, as far as this process knows */
    unsigned temporaries;                    /* made by this process, for their names */
};

static void warn(const char *format, ...) PRINTF_LIKE(1, 2);
static void warn(const char *format, ...)
{
    base_text line = {0};
    va_list args;
    va_start(args, format);
    base_text_addv(&line, format, args);
    va_end(args);
    fprintf(stderr, "[RAX] %s\n", line.at);
    base_text_free(&line);
}

/* -- opening ---------------------------------------------------------------------------------------------------------- */

static char *default_folder(void)
{
    const char *own = getenv("RAX_CACHE_DIR"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    base_text path = {0};
    if (own && *own)
        base_text_add(&path, "%s", own);
    else if (xdg && *xdg == '/')             /* the XDG specification: relative paths are to be ignored */
        base_text_add(&path, "%s/rax", xdg);
    else if (home && *home)
        base_text_add(&path, "%s/.cache/rax", home);
    else
        return NULL;
    return base_text_take(&path);
}

/* mkdir -p, with mode 0700 for what is new. */
static bool make_folders(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        bool made = mkdir(path, 0700) == 0 || errno == EEXIST;
        *slash = '/';
        if (!made)
            return false;
    }
    return mkdir(path, 0700) == 0 || errno == EEXIST;
}

static int open_private(const char *folder)
{
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat s;
    if (fd < 0 || fstat(fd, &s) != 0) {
        warn("no cache of compiled code: %s: %s", folder, strerror(errno));
    } else if (s.st_uid != geteuid()) {
        warn("no cache of compiled code: %s belongs to user %ld; RAX_CACHE_DIR names another", folder, (long)s.st_uid);
    } else if (s.st_mode & (S_IWGRP | S_IWOTH)) {
        warn("no cache of compiled code: %s is writable by others; `chmod go-w` would do", folder);
    } else {
        return fd;
    }
    if (fd >= 0)
        close(fd);
    return -1;
}

base_cache *base_cache_open(const char *folder, size_t limit_bytes)
{
    char *base = folder ? base_strdup(folder) : default_folder();
    if (!base || !*base) {
        warn("no cache of compiled code: none of RAX_CACHE_DIR, XDG_CACHE_HOME and HOME is set");
        base_free(base);
        return NULL;
    }
    base_text path = {0};
    base_text_add(&path, "%s/objects", base);
    base_free(base);

    int fd = -1;
    if (make_folders(path.at))
        fd = open_private(path.at);
    else
        warn("no cache of compiled code: %s: %s", path.at, strerror(errno));
    if (fd < 0) {
        base_text_free(&path);
        return NULL;
    }
    base_cache *cache = base_alloc(sizeof *cache);
    cache->folder = base_text_take(&path);
    cache->fd = fd;
    cache->limit = limit_bytes ? limit_bytes : DEFAULT_LIMIT_BYTES;
    pthread_mutex_init(&cache->lock, NULL);
    return cache;
}

void base_cache_close(base_cache *cache)
{
    if (!cache)
        return;
    if (cache->damaged > 1)
        warn("%s: %d files were damaged and removed in all", cache->folder, cache->damaged);
    close(cache->fd);
    pthread_mutex_destroy(&cache->lock);
    base_free(cache->folder);
    base_free(cache);
}

const char *base_cache_folder(const base_cache *cache) { return cache ? cache->folder : ""; }

/* -- keys ------------------------------------------------------------------------------------------------------------- */

static XXH128_hash_t hash_two(const void *first, size_t first_size, const void *second, size_t second_size)
{
    XXH3_state_t *state = XXH3_createState();
    CHECK(state, "expected memory for a hash");
    XXH3_128bits_reset(state);
    XXH3_128bits_update(state, first, first_size);
    XXH3_128bits_update(state, second, second_size);
    XXH128_hash_t hash = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    return hash;
}

/* Code of equal text differs between builds of RAX whenever the generator was changed; that no one has to remember to raise
 * a number, the program's build-id, a digest by the linker of all that went in, is part of every key. The program is here
 * the file that holds this function, executable or library; generators must be linked into the same one. */
static char build_identity[80];

static int find_build_id(struct dl_phdr_info *info, size_t size, void *context)
{
    (void)size, (void)context;
    uintptr_t self = (uintptr_t)base_cache_key;
    bool ours = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        ours |= p->p_type == PT_LOAD && self - info->dlpi_addr - p->p_vaddr < p->p_memsz;
    }
    for (int i = 0; ours && i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        const char *note = (const char *)info->dlpi_addr + p->p_vaddr, *end = note + p->p_memsz;
        while (p->p_type == PT_NOTE && end - note >= (ptrdiff_t)sizeof(ElfW(Nhdr))) {
            const ElfW(Nhdr) *n = (const void *)note;
            const char *name = note + sizeof *n, *id = name + ((n->n_namesz + 3u) & ~3u);
            if (n->n_type == NT_GNU_BUILD_ID && n->n_namesz == 4 && memcmp(name, "GNU", 4) == 0)
                for (unsigned k = 0; k < MIN(n->n_descsz, 32u); k++)
                    snprintf(build_identity + 2 * k, 3, "%02x", (unsigned char)id[k]);
            note = id + ((n->n_descsz + 3u) & ~3u);
        }
    }
    return ours;
}

static void find_build_identity(void)
{
    struct stat s;
    dl_iterate_phdr(find_build_id, NULL);
    if (!build_identity[0] && stat("/proc/self/exe", &s) == 0)           /* linked without a build-id */
        snprintf(build_identity, sizeof build_identity, "%lld %lld.%09ld", (long long)s.st_size, (long long)s.st_mtim.tv_sec,
                 s.st_mtim.tv_nsec);
}

base_key base_cache_key(const char *compiler, const void *text, size_t size)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    char prefix[512];
    pthread_once(&once, find_build_identity);
    int len = snprintf(prefix, sizeof prefix, "rax %s %s\n", build_identity, compiler);
    CHECK(len < (int)sizeof prefix, "expected a compiler of fewer words than %s", compiler);
    XXH128_hash_t hash = hash_two(prefix, (size_t)len, text, size);
    return (base_key){ hash.high64, hash.low64 };
}

static void entry_name(base_key key, char name[NAME_BYTES])
{
    snprintf(name, NAME_BYTES, "%016llx%016llx.o", (unsigned long long)key.high, (unsigned long long)key.low);
}

static entry_header header_of(base_key key, const void *at, size_t size)
{
    entry_header h = { .size = size, .key_high = key.high, .key_low = key.low };
    memcpy(h.magic, entry_magic, sizeof h.magic);
    XXH128_hash_t digest = hash_two(&h, offsetof(entry_header, digest_high), at, size);
    h.digest_high = digest.high64;
    h.digest_low = digest.low64;
    return h;
}

/* -- files ------------------------------------------------------------------------------------------------------------ */

static bool read_all(int fd, void *at, size_t size)
{
    for (char *to = at; size > 0; ) {
        ssize_t n = read(fd, to, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        to += n;
        size -= (size_t)n;
    }
    return true;
}

static bool write_all(int fd, const void *at, size_t size)
{
    for (const char *from = at; size > 0; ) {
        ssize_t n = write(fd, from, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        from += n;
        size -= (size_t)n;
    }
    return true;
}

/* -- the bound -------------------------------------------------------------------------------------------------------- */

typedef struct { char name[NAME_BYTES]; struct timespec used; size_t size; } listed;
typedef struct { listed *at; size_t n, cap; } listing;

static bool is_entry_name(const char *name) { return strspn(name, "0123456789abcdef") == 32 && strcmp(name + 32, ".o") == 0; }

/* Lists the entries, and removes temporary files that a killed process left over an hour ago. */
static listing list_entries(const base_cache *cache)
{
    listing list = {0};
    int fd = openat(cache->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (!dir) {
        if (fd >= 0)
            close(fd);
        return list;
    }
    for (struct dirent *e; (e = readdir(dir)); ) {
        struct stat s;
        bool temporary = strncmp(e->d_name, "tmp-", 4) == 0;
        if ((!temporary && !is_entry_name(e->d_name)) || fstatat(cache->fd, e->d_name, &s, AT_SYMLINK_NOFOLLOW) != 0)
            continue;
        if (temporary) {
            if (s.st_mtime + TOUCH_SECONDS < time(NULL))
                unlinkat(cache->fd, e->d_name, 0);
            continue;
        }
        if (list.n == list.cap) {
            size_t cap = MAX(list.cap * 2, (size_t)64);
            list.at = base_realloc(list.at, list.cap * sizeof(listed), cap * sizeof(listed));
            list.cap = cap;
        }
        listed *l = &list.at[list.n++];
        strcpy(l->name, e->d_name);          /* 34 bytes, as is_entry_name has seen */
        l->used = s.st_mtim;
        l->size = (size_t)s.st_size;
    }
    closedir(dir);
    return list;
}

static int by_use(const void *a, const void *b)
{
    const listed *x = a, *y = b;
    if (x->used.tv_sec != y->used.tv_sec)
        return x->used.tv_sec < y->used.tv_sec ? -1 : 1;
    if (x->used.tv_nsec != y->used.tv_nsec)
        return x->used.tv_nsec < y->used.tv_nsec ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* Counts the folder anew, and where it is over the bound, removes down to nine tenths of it, so that not every write from
 * then on has to. With the lock held. */
static void trim(base_cache *cache)
{
    listing list = list_entries(cache);
    cache->total = 0;
    for (size_t i = 0; i < list.n; i++)
        cache->total += list.at[i].size;
    cache->counted = true;
    if (cache->total > cache->limit) {
        qsort(list.at, list.n, sizeof(listed), by_use);
        for (size_t i = 0; i < list.n && cache->total > cache->limit / 10 * 9; i++)
            if (unlinkat(cache->fd, list.at[i].name, 0) == 0)
                cache->total -= list.at[i].size;
    }
    base_free(list.at);
}

static void account(base_cache *cache, size_t bytes)
{
    pthread_mutex_lock(&cache->lock);
    cache->total += bytes;
    if (!cache->counted || cache->total > cache->limit)
        trim(cache);
    pthread_mutex_unlock(&cache->lock);
}

void base_bytes_free(base_bytes *bytes)
{
    base_free(bytes->at);
    *bytes = (base_bytes){0};
}

/* -- get and put ------------------------------------------------------------------------------------------------------ */

static bool read_entry(int fd, base_key key, base_bytes *bytes)
{
    entry_header h;
    struct stat s;
    if (fstat(fd, &s) != 0 || !S_ISREG(s.st_mode) || s.st_size < (off_t)sizeof h || !read_all(fd, &h, sizeof h) ||
        memcmp(h.magic, entry_magic, sizeof h.magic) != 0 || h.size != (uint64_t)s.st_size - sizeof h)
        return false;
    bytes->size = (size_t)h.size;
    bytes->at = base_alloc(bytes->size);
    if (read_all(fd, bytes->at, bytes->size)) {
        entry_header expected = header_of(key, bytes->at, bytes->size);
        if (memcmp(&h, &expected, sizeof h) == 0)
            return true;
    }
    base_bytes_free(bytes);
    return false;
}

/* A line for the first; what a full disk or a crash has done to others of them is told in one when the cache is closed. */
static void note_damaged(base_cache *cache, const char *name)
{
    pthread_mutex_lock(&cache->lock);
    bool first = cache->damaged++ == 0;
    pthread_mutex_unlock(&cache->lock);
    if (first)
        warn("%s/%s is damaged and was removed: its code is compiled again", cache->folder, name);
}

bool base_cache_get(base_cache *cache, base_key key, base_bytes *bytes)
{
    char name[NAME_BYTES];
    *bytes = (base_bytes){0};
    if (!cache)
        return false;
    entry_name(key, name);
    int fd = openat(cache->fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        if (errno != ENOENT)
            warn("%s/%s: %s", cache->folder, name, strerror(errno));
        return false;
    }
    bool found = read_entry(fd, key, bytes);
    if (found) {
        struct stat s;
        if (fstat(fd, &s) == 0 && s.st_mtime + TOUCH_SECONDS < time(NULL))
            futimens(fd, NULL);
    } else {
        note_damaged(cache, name);
        unlinkat(cache->fd, name, 0);
    }
    close(fd);
    return found;
}

static bool write_entry(base_cache *cache, const char *temporary, base_key key, const void *at, size_t size)
{
    char name[NAME_BYTES];
    entry_header h = header_of(key, at, size);
    int fd = openat(cache->fd, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    entry_name(key, name);
    bool written = write_all(fd, &h, sizeof h) && write_all(fd, at, size);
    int reason = errno;
    if (close(fd) != 0 && written) {
        written = false;
        reason = errno;
    }
    if (written && renameat(cache->fd, temporary, cache->fd, name) == 0)
        return true;
    if (written)
        reason = errno;
    unlinkat(cache->fd, temporary, 0);
    errno = reason;
    return false;
}

/* Not flushed to the disk: after a crash of the system an entry may be damaged, which its digest tells, and a flush a kernel
 * would cost more than compiling it. */
void base_cache_put(base_cache *cache, base_key key, const void *at, size_t size)
{
    if (!cache || size > cache->limit)
        return;
    char temporary[NAME_BYTES];
    struct timespec now;
    pthread_mutex_lock(&cache->lock);
    unsigned number = cache->temporaries++;
    pthread_mutex_unlock(&cache->lock);
    clock_gettime(CLOCK_REALTIME, &now);         /* processes of two containers may have one number */
    snprintf(temporary, sizeof temporary, "tmp-%ld-%u-%lx", (long)getpid(), number, (unsigned long)now.tv_nsec);

    if (write_entry(cache, temporary, key, at, size)) {
        account(cache, sizeof(entry_header) + size);
        return;
    }
    int reason = errno;
    pthread_mutex_lock(&cache->lock);
    bool first = !cache->warned;
    cache->warned = true;
    pthread_mutex_unlock(&cache->lock);
    if (first)
        warn("compiled code is not kept: %s: %s", cache->folder, strerror(reason));
}
