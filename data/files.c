/* Mapped files, files that are written whole or not at all, folders, digests. */
#include "data/data.h"
#include "rax.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <libgen.h>
#include <openssl/evp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

char *data_format(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int len = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *text = rax_alloc((size_t)len + 1);
    va_start(args, format);
    vsnprintf(text, (size_t)len + 1, format, args);
    va_end(args);
    return text;
}

/* What is to be read and is not there was named wrongly: a mistake. All else is the machine's. */
bool data_fail_read(const char *path, const char *what)
{
    int reason = errno;
    bool named_wrongly = reason == ENOENT || reason == ENOTDIR || reason == EISDIR || reason == EACCES || reason == ENAMETOOLONG;
    return rax_fail(named_wrongly ? RAX_MISTAKE : RAX_FAILURE, "%s: %s: %s", path, what, strerror(reason));
}

bool data_fail_write(const char *path, const char *what) { return rax_fail(RAX_FAILURE, "%s: %s: %s", path, what, strerror(errno)); }

/* -- reading ---------------------------------------------------------------------------------------------------------- */

bool data_map(const char *path, data_text *text)
{
    *text = (data_text){ "", 0 };
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);      /* O_NONBLOCK: a pipe is refused below, not waited for */
    if (fd < 0)
        return data_fail_read(path, "cannot be opened");
    struct stat info;
    if (fstat(fd, &info) != 0) {
        data_fail_read(path, "cannot be read");
        close(fd);
        return false;
    }
    if (!S_ISREG(info.st_mode)) {
        close(fd);
        return rax_fail(RAX_MISTAKE, "%s: expected a regular file, found %s", path,
                        S_ISDIR(info.st_mode) ? "a folder" : "a device or pipe");
    }
    if (info.st_size > 0) {
        void *at = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (at == MAP_FAILED) {
            data_fail_read(path, "cannot be mapped");
            close(fd);
            return false;
        }
        *text = (data_text){ at, (size_t)info.st_size };
    }
    close(fd);
    return true;
}

void data_unmap(data_text *text)
{
    if (text->len > 0)
        munmap((void *)text->at, text->len);
    *text = (data_text){ "", 0 };
}

/* -- writing ---------------------------------------------------------------------------------------------------------- */

struct data_writer {
    int fd;                          /* -1 once it has failed or is whole */
    char *path, *temporary;
    bool failed;
    size_t used;
    char buffer[1 << 16];
};

char *data_temporary_name(const char *path)
{
    static atomic_uint serial;       /* threads of one process may write the same file */
    return data_format("%s.tmp-%ld-%u", path, (long)getpid(), atomic_fetch_add(&serial, 1));
}

data_writer *data_writer_open(const char *path)
{
    char *temporary = data_temporary_name(path);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        data_fail_write(path, "cannot be written");
        rax_free(temporary);
        return NULL;
    }
    data_writer *writer = rax_alloc(sizeof *writer);
    writer->fd = fd;
    writer->path = data_format("%s", path);
    writer->temporary = temporary;
    return writer;
}

static bool writer_failed(data_writer *writer)
{
    writer->failed = true;
    return data_fail_write(writer->path, "cannot be written");
}

static bool write_all(data_writer *writer, const char *bytes, size_t count)
{
    while (count > 0) {
        ssize_t written = write(writer->fd, bytes, count);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return writer_failed(writer);
        bytes += written;
        count -= (size_t)written;
    }
    return true;
}

bool data_writer_add(data_writer *writer, const void *bytes, size_t count)
{
    if (writer->failed)
        return false;
    if (writer->used + count > sizeof writer->buffer) {
        if (!write_all(writer, writer->buffer, writer->used))
            return false;
        writer->used = 0;
    }
    if (count > sizeof writer->buffer)
        return write_all(writer, bytes, count);
    memcpy(writer->buffer + writer->used, bytes, count);
    writer->used += count;
    return true;
}

static bool writer_finish(data_writer *writer)
{
    if (writer->failed || !write_all(writer, writer->buffer, writer->used))
        return false;
    if (fsync(writer->fd) != 0)
        return writer_failed(writer);
    int fd = writer->fd;
    writer->fd = -1;
    return close(fd) == 0 || writer_failed(writer);
}

/* The rename itself is on the disk once the folder is. Some file systems cannot flush a folder: then it is as it is. */
static void flush_folder_of(const char *path)
{
    char *copy = data_format("%s", path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    rax_free(copy);
}

bool data_writer_commit(data_writer *const *writers, int count)
{
    bool ok = true;

    for (int i = 0; i < count; i++)
        if (writers[i])
            ok = ok && writer_finish(writers[i]);
    for (int i = 0; i < count; i++) {
        if (!writers[i])
            continue;
        if (ok) {
            ok = rename(writers[i]->temporary, writers[i]->path) == 0 || writer_failed(writers[i]);
            flush_folder_of(writers[i]->path);
        }
        data_writer_abandon(writers[i]);
    }
    return ok;
}

void data_writer_abandon(data_writer *writer)
{
    if (!writer)
        return;
    if (writer->fd >= 0)
        close(writer->fd);
    unlink(writer->temporary);       /* gone already where it was renamed */
    rax_free(writer->path);
    rax_free(writer->temporary);
    rax_free(writer);
}

/* -- folders ---------------------------------------------------------------------------------------------------------- */

bool data_make_folders(const char *path)
{
    char *copy = data_format("%s", path);

    for (char *at = copy + 1; *copy; at++) {
        char here = *at;
        if (here != '/' && here != '\0')
            continue;
        *at = '\0';
        struct stat info;
        if (mkdir(copy, 0777) != 0 && !(errno == EEXIST && stat(copy, &info) == 0 && S_ISDIR(info.st_mode))) {
            errno = errno == EEXIST ? ENOTDIR : errno;
            data_fail_write(copy, "the folder cannot be made");
            rax_free(copy);
            return false;
        }
        *at = here;
        if (here == '\0')
            break;
    }
    rax_free(copy);
    return true;
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *place)
{
    (void)info, (void)type, (void)place;
    remove(path);
    return 0;
}

void data_remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* -- digests ---------------------------------------------------------------------------------------------------------- */

void data_sha256(data_text text, char hex[65])
{
    unsigned char digest[EVP_MAX_MD_SIZE] = {0};
    unsigned int size = 0;

    EVP_Digest(text.at, text.len, digest, &size, EVP_sha256(), NULL);
    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}
