/* Text, paths, folders, and files written beside what they replace: flushed, then renamed, so that a kill or a full disk
 * leaves the old file or the whole new one. */
#include "nanogpt/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "rax.h"

/* -- text and paths ------------------------------------------------------------------------------------------------- */

char *gpt_format(const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    size_t bytes = (size_t)vsnprintf(NULL, 0, format, args) + 1;
    char *text = rax_alloc(bytes);
    vsnprintf(text, bytes, format, again);
    va_end(again);
    va_end(args);
    return text;
}

char *gpt_path_join(const char *folder, const char *path)
{
    if (path[0] == '/' || folder[0] == '\0' || strcmp(folder, ".") == 0)
        return gpt_format("%s", path);
    return gpt_format("%s%s%s", folder, folder[strlen(folder) - 1] == '/' ? "" : "/", path);
}

char *gpt_path_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        return gpt_format(".");
    return slash == path ? gpt_format("/") : gpt_format("%.*s", (int)(slash - path), path);
}

char *gpt_path_absolute(const char *path)
{
    char here[4096];
    return gpt_path_join(getcwd(here, sizeof here) ? here : ".", path);
}

/* -- folders -------------------------------------------------------------------------------------------------------- */

bool gpt_folder_make(const char *path)
{
    struct stat found;
    char *part = gpt_format("%s", path);
    int reason = 0;

    for (char *end = part + 1; !reason && end[-1] != '\0'; end++) {      /* every prefix that ends before a slash, or at the end */
        if (*end != '/' && *end != '\0')
            continue;
        char kept = *end;
        *end = '\0';
        if (mkdir(part, 0777) != 0) {
            reason = errno;
            if (stat(part, &found) == 0)
                reason = S_ISDIR(found.st_mode) ? 0 : ENOTDIR;
        }
        *end = kept;
    }
    rax_free(part);
    return !reason || rax_fail(RAX_FAILURE, "%s: cannot make the folder: %s", path, strerror(reason));
}

static bool remove_in(int folder, const char *name)
{
    if (unlinkat(folder, name, 0) == 0 || errno == ENOENT)
        return true;
    if (errno != EISDIR)
        return false;
    int inside = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *list = inside < 0 ? NULL : fdopendir(inside);
    if (!list) {
        if (inside >= 0)
            close(inside);
        return false;
    }
    bool gone = true;
    for (struct dirent *entry; (entry = readdir(list)) && gone;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            gone = remove_in(dirfd(list), entry->d_name);
    int reason = errno;
    closedir(list);
    errno = reason;
    return gone && unlinkat(folder, name, AT_REMOVEDIR) == 0;
}

bool gpt_folder_remove(const char *path)
{
    return remove_in(AT_FDCWD, path) || rax_fail(RAX_FAILURE, "%s: cannot be removed: %s", path, strerror(errno));
}

bool gpt_folder_flush(const char *path)
{
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool flushed = folder >= 0 && (fsync(folder) == 0 || errno == EINVAL);       /* EINVAL: this file system cannot */
    int reason = errno;
    if (folder >= 0)
        close(folder);
    return flushed || rax_fail(RAX_FAILURE, "%s: cannot flush the folder: %s", path, strerror(reason));
}

/* -- reading -------------------------------------------------------------------------------------------------------- */

char *gpt_file_read(const char *path, size_t *bytes)
{
    struct stat found;
    char *text = NULL;
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);     /* O_NONBLOCK: a pipe is refused below, not waited for */

    if (file < 0 || fstat(file, &found) != 0) {
        rax_fail(RAX_MISTAKE, "%s: cannot be read: %s", path, strerror(errno));
    } else if (!S_ISREG(found.st_mode)) {
        rax_fail(RAX_MISTAKE, "%s: is not a file", path);
    } else if (!(text = rax_try_alloc((size_t)found.st_size + 1))) {
        rax_fail(RAX_FAILURE, "%s: no memory for its %lld bytes", path, (long long)found.st_size);
    } else {
        size_t have = 0;
        ssize_t got = 1;
        while (got != 0 && have < (size_t)found.st_size) {
            got = read(file, text + have, (size_t)found.st_size - have);
            if (got < 0 && errno != EINTR)
                break;
            have += got > 0 ? (size_t)got : 0;
            got = got < 0 ? 1 : got;
        }
        *bytes = have;
        if (got < 0) {
            rax_fail(RAX_FAILURE, "%s: cannot be read: %s", path, strerror(errno));
            rax_free(text);
            text = NULL;
        }
    }
    if (file >= 0)
        close(file);
    return text;
}

/* -- writing -------------------------------------------------------------------------------------------------------- */

struct gpt_new_file {
    char *path, *temporary;
    int file;
    int reason;                 /* errno of the first thing that failed; 0: all is well */
    XXH3_state_t *digest;
};

gpt_new_file *gpt_new_file_open(const char *path)
{
    gpt_new_file *new = rax_alloc(sizeof *new);
    new->path = gpt_format("%s", path);
    new->temporary = gpt_format("%s.tmp", path);     /* a fixed name, so that the next write takes the place of a leftover */
    new->file = open(new->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    new->reason = new->file < 0 ? errno : 0;
    new->digest = XXH3_createState();
    if (!new->digest)
        new->reason = ENOMEM;
    else
        XXH3_64bits_reset(new->digest);
    return new;
}

void gpt_new_file_write(gpt_new_file *new, const void *bytes, size_t count)
{
    if (new->reason)
        return;
    if (count > 0)
        XXH3_64bits_update(new->digest, bytes, count);
    for (const char *at = bytes; count > 0;) {
        ssize_t put = write(new->file, at, count);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0) {
            new->reason = errno;
            return;
        }
        at += put;
        count -= (size_t)put;
    }
}

static void new_file_free(gpt_new_file *new)
{
    if (new->file >= 0)
        close(new->file);
    XXH3_freeState(new->digest);
    rax_free(new->temporary);
    rax_free(new->path);
    rax_free(new);
}

bool gpt_new_file_commit(gpt_new_file *new, uint64_t *digest)
{
    if (!new->reason && fsync(new->file) != 0)
        new->reason = errno;
    if (!new->reason && rename(new->temporary, new->path) != 0)
        new->reason = errno;
    if (new->reason) {
        rax_fail(RAX_FAILURE, "%s: cannot be written: %s", new->path, strerror(new->reason));
        gpt_new_file_abandon(new);
        return false;
    }
    if (digest)
        *digest = XXH3_64bits_digest(new->digest);
    char *folder = gpt_path_folder(new->path);
    bool flushed = gpt_folder_flush(folder);
    rax_free(folder);
    new_file_free(new);
    return flushed;
}

void gpt_new_file_abandon(gpt_new_file *new)
{
    if (new->file >= 0)
        unlink(new->temporary);
    new_file_free(new);
}
